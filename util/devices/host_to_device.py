"""Host-to-device copies of batches."""
from typing import Any, List, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader

from util.compat import accepts


def copy_small(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy a small host array to the device, from pinned memory: other copies would wait for all queued work."""
    tensor = torch.from_numpy(values)
    if device.type != 'cpu':        # some releases pin for CUDA unless the device is named, here as in the loader
        tensor = tensor.pin_memory(*[device.type] * accepts(DataLoader, 'pin_memory_device'))
    return tensor.to(device, non_blocking=True)


def inline_copy(tensors: Sequence[torch.Tensor], device: torch.device) -> List[torch.Tensor]:
    """Copy on the current stream, in turn with the computation."""
    return [tensor.to(device, non_blocking=True) for tensor in tensors]


class StreamCopy:
    """Host-to-device copies on a side stream, overlapped with compute; the host never waits.

    Two batches are held: one that may still be in use by the device, and the one being copied. The memory of the first
    is released once the step that used it has ended on the device, so it is neither overwritten early nor allocated
    without bound by a host that runs far ahead.
    """

    def __init__(self, module: Any, stream: Any):
        self._module, self._stream = module, stream
        self._held, self._step_ended = (None, None), None

    def __call__(self, tensors: Sequence[torch.Tensor], device: torch.device) -> List[torch.Tensor]:
        current = self._module.current_stream()
        if self._step_ended is not None:
            self._stream.wait_event(self._step_ended)       # of the second-last step queued
        self._step_ended = current.record_event()
        self._held = self._held[1], None                    # releases the batch of that step
        with self._module.stream(self._stream):
            copies = inline_copy(tensors, device)
        current.wait_stream(self._stream)
        self._held = self._held[0], copies
        return list(copies)
