"""Accelerators, which only this module and precision.py name: choosing between NPU, GPU and CPU, and what differs."""
import importlib
import math
import os
import sys
from typing import Any, Dict, Optional, Tuple

import torch
import torch.utils.checkpoint
from torch import distributed as dist

from util.compat import supported
from util.devices import host
from util.devices.flat_adamw import FlatAdamW
from util.devices.host_to_device import StreamCopy, inline_copy
from util.errors import UserError
from util.text import first_line


class Cpu:
    """The CPU, and the interface of all devices: calls that only an accelerator needs do nothing."""
    type = 'cpu'
    backend = 'gloo'                # of torch.distributed
    name = 'CPU'
    is_accelerator = False
    supports_bucket_view = True     # False if the optimizer requires gradients to keep their first memory
    loader_options = {}             # DataLoader keywords that this device adds to pin_memory
    checkpoint_preserves_rng = True     # torch.utils.checkpoint restores the device's random state (for drop path)

    def __init__(self, reason: str = ''):
        self.reason = reason                # why this device was chosen
        self.to_device = inline_copy        # (tensors, torch.device) -> their copies on the device

    def count(self) -> int:
        """Number of visible devices; 1 for the CPU."""
        return 1

    def use(self, local_rank: int) -> torch.device:
        """Make the device of `local_rank` the current one and return it."""
        host.keep_freed_memory()
        return torch.device(self.type)

    def seed(self, value: int) -> None:
        """Seed the random generators of the devices."""

    def synchronize(self) -> None:
        """Wait until all queued work is done."""

    def peak_memory(self) -> Optional[float]:
        """Peak device memory allocated so far, in MiB; None if not measured."""
        return None

    def supports_bf16(self) -> bool:
        """Whether bf16 works; it may be slow on a CPU."""
        return True

    def amp_is_faster(self) -> bool:
        """Whether --amp speeds up training; on a CPU only with bf16 instructions."""
        return not host.cpu_flags().isdisjoint(('avx512_bf16', 'amx_bf16'))

    def prepare_network(self, master_addr: str, timeout: float) -> None:
        """Configure the collective library; `timeout` of collectives in seconds."""

    def adamw(self, param_groups: Any, **options: Any) -> torch.optim.Optimizer:
        """The fastest exact AdamW of this device."""
        fused = supported(torch.optim.AdamW, fused=True)
        try:
            probe = torch.nn.Parameter(torch.zeros(1, device=self.type))
            probe.grad = torch.zeros_like(probe)
            torch.optim.AdamW([probe], **fused).step()
        except RuntimeError:
            fused = {}                  # some releases support it on some devices only
        return torch.optim.AdamW(param_groups, **options, **fused)

    def clear_overflow(self) -> None:
        """Let earlier overflows not count for the next all_finite."""

    def all_finite(self, norm: torch.Tensor) -> torch.Tensor:
        """Whether gradients of this 2-norm are finite, as a bool tensor on the device; collective on some."""
        return torch.isfinite(norm)

    def versions(self) -> Dict[str, str]:
        """Versions of the software between PyTorch and the device, by name."""
        return {}

    def profile(self) -> Any:
        """Profiler of host and device: a context manager with export_chrome_trace(path) after its exit."""
        modern = getattr(getattr(torch, 'profiler', None), 'profile', None)
        # acc_events keeps the events after the exit; newer releases warn without it.
        return modern(**supported(modern, acc_events=True)) if modern else torch.autograd.profiler.profile()


class Accelerator(Cpu):
    """Common base of NPUs and GPUs; `module` is torch.npu or torch.cuda, which have the same interface."""
    is_accelerator = True

    def __init__(self, module: Any, reason: str = ''):
        super().__init__(reason)
        self.module = module

    @property
    def name(self) -> str:
        get_name = getattr(self.module, 'get_device_name', None)     # missing in torch.npu 1.5
        return get_name(self.module.current_device()) if get_name else self.type.upper()

    def count(self) -> int:
        return self.module.device_count()

    def use(self, local_rank: int) -> torch.device:
        if local_rank >= self.count():
            raise UserError('local rank {} has no {} device: {} found; pass --nproc={} to the launcher'
                            .format(local_rank, self.type, self.count(), self.count()))
        device = torch.device('{}:{}'.format(self.type, local_rank))
        self.module.set_device(device)
        if hasattr(self.module, 'Stream'):      # otherwise there is one stream only
            self.to_device = StreamCopy(self.module, self.module.Stream())
        return device

    def seed(self, value: int) -> None:
        self.module.manual_seed_all(value)

    def synchronize(self) -> None:
        self.module.synchronize()

    def peak_memory(self) -> float:
        return self.module.max_memory_allocated() / 2 ** 20

    def amp_is_faster(self) -> bool:
        return True

    def supports_bf16(self) -> bool:
        return getattr(self.module, 'is_bf16_supported', lambda: False)()       # missing before torch 1.10


