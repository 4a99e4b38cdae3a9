"""Host-to-device copies, with streams that record the calls."""
import weakref
from unittest.mock import MagicMock

import pytest
import torch

from util.devices.accelerator import select
from util.devices.host_to_device import StreamCopy


class Batch:
    """A tensor on the host; its copy records when its memory is released."""

    def __init__(self, queued, name):
        self.queued, self.name = queued, name

    def to(self, device, non_blocking):
        assert non_blocking and device == 'device'
        self.queued.append('copy of ' + self.name)
        copy = torch.zeros(1)
        weakref.finalize(copy, self.queued.append, self.name + ' is free')
        return copy


def steps(count):
    """The operations that `count` steps queue, in order."""
    queued, module, copying = ['step before'], MagicMock(), MagicMock()
    computing, other_queue = module.current_stream.return_value, module.stream.return_value
    other_queue.__enter__.side_effect = lambda: queued.append('copying:')
    computing.record_event.side_effect = lambda: [words for words in queued if words.startswith('step')][-1]
    computing.wait_stream.side_effect = lambda stream: queued.append('computing waits for the copy')
    copying.wait_event.side_effect = lambda event: queued.append('copying waits for the end of ' + event)
    to_device = StreamCopy(module, copying)
    for i in range(count):
        to_device([Batch(queued, 'batch {}'.format(i))], 'device')      # released by the step at once
        queued.append('step {}'.format(i))
    module.stream.assert_called_with(copying)
    return list(queued)


def test_a_copy_overlaps_a_step_and_memory_is_released_after_the_step_that_used_it():
    one_step = ['copying waits for the end of step 1', 'batch 1 is free', 'copying:', 'copy of batch 3',
                'computing waits for the copy', 'step 3']
    queued = steps(4)
    assert queued[queued.index('step 2') + 1:] == one_step


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_batches_arrive_intact_on_a_busy_gpu():
    accelerator = select('cuda')
    place = accelerator.use(0)
    large, seen = torch.randn(4096, 4096, device=place), []
    for i in range(8):
        batch, = accelerator.to_device([torch.full((2 ** 20,), i, dtype=torch.uint8).pin_memory()], place)
        for _ in range(10):
            large = large @ large.softmax(dim=1)
        seen.append(batch.float().mean())
    assert torch.stack(seen).tolist() == list(range(8))
