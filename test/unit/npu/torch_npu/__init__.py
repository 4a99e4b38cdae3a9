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
from torch.utils import backend_registration

from . import _autocast, _dispatch, _hccl, npu, profiler  # noqa: F401
from ._chip import npu_clear_float_status, npu_get_float_status  # noqa: F401

_LIVING = backend_registration._DummyPrivateUse1Hook(), backend_registration._DummyDeviceGuard()   # held here only
backend_registration._setup_privateuseone_for_python_backend('npu', npu, *_LIVING)
_dispatch.register()
_autocast.register()
_hccl.register()
