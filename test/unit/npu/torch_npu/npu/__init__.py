"""torch.npu: the device module."""
import resource

import torch

from .. import _chip, _dispatch
from . import amp, utils  # noqa: F401
from .utils import clear_npu_overflow_flag, get_npu_overflow_flag, is_bf16_supported  # noqa: F401

_count, _current = _chip.visible_devices(), 0


def is_available():
    return _count > 0


def is_initialized():
    return True


def _is_in_bad_fork():
    return False


def device_count():
    return _count


def current_device():
    return _current


def _index(device):
    """Of a device given as torch.device, text, number or None."""
    if device is None:
        return _current
    index = device if isinstance(device, int) else torch.device(device).index
    return _current if index is None else index


def set_device(device):
    global _current
    index = _index(device)
    if not 0 <= index < _count:
        raise RuntimeError('npu:{} does not exist: {} devices are visible'.format(index, _count))
    _current = index


class device:
    """Makes a device the current one for a while."""

    def __init__(self, device):
        self._index = _index(device)

    def __enter__(self):
        self._before = _current
        if self._index >= 0:
            set_device(self._index)

    def __exit__(self, *raised):
        set_device(self._before)


def get_device_name(device_name=None):
    _index(device_name)
    return _chip.NAMES[_chip.kind()]


def get_amp_supported_dtype():
    return [torch.float16, torch.bfloat16, torch.float32] if is_bf16_supported() else [torch.float16, torch.float32]


def synchronize(device=None):
    _index(device)


def max_memory_allocated(device=None):
    """The memory of the emulated device is the process's: its peak, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def manual_seed(seed):
    _dispatch.generator.manual_seed(seed)


manual_seed_all = manual_seed


def get_rng_state(device='npu'):
    return _dispatch.generator.get_state()


def set_rng_state(new_state, device='npu'):
    _dispatch.generator.set_state(new_state)


class Stream:
    """Everything happens at once."""

    def wait_stream(self, stream):
        pass

    def record_event(self, event=None):
        pass

    def wait_event(self, event):
        pass

    def synchronize(self):
        pass


def current_stream(device=None):
    return Stream()


class stream:
    """A context that queues work on a stream."""

    def __init__(self, stream):
        pass

    def __enter__(self):
        pass

    def __exit__(self, *raised):
        pass
