"""Batches on their way to the device, with streams that write down what is asked of them."""
from contextlib import contextmanager

import pytest
import torch

from util.prefetch import Beside


class Streams:
    """A module like torch.cuda and its streams by name; `queued` is what was queued on them, in order."""

    def __init__(self, name='computing', queued=None):
        self.name, self.queued = name, [] if queued is None else queued
        self.now = self

    def current_stream(self):
        return self.now

    @contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream
        yield
        self.now = before

    def record_event(self):
        return 'the end of {}'.format(([words for words in self.queued if words.startswith('step')] or ['nothing'])[-1])

    def wait_event(self, event):
        self.queued.append('{} waits for {}'.format(self.name, event))

    def wait_stream(self, stream):
        self.queued.append('{} waits for {}'.format(self.name, stream.name))


class Copy:
    """A tensor whose copy on the device tells when its memory is free again."""

    def __init__(self, streams, name, queued=None):
        self.streams, self.name, self.on_device = streams, name, queued

    def to(self, device, non_blocking):
        assert non_blocking and device == 'device'
        self.streams.queued.append('{} copies {}'.format(self.streams.now.name, self.name))
        return Copy(self.streams, self.name, True)

    def __del__(self):
        if self.on_device:
            self.streams.queued.append('{} is free'.format(self.name))


def steps(count):
    """What a pass of `count` steps queues, in order."""
    streams = Streams()
    to_device = Beside(streams, Streams('copying', streams.queued))
    for i in range(count):
        to_device([Copy(streams, 'batch {}'.format(i))], 'device')      # the step lets go of it at once
        streams.queued.append('step {}'.format(i))
    return list(streams.queued)


def test_a_batch_is_copied_beside_a_step_and_its_memory_given_back_when_the_step_that_used_it_has_ended():
    queued = steps(4)
    assert queued.index('step 0') < queued.index('copying copies batch 1')
    assert queued[queued.index('copying copies batch 1') + 1:][:2] == ['computing waits for copying', 'step 1']
    for i in (0, 1):
        free = queued.index('batch {} is free'.format(i))
        assert queued[:free].count('step {}'.format(i + 1)) == 1
        assert queued.index('copying waits for the end of step {}'.format(i)) < free
        assert free < queued.index('copying copies batch {}'.format(i + 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_batches_arrive_whole_on_a_gpu_that_is_busy():
    from util.device import select
    accelerator = select('cuda')
    place = accelerator.use(0)
    large, seen = torch.randn(4096, 4096, device=place), []
    for i in range(8):
        batch, = accelerator.to_device([torch.full((2 ** 20,), i, dtype=torch.uint8).pin_memory()], place)
        for _ in range(10):
            large = large @ large.softmax(dim=1)
        seen.append(batch.float().mean())
    assert torch.stack(seen).tolist() == list(range(8))
