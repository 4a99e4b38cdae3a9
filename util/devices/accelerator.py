"""The accelerator: which one, why, and the few calls that differ between Ascend NPUs, CUDA GPUs and the CPU.

Nothing outside this module and util/devices/precision.py names an accelerator.
"""
import ctypes
import importlib
import math
import os
import shutil
import socket
import sys
import tempfile
from contextlib import suppress

import torch
import torch.utils.checkpoint

from util.compat import supported
from util.errors import UserError
from util.log import logger
from util.text import first_line

_BF16_INSTRUCTIONS = {'avx512_bf16', 'amx_bf16'}        # as /proc/cpuinfo names them
SKIP = 5                # iterations until --prof traces
# PyTorch 1.8 takes the square of their number to nest the events: two minutes for 10 iterations of ViT-B.
TRACE = 10 if hasattr(torch, 'inference_mode') else 3


def inline_copy(tensors, device):
    """The tensors on the device; on the queue that computes, a copy takes its turn."""
    return [tensor.to(device, non_blocking=True) for tensor in tensors]


class StreamCopy:
    """Host-to-device copies on a side stream, overlapped with compute; the host never waits.

    Two batches are held: one that the device may still compute with, and the one that is copied. A third gets the
    memory of the first as soon as the step that used it has ended on the device, so that memory is neither
    overwritten early nor taken without bound by a host that is far ahead.
    Args:
        module: that of an Accelerator, such as torch.cuda; stream: a new one of its.
    """

    def __init__(self, module, stream):
        self._module, self._stream = module, stream
        self._held, self._step_ended = (None, None), None

    def __call__(self, tensors, device):
        current = self._module.current_stream()
        if self._step_ended is not None:
            self._stream.wait_event(self._step_ended)       # the step before the one that was queued last
        self._step_ended = current.record_event()
        self._held = self._held[1], None                    # lets go of that step's batch
        with self._module.stream(self._stream):
            moved = inline_copy(tensors, device)
        current.wait_stream(self._stream)
        self._held = self._held[0], moved
        return list(moved)


class Cpu:
    """The host: every call that only an accelerator needs does nothing."""
    type = 'cpu'
    backend = 'gloo'
    name = 'CPU'
    is_accelerator = False
    supports_bucket_view = True       # False where the optimizer finds them only in the memory that they were first in
    loader_options = {}             # DataLoader keywords for batches that go to this device, beside pin_memory
    checkpoint_preserves_rng = True            # whether torch.utils.checkpoint draws dropped paths again as they were

    def __init__(self, reason=''):
        self.reason = reason
        self.to_device = inline_copy        # (tensors, torch.device) -> the tensors there

    def count(self):
        """Devices of this type that the process may use; the CPU counts as one."""
        return 1

    def use(self, local_rank):
        """Make `local_rank`'s device the current one and return it as a torch.device."""
        keep_freed_memory()
        return torch.device(self.type)

    def seed(self, value):
        """Seed the device's own random generator."""

    def synchronize(self):
        """Wait until the device has done all that was queued."""

    def peak_memory(self):
        """Most device memory allocated so far, in MiB; None where that is not measured."""
        return None

    def supports_bf16(self):
        """Whether bf16 can be had when asked for by name."""
        return True

    def amp_is_faster(self):
        """Whether --amp pays; on a CPU only where it multiplies bf16 by instructions of its own."""
        return not _BF16_INSTRUCTIONS.isdisjoint(_cpu_flags())

    def prepare_network(self, master_addr, timeout):
        """Set what the collective library needs to know before the process group starts.

        Args:
            timeout: seconds until a collective operation gives up.
        """

    def adamw(self, param_groups, **options):
        """The fastest exact AdamW that this device has."""
        fused = supported(torch.optim.AdamW, fused=True)
        try:
            probe = torch.nn.Parameter(torch.zeros(1, device=self.type))
            probe.grad = torch.zeros_like(probe)
            torch.optim.AdamW([probe], **fused).step()
        except RuntimeError:
            fused = {}                  # some releases have it for some devices only
        return torch.optim.AdamW(param_groups, **options, **fused)

    def versions(self):
        """{name: version} of the software between PyTorch and the device."""
        return {}

    def profile(self):
        """A profiler of host and device: a context that has export_chrome_trace(path) once it is left."""
        modern = getattr(getattr(torch, 'profiler', None), 'profile', None)
        # Kept beyond the end, or newer ones warn that they are not.
        return modern(**supported(modern, acc_events=True)) if modern else torch.autograd.profiler.profile()


