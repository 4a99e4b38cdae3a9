"""Accelerators, which only this module and precision.py name: choosing between NPU, GPU and CPU, and what differs."""
import glob
import importlib
import math
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, ContextManager, Iterator, List, Optional, Tuple

import torch
import torch.utils.checkpoint
from torch import distributed as dist

from util.compat import supported
from util.devices import host
from util.devices.flat_adamw import FlatAdamW
from util.devices.host_to_device import StreamCopy, inline_copy
from util.errors import UserError
from util.text import first_line

# Below $ASCEND_OPP_PATH, for the 910A: a kernel of CANN's package "kernels" ("ops" since 8.5, with a folder more).
KERNELS = 'built-in/op_impl/ai_core/tbe/kernel/ascend910/**/add/*.o'
TOPOLOGY_SECONDS = 10.          # limit of npu-smi


class Cpu:
    """The CPU, and the interface of all devices: calls that only an accelerator needs do nothing."""
    type = 'cpu'
    backend = 'gloo'                # of torch.distributed
    name = 'CPU'
    is_accelerator = False
    supports_bucket_view = True     # False if the optimizer requires gradients to keep their first memory
    loader_options = {}             # DataLoader keywords that this device adds to pin_memory
    checkpoint_preserves_rng = True     # torch.utils.checkpoint restores the device's random state (for drop path)
    first_iteration = 0.    # seconds that the first iteration may take instead of --hang_timeout

    def __init__(self, reason: str = ''):
        self.reason = reason                # why this device was chosen
        self.to_device = inline_copy        # (tensors, torch.device) -> their copies on the device
        self.details = {}       # versions and settings below PyTorch by name, once in use

    def count(self) -> int:
        """Number of visible devices; 1 for the CPU."""
        return 1

    def use(self, local_rank: int) -> torch.device:
        """Make the device of `local_rank` the current one and return it."""
        host.keep_freed_memory()
        return torch.device(self.type)

    def near_cores(self) -> List[List[int]]:
        """The CPU cores of each visible device's NUMA node; empty if unknown."""
        return []

    def make_deterministic(self) -> None:
        """Call before `use`: deterministic operators and collectives; UserError if PyTorch has none."""
        if not hasattr(torch, 'use_deterministic_algorithms'):
            raise UserError('--deterministic: torch {} has no deterministic mode; omit it'.format(torch.__version__))
        for name, value in ('HCCL_DETERMINISTIC', 'true'), ('CUBLAS_WORKSPACE_CONFIG', ':4096:8'):
            if os.environ.get(name, 'false') == 'false':
                os.environ[name] = value
        torch.use_deterministic_algorithms(True)

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
            torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1, device=self.type))], **fused)
        except RuntimeError:
            fused = {}                  # some releases support it on some devices only
        return torch.optim.AdamW(param_groups, **options, **fused)

    def clear_overflow(self) -> None:
        """Clear the overflow status, so that the next all_finite covers what is computed from now on."""

    def all_finite(self, norm: torch.Tensor) -> torch.Tensor:
        """Whether gradients of this 2-norm are finite, as a bool tensor on the device; collective on some."""
        return torch.isfinite(norm)

    def profile(self, folder: str) -> ContextManager:
        """Context that profiles host and device and writes the trace to `folder` at its end."""
        modern = getattr(getattr(torch, 'profiler', None), 'profile', None)
        # acc_events keeps the events after the exit; newer releases warn without it.
        return _exported(modern(**supported(modern, acc_events=True)) if modern else torch.autograd.profiler.profile(),
                         folder)


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
        try:
            self.module.set_device(device)      # initializes the device
        except RuntimeError as error:
            raise UserError('--device {}: {} cannot be used ({}); see nvidia-smi or npu-smi info: it may be busy, not '
                            'permitted, or driver and toolkit do not match'.format(self.type, device, first_line(error))
                            ) from None
        self.configure()
        if hasattr(self.module, 'Stream'):      # otherwise there is one stream only
            self.to_device = StreamCopy(self.module, self.module.Stream())
        return device

    def configure(self) -> None:
        """Set up the library of the current device, before its first stream is created."""

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

    def configure(self) -> None:
        self.details['CUDA'] = torch.version.cuda


