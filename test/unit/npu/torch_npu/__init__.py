"""An emulated Ascend NPU: `import torch_npu` makes the device 'npu', whose memory and arithmetic are the host's.

For tests, in processes that have this package's folder on PYTHONPATH. It offers the names of the real package that a
training program needs and no others, so that using a name which the real one lacks fails here too.

Settings, in the environment:
    ASCEND_RT_VISIBLE_DEVICES   the devices that a process sees, e.g. 0,1, as on the real one; 8 by default
    EMULATED_NPU_CHIP           910A (no bf16, saturates: the largest number for inf, 0 for NaN) or 910B
    EMULATED_NPU_GELU           tanh: that form of GELU whatever is asked for, as real NPUs do; exact by default
    EMULATED_NPU_RECORD         file for the record of operators and of waits for the device, see _record

Limits: a tensor's device is always npu:0, because PyTorch's Python device guard knows one device; each process is
meant to use one. Needs torch 2.10 or later: PrivateUse1Hooks in Python.
"""
import torch

from . import _autocast, _dispatch, _hccl, npu, profiler  # noqa: F401
from ._chip import npu_clear_float_status, npu_get_float_status  # noqa: F401


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self):
        return npu.is_available()

    def has_primary_context(self, index):
        return True

    def is_built(self):
        return True


class _Guard(torch._C._acc.DeviceGuard):
    def type_(self):
        return torch._C._autograd.DeviceType.PrivateUse1


torch.utils.rename_privateuse1_backend('npu')
torch._register_device_module('npu', npu)
torch.utils.generate_methods_for_privateuse1_backend(for_tensor=True, for_module=True, for_storage=False)
_LIVING = [_Hooks(), _Guard()]          # PyTorch keeps no reference of its own
torch._C._acc.register_python_privateuseone_hook(_LIVING[0])
torch._C._acc.register_python_privateuseone_device_guard(_LIVING[1])
_dispatch.register()
_autocast.register()
_hccl.register()