class Accelerator(Cpu):
    """What NPUs and GPUs share: `module` is torch.npu or torch.cuda, which mirror each other."""
    is_accelerator = True

    def __init__(self, module, reason=''):
        super().__init__(reason)
        self.module = module

    @property
    def name(self):
        get_name = getattr(self.module, 'get_device_name', None)     # absent from torch.npu 1.5
        return get_name(self.module.current_device()) if get_name else self.type.upper()

    def count(self):
        return self.module.device_count()

    def use(self, local_rank):
        if local_rank >= self.count():
            raise UserError('process {} of this node has no {} of its own: {} found; pass --nproc={} to the launcher'
                            .format(local_rank, self.type, self.count(), self.count()))
        device = torch.device('{}:{}'.format(self.type, local_rank))
        self.module.set_device(device)
        if hasattr(self.module, 'Stream'):      # else there is one queue of work alone
            self.to_device = StreamCopy(self.module, self.module.Stream())
        return device

    def seed(self, value):
        self.module.manual_seed_all(value)

    def synchronize(self):
        self.module.synchronize()

    def peak_memory(self):
        return self.module.max_memory_allocated() / 2 ** 20

    def amp_is_faster(self):
        return True

    def supports_bf16(self):
        return getattr(self.module, 'is_bf16_supported', lambda: False)()       # absent before torch 1.10


class Cuda(Accelerator):
    """NVIDIA GPUs, by torch.cuda and NCCL."""
    type = 'cuda'
    backend = 'nccl'

    def supports_bf16(self):
        # PyTorch also says yes where it only emulates bf16, slowly; native support starts at Ampere (8.0).
        return super().supports_bf16() and self.module.get_device_capability()[0] >= 8

    def versions(self):
        return {'CUDA': torch.version.cuda}


class Npu(Accelerator):
    """Ascend NPUs, by torch.npu (of torch_npu, or built into Ascend's torch 1.5) and HCCL."""
    type = 'npu'
    backend = 'hccl'
    supports_bucket_view = False      # NpuFusedAdamW collects them in one buffer at the first step
    loader_options = {'pin_memory_device': type}
    # Older releases preserve the generators of CPU and CUDA only.
    checkpoint_preserves_rng = hasattr(torch.utils.checkpoint, 'DefaultDeviceType')

    def prepare_network(self, master_addr, timeout):
        # Whole seconds; the 910A takes at most 17340, and rounds down to a multiple of 68.
        os.environ.setdefault('HCCL_EXEC_TIMEOUT', str(min(68 * math.ceil(timeout / 68), 17340)))
        # HCCL binds to the first interface unless told; the one that reaches the master is the one that works.
        os.environ.setdefault('HCCL_WHITELIST_DISABLE', '1')
        address = local_address_towards(master_addr)
        if address:
            os.environ.setdefault('HCCL_IF_IP', address)

    def versions(self):
        return {'torch_npu': getattr(sys.modules.get('torch_npu'), '__version__', "PyTorch's own")}

    def adamw(self, param_groups, **options):
        optimizers = getattr(sys.modules.get('torch_npu'), 'optim', None)
        return getattr(optimizers, 'NpuFusedAdamW', torch.optim.AdamW)(param_groups, **options)

    def profile(self):
        modern = getattr(sys.modules.get('torch_npu'), 'profiler', None)
        if hasattr(modern, 'profile'):
            return modern.profile()
        legacy = torch.autograd.profiler.profile        # that of Ascend's builds takes use_npu
        return legacy(**supported(legacy, use_npu=True))