class Npu(Accelerator):
    """Ascend NPUs: torch.npu (of torch_npu, or built into Ascend's torch 1.5) and HCCL."""
    type = 'npu'
    backend = 'hccl'
    first_iteration = 1800.     # some chips compile each operator then
    supports_bucket_view = False      # FlatAdamW has the gradients in a buffer of its own
    loader_options = {'pin_memory_device': type}
    # Older releases preserve the random state of CPU and CUDA only.
    checkpoint_preserves_rng = hasattr(torch.utils.checkpoint, 'DefaultDeviceType')

    def configure(self) -> None:
        self.details['torch_npu'] = getattr(sys.modules.get('torch_npu'), '__version__', "PyTorch's own")
        if re.match(r'Ascend(910B\d|910_|950)', self.name):      # A2, A3, A5; Ascend910B without a digit is older
            # Read by torch_npu when it creates its first stream.
            self.details['TASK_QUEUE_ENABLE'] = os.environ.setdefault('TASK_QUEUE_ENABLE', '2')
        elif hasattr(self.module, 'set_compile_mode') and glob.glob(
                os.path.join(glob.escape(os.environ.get('ASCEND_OPP_PATH', '/')), KERNELS), recursive=True):
            self.module.set_compile_mode(jit_compile=False)
            self.details['operators'] = 'from the installed binary kernels (jit_compile=False)'
        else:
            self.details['operators'] = 'compiled online in the first steps (no binary kernels in ASCEND_OPP_PATH)'

    def near_cores(self) -> List[List[int]]:
        try:
            table = subprocess.run(['npu-smi', 'info', '-t', 'topo'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                   timeout=TOPOLOGY_SECONDS).stdout.decode(errors='replace')
        except (OSError, subprocess.TimeoutExpired):
            return []
        # A row for each device, such as: NPU1  HCCS  X  HCCS  24-47. X stands for itself; some systems list no cores.
        rows = [line.split() for line in table.splitlines()]
        near = [host.core_list(row[-1]) for row in rows if 'X' in row[1:]]
        visible = re.findall(r'\d+', os.environ.get('ASCEND_RT_VISIBLE_DEVICES', '')) or range(len(near))
        return [near[int(index)] if int(index) < len(near) else [] for index in visible]

    def prepare_network(self, master_addr: str, timeout: float) -> None:
        # In seconds; the 910A rounds down to a multiple of 68 and accepts at most 17340.
        os.environ.setdefault('HCCL_EXEC_TIMEOUT', str(min(68 * math.ceil(timeout / 68), 17340)))
        # HCCL binds to the first interface by default; use the one that reaches the master.
        os.environ.setdefault('HCCL_WHITELIST_DISABLE', '1')
        address = host.local_address_towards(master_addr)
        if address:
            os.environ.setdefault('HCCL_IF_IP', address)

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

    def profile(self, folder: str) -> ContextManager:
        modern = getattr(sys.modules.get('torch_npu'), 'profiler', None)
        if hasattr(modern, 'tensorboard_trace_handler'):        # without it, raw data go to the current folder
            return modern.profile(on_trace_ready=modern.tensorboard_trace_handler(folder))
        legacy = torch.autograd.profiler.profile        # with use_npu in Ascend's builds
        return _exported(legacy(**supported(legacy, use_npu=True)), folder)


@contextmanager
def _exported(profiler, folder) -> Iterator[None]:
    with profiler:
        yield
    profiler.export_chrome_trace(os.path.join(folder, 'trace.json'))


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


def torch_npu_aborts() -> bool:
    """Whether an installed torch_npu aborts the interpreter beside a CUDA build of torch, tried in a child process.

    The result is kept in the environment, for the processes that this one starts.
    """
    if not torch.version.cuda or 'torch_npu' in sys.modules or find_spec('torch_npu') is None:
        return False
    if not os.environ.get('MAE_ABORTS_TORCH_NPU'):
        code = 'import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); import torch_npu'    # no core dump
        child = subprocess.run([sys.executable, '-c', code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})
        os.environ['MAE_ABORTS_TORCH_NPU'] = str(int(child.returncode < 0))
    return os.environ['MAE_ABORTS_TORCH_NPU'] == '1'


def probe(kind: str) -> Tuple[Optional[Accelerator], Optional[str]]:
    """(accelerator, None) for 'npu' or 'cuda', or (None, why it is not available)."""
    if kind == 'cuda':
        return (Cuda(torch.cuda), None) if torch.cuda.is_available() else (None, 'no CUDA GPU')
    if not hasattr(torch, 'npu'):       # built into Ascend's torch 1.5, otherwise added by torch_npu
        advice = ('source set_env.sh of the CANN toolkit first, by default /usr/local/Ascend/ascend-toolkit/set_env.sh'
                  ', or install the torch_npu release for torch ' + torch.__version__)
        if torch_npu_aborts():
            return None, ('torch_npu is installed but aborts Python beside the CUDA build of torch: install the CPU '
                          'build, pip install torch=={} torchvision --index-url https://download.pytorch.org/whl/cpu'.format(
                              torch.__version__.split('+')[0]))
        try:
            importlib.import_module('torch_npu')
        except (Exception, SystemExit) as error:        # of any type, above all with a mismatched torch
            if getattr(error, 'name', None) == 'torch_npu':
                return None, 'no NPU (torch_npu is not installed)'
            return None, 'torch_npu is installed but does not load ({}): {}'.format(first_line(error), advice)
    if not hasattr(torch, 'npu') or not torch.npu.is_available():
        return None, 'torch_npu is installed but finds no NPU (see npu-smi info and ASCEND_RT_VISIBLE_DEVICES)'
    return Npu(torch.npu), None
