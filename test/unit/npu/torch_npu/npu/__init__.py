"""torch.npu: the device module.

EMULATED_NPU_FAULT in the environment is what set_device raises, as on an NPU that is busy or not permitted.
"""
import os
import resource

import torch

from .. import _chip, _dispatch, _record
from . import utils  # noqa: F401
from .utils import clear_npu_overflow_flag, get_npu_overflow_flag, is_bf16_supported  # noqa: F401

_current = 0
_jit_compile = _chip.NAME == 'Ascend910A'       # the default of the other chips is off
_queue_level = None                             # read once, when the first stream is created


def is_available():
    return _chip.VISIBLE > 0


def _is_in_bad_fork():
    return False


def device_count():
    return _chip.VISIBLE


def current_device():
    return _current


def set_device(device):
    global _current
    if 'EMULATED_NPU_FAULT' in os.environ:
        raise RuntimeError(os.environ['EMULATED_NPU_FAULT'] + '\n[ERROR] further lines')
    _current = torch.device(device).index


def set_compile_mode(jit_compile=False):
    global _jit_compile
    _jit_compile = jit_compile


def get_device_name(device_name=None):
    return _chip.NAME


def get_amp_supported_dtype():
    return [torch.float16, torch.bfloat16, torch.float32] if is_bf16_supported() else [torch.float16, torch.float32]


def synchronize(device=None):
    _record.wait('synchronize')


def max_memory_allocated(device=None):
    """The memory of the emulated device is the process's: its peak, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def manual_seed_all(seed):
    _dispatch.generator.manual_seed(seed)


class Stream:
    """Everything happens at once."""

    def __init__(self):
        global _queue_level
        _queue_level = _queue_level or os.environ.get('TASK_QUEUE_ENABLE', '1')

    def wait_stream(self, stream):
        pass

    def record_event(self, event=None):
        pass


def current_stream(device=None):
    return Stream()


class stream:
    """A context that queues work on a stream."""

    def __init__(self, stream):
        pass

    def __enter__(self):
        _record.next_step()

    def __exit__(self, *raised):
        pass
