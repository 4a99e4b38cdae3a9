"""Batches on their way to the device: copied beside the computing, not between two steps of it.

The host queues a step and asks for the next batch while the device still computes; the copy then runs on a queue
(stream) of its own, and what uses the batch waits for it on the device. The host waits for nothing.
"""


def in_turn(tensors, device):
    """The tensors on the device; on the queue that computes, a copy takes its turn."""
    return [tensor.to(device, non_blocking=True) for tensor in tensors]


class Beside:
    """Does what `in_turn` does on a stream of their own.

    Two batches are held: one that the device may still compute with, and the one that is copied. A third gets the
    memory of the first as soon as the step that used it has ended on the device, so that memory is neither
    overwritten early nor taken without bound by a host that is far ahead.
    Args:
        accelerator: util.device.Accelerator.
        stream: a new one of its.
    """

    def __init__(self, accelerator, stream):
        self._accelerator, self._stream = accelerator, stream
        self._held, self._step_ended = (None, None), None

    def __call__(self, tensors, device):
        current = self._accelerator.current_stream()
        if self._step_ended is not None:
            self._stream.wait_event(self._step_ended)       # the step before the one that was queued last
        self._step_ended = current.record_event()
        self._held = self._held[1], None                    # lets go of that step's batch
        with self._accelerator.queueing_on(self._stream):
            moved = in_turn(tensors, device)
        current.wait_stream(self._stream)
        self._held = self._held[0], moved
        return list(moved)