class Cuda(Accelerator):
    """NVIDIA GPUs: torch.cuda and NCCL."""
    type = 'cuda'
    backend = 'nccl'

    def supports_bf16(self) -> bool:
        # PyTorch also reports support where it emulates bf16, slowly; it is native from Ampere (8.0) on.
        return super().supports_bf16() and self.module.get_device_capability()[0] >= 8

    def versions(self) -> Dict[str, str]:
        return {'CUDA': torch.version.cuda}


class Npu(Accelerator):
    """Ascend NPUs: torch.npu (of torch_npu, or built into Ascend's torch 1.5) and HCCL."""
    type = 'npu'
    backend = 'hccl'
    supports_bucket_view = False      # FlatAdamW has the gradients in a buffer of its own
    loader_options = {'pin_memory_device': type}
    # Older releases preserve the random state of CPU and CUDA only.
    checkpoint_preserves_rng = hasattr(torch.utils.checkpoint, 'DefaultDeviceType')

    def prepare_network(self, master_addr: str, timeout: float) -> None:
        # In seconds; the 910A rounds down to a multiple of 68 and accepts at most 17340.
        os.environ.setdefault('HCCL_EXEC_TIMEOUT', str(min(68 * math.ceil(timeout / 68), 17340)))
        # HCCL binds to the first interface by default; use the one that reaches the master.
        os.environ.setdefault('HCCL_WHITELIST_DISABLE', '1')
        address = host.local_address_towards(master_addr)
        if address:
            os.environ.setdefault('HCCL_IF_IP', address)

    def versions(self) -> Dict[str, str]:
        return {'torch_npu': getattr(sys.modules.get('torch_npu'), '__version__', "PyTorch's own")}

    def adamw(self, param_groups: Any, **options: Any) -> torch.optim.Optimizer:
        return FlatAdamW(param_groups, **options)       # torch_npu's own waits for the device in every step

    @property
    def _saturating(self):
        """Ascend's operators if inf becomes the largest number and NaN 0, as before the 910B; a status shows it."""
        has_inf = getattr(getattr(self.module, 'utils', None), 'is_support_inf_nan', lambda: False)()
        return None if has_inf else sys.modules.get('torch_npu', torch)         # Ascend's torch 1.5 has its own

    def clear_overflow(self) -> None:
        if self._saturating:
            self._saturating.npu_clear_float_status(torch.zeros(8, device=self.type))

    def all_finite(self, norm: torch.Tensor) -> torch.Tensor:
        if not self._saturating:
            return super().all_finite(norm)
        status = self._saturating.npu_get_float_status(torch.zeros(8, device=self.type))[0].float()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(status)
        return (status == 0) & super().all_finite(norm)

    def profile(self) -> Any:
        modern = getattr(sys.modules.get('torch_npu'), 'profiler', None)
        if hasattr(modern, 'profile'):
            return modern.profile()
        legacy = torch.autograd.profiler.profile        # with use_npu in Ascend's builds
        return legacy(**supported(legacy, use_npu=True))


def select(requested: str) -> Cpu:
    """Choose the device of --device.

    Args:
        requested: 'auto' (NPU, then CUDA, then CPU) or one of 'npu', 'cuda', 'cpu'.
    Raises:
        UserError: the requested device is not available.
    """
    missing = []
    for kind in ('npu', 'cuda'):
        if requested in ('auto', kind):
            accelerator, why_not = probe(kind)
            if accelerator:
                accelerator.reason = 'found' if requested == 'auto' else '--device ' + kind
                return accelerator
            missing.append(why_not)
    if requested in ('auto', 'cpu'):
        return Cpu('; '.join(missing) or '--device cpu')
    raise UserError('--device {}: {}; pass --device auto to use an available device (python -m util.tools.check_env '
                    'lists them)'.format(requested, missing[0]))


def probe(kind: str) -> Tuple[Optional[Accelerator], Optional[str]]:
    """(accelerator, None) for 'npu' or 'cuda', or (None, why it is not available)."""
    if kind == 'cuda':
        return (Cuda(torch.cuda), None) if torch.cuda.is_available() else (None, 'no CUDA GPU')
    if not hasattr(torch, 'npu'):       # built into Ascend's torch 1.5, otherwise added by torch_npu
        advice = ('source set_env.sh of the CANN toolkit first, by default /usr/local/Ascend/ascend-toolkit/set_env.sh'
                  ', or install the torch_npu release for torch ' + torch.__version__)
        try:
            importlib.import_module('torch_npu')
        except (Exception, SystemExit) as error:        # of any type, above all with a mismatched torch
            if getattr(error, 'name', None) == 'torch_npu':
                return None, 'no NPU (torch_npu is not installed)'
            return None, 'torch_npu is installed but does not load ({}): {}'.format(first_line(error), advice)
    if not hasattr(torch, 'npu') or not torch.npu.is_available():
        return None, 'torch_npu is installed but finds no NPU (see npu-smi info and ASCEND_RT_VISIBLE_DEVICES)'
    return Npu(torch.npu), None