def select(requested):
    """The device to run on.

    Args:
        requested: 'auto' (NPU, then CUDA, then CPU) or one of 'npu', 'cuda', 'cpu'.
    Returns:
        Cpu, Cuda or Npu, with `reason` saying why it was chosen.
    Raises:
        UserError: the requested device cannot be used here.
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
    raise UserError('--device {}: {}; pass --device auto to use what is there (python -m util.tools.check_env lists it)'
                    .format(requested, missing[0]))


def probe(kind):
    """('npu' or 'cuda' as an Accelerator, None), or (None, why it cannot be used here)."""
    if kind == 'cuda':
        return (Cuda(torch.cuda), None) if torch.cuda.is_available() else (None, 'no CUDA GPU')
    if not hasattr(torch, 'npu'):       # Ascend's torch 1.5 has it built in; elsewhere torch_npu brings it
        advice = ('source set_env.sh of the CANN toolkit first, by default /usr/local/Ascend/ascend-toolkit/set_env.sh'
                  ', or install the torch_npu that is made for torch ' + torch.__version__)
        try:
            importlib.import_module('torch_npu')
        except (Exception, SystemExit) as error:        # it raises all kinds, most of all beside another torch's
            if getattr(error, 'name', None) == 'torch_npu':
                return None, 'no NPU (torch_npu is not installed)'
            return None, 'torch_npu is installed but does not load ({}): {}'.format(first_line(error), advice)
        if not hasattr(torch, 'npu'):
            return None, 'torch_npu is installed but brings no torch.npu: ' + advice
    if not torch.npu.is_available():
        return None, 'torch_npu is installed but finds no NPU (see npu-smi info and ASCEND_RT_VISIBLE_DEVICES)'
    return Npu(torch.npu), None


def _cpu_flags():
    """The instruction sets that Linux says this CPU has; none on other systems."""
    with suppress(OSError), open('/proc/cpuinfo', encoding='ascii', errors='replace') as file:
        return set(next((line for line in file if line.startswith('flags')), '').split())
    return set()


def keep_freed_memory():
    """Ask the C library to keep memory that CPU tensors have freed; returns whether it has understood.

    By default glibc gives large blocks back at once, and every step fetches them again (test/bench/results/step.md).
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    # malloc.h's M_MMAP_MAX, M_TRIM_THRESHOLD (the most that an int holds) and M_TOP_PAD
    return bool(mallopt and mallopt(-4, 0) and mallopt(-1, 2 ** 31 - 1) and mallopt(-2, 2 ** 28))


def local_address_towards(host):
    """The address of the local interface that routes to `host`; None for loopback and unreachable hosts.

    A UDP socket is connected, which consults the routing table and sends nothing.
    """
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        address = probe.getsockname()[0]
        return None if address.startswith('127.') else address
    return None


class Profiler:
    """--prof: traces iterations SKIP to SKIP + TRACE of the run (fewer where it ends sooner), for chrome://tracing.

    Args:
        folder: prof/trace.json is written there; None for no trace.
    """

    def __init__(self, accelerator, folder):
        self._accelerator, self._path = accelerator, folder and os.path.join(folder, 'prof', 'trace.json')
        self._done, self._trace = 0, None

    def step(self):
        """Call after each iteration."""
        self._done += 1
        if self._path and self._done == SKIP:
            self._accelerator.synchronize()     # what was queued before the window stays out of it
            self._trace = self._accelerator.profile()
            self._trace.__enter__()
        elif self._done == SKIP + TRACE:
            self.finish()

    def finish(self):
        """Write what was traced, if it has not been written."""
        if self._path and self._done < SKIP:
            logger.warning('--prof: the run ended after %d iterations, the trace begins after %d: nothing written',
                           self._done, SKIP)
        if self._trace is None:
            return
        self._accelerator.synchronize()
        self._trace.__exit__(None, None, None)
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:       # torch itself takes no path that is not UTF-8
            trace = os.path.join(folder, 'trace.json')
            self._trace.export_chrome_trace(trace)
            shutil.move(trace, self._path)
        self._trace = None
        logger.info('profiler trace: %s (open in chrome://tracing)', self._path)
