"""Batches on their way to the device: copied beside the computing, not between two steps of it.

The host queues a step and asks for the next batch while the device still computes; the copy then runs on a queue
(stream) of its own, and what uses the batch waits for it on the device. The host waits for nothing.
"""


class InTurn:
    """Where there is one queue alone, a copy takes its turn."""

    def __call__(self, tensors, device):
        """The tensors on the device."""
        return [tensor.to(device, non_blocking=True) for tensor in tensors]


class Beside(InTurn):
    """Copies on a stream of their own.

    Two batches are held: one that the device may still compute with, and the one that is copied. A third gets the
    memory of the first as soon as the step that used it has ended on the device, so that memory is neither
    overwritten early nor taken without bound by a host that is far ahead.
    Args:
        module: that of util.device.Accelerator; stream: a new one of its.
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
            moved = super().__call__(tensors, device)
        current.wait_stream(self._stream)
        self._held = self._held[0], moved
        return list(moved)
