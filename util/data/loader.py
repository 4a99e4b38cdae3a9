"""Batches: which process sees which image, in which order, with which random augmentation; and loader processes."""
import itertools
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import time
import warnings
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, Subset
from torch.utils.data.dataloader import default_collate

from util.compat import supported
from util.data.image_files import UnreadableImage
from util.errors import SystemFailure, UserError
from util.log import logger

MOST_SUBSTITUTES = 99       # that may be unreadable too, before something other than the files must be broken
GRACE = 2.          # seconds
_TELLS_SENDER = hasattr(signal, 'sigtimedwait')      # of a signal; not on macOS
_CAUGHT = re.compile(r'Caught \w+ in DataLoader worker process')     # raised in a worker that lives
_ADVICE = {signal.SIGKILL: 'most often memory ran out: lower --num_workers',
           signal.SIGBUS: 'most often shared memory ran out: enlarge /dev/shm or lower --num_workers'}
# Older releases must be told for which accelerator to pin memory; newer ones know, and warn that they do.
warnings.filterwarnings('ignore', 'pin_memory_device is deprecated')


class TrainingSampler(Sampler):
    """An epoch's shuffled share of one process, as (index, seed) pairs.

    Process r of W takes places r, r + W, ... of one permutation that depends on (seed, epoch) alone, so that W
    processes with batch B see the same images per step as one with batch W x B. The tail that does not divide is left
    out, another one each epoch. The seed of a sample depends on (seed, epoch, index): augmentation is the same
    whatever the number of loader processes, and after a resume.
    """

    def __init__(self, length, seed, rank=0, world_size=1):
        self.length, self.seed, self.rank, self.world_size = length, seed, rank, world_size
        self.epoch = 0
        self.start = 0          # images of the epoch that all processes together have seen already

    def __len__(self):
        return max(self.length - self.start, 0) // self.world_size

    def __iter__(self):
        return iter(self.of(self.rank, self.epoch, self.start))

    def of(self, rank, epoch, start=0):
        """The pairs that a process gets in an epoch after `start` images."""
        generator = torch.Generator()
        generator.manual_seed((self.seed * 1000003 + epoch) % 2 ** 63)
        order = torch.randperm(self.length, generator=generator)
        seeds = torch.randint(2 ** 31, (self.length,), generator=generator)
        share = order[start:][rank::self.world_size][:max(self.length - start, 0) // self.world_size]
        return list(zip(share.tolist(), seeds[share].tolist()))


class ReadableDataset(Dataset):
    """Looks up (sample, []); or (None, [(path, reason)]) where the file is unreadable."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        try:
            return self.dataset[index], []
        except UnreadableImage as error:
            return None, [(error.path, error.reason)]


class SeededDataset(ReadableDataset):
    """Looks a sample up by (index, seed), with the random generators seeded for it; each iteration seeds them again.

    Where its file is unreadable, another sample takes its place, which depends on (index, seed) alone. A look-up gives
    (sample, [(path, reason) of each unreadable file met]).
    """

    def __getitem__(self, key):
        index, seed = key
        seed_generators(seed)
        found = []
        for candidate in itertools.chain([index], self._substitutes(index, seed)):
            sample, unreadable = super().__getitem__(candidate)
            found += unreadable
            if sample is not None:
                return sample, found
        raise UserError('--data_path: {} images in a row cannot be read, the last {} ({}); is the disk there?'
                        .format(len(found), *found[-1]))

    def _substitutes(self, index, seed):
        """Other indices in a random order, a few at most; nothing is drawn until the first is asked for."""
        others = len(self.dataset) - 1
        drawn = random.Random(seed << 40 | index).sample(range(others), min(others, MOST_SUBSTITUTES))
        yield from (other + (other >= index) for other in drawn)


def collate(looked_up):
    """(batch of the samples that there are, or None; [(path, reason) of all unreadable files])."""
    samples = _of_one_type([sample for sample, _ in looked_up if sample is not None])
    return (default_collate(samples) if samples else None), [pair for _, found in looked_up for pair in found]


def _of_one_type(samples):
    """The samples; where arrays of 8 bits and of more have met, all as floats."""
    types = {getattr(sample[0], 'dtype', None) for sample in samples}
    return samples if len(types) <= 1 else [(pixels.float(), *others) for pixels, *others in samples]


class Batches:
    """What the loader functions return: iterates a DataLoader's batches, and hands unreadable files on.

    Set `unreadable_images` to a UnreadableImages to have them counted and listed, not just logged. `unreadable` is
    how many the last pass has met in this process, `workers` how many loader processes it has. Batches that would be
    empty are left out.
    """

    def __init__(self, dataset, lookup, sampler, batch_size, num_workers, pin_memory, accelerator):
        # A generator of its own: else an iterator made anew, as after a resume, draws from the masks' generator.
        options = supported(DataLoader, generator=torch.Generator())
        if pin_memory and accelerator.is_accelerator:
            options.update(pin_memory=True, **supported(DataLoader, **accelerator.loader_options))
        if num_workers:
            options.update(supported(DataLoader, persistent_workers=True))
        self.loader = DataLoader(lookup, batch_size=batch_size, sampler=sampler, collate_fn=collate,
                                 drop_last=sampler is not None, **worker_options(num_workers), **options)
        self.dataset, self.sampler, self.workers = dataset, sampler, num_workers
        self.unreadable_images, self.unreadable, self._left_out = None, 0, set()

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        """Raises Fault where a loader process has died."""
        self.unreadable, self._left_out = 0, set()
        return self._batches(batches_of(self.loader))

    def _batches(self, batches):
        for batch, found in batches:
            found = [tuple(pair) for pair in found]     # memory pinning makes lists of them
            self.unreadable += len(found)
            self._left_out.update(path for path, _ in found)
            if self.unreadable_images is not None:
                self.unreadable_images.met(found)
            else:
                for pair in found:
                    logger.warning('%s: cannot be read (%s)', *pair)
            if batch is not None:
                yield batch

    def given(self):
        """Indices of the images that the last pass of an evaluation gave, in their order."""
        indices = self.loader.dataset.dataset.indices
        return [i for i in indices if not self._left_out or self.dataset.name_of(i) not in self._left_out]


def seed_generators(seed):
    """Seed the host's generators: Python's, numpy's and torch's."""
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.random.default_generator.manual_seed(seed)


def training_loader(dataset, batch_size, world, seed, num_workers, pin_memory, accelerator):
    """Full batches in shuffled order; set the epoch by loader.sampler.epoch. Others replace unreadable images.

    Returns:
        Batches.
    Raises:
        UserError: there are fewer images than one step of all processes takes.
    """
    sampler = TrainingSampler(len(dataset), seed, world.rank, world.size)
    if len(sampler) < batch_size:
        raise UserError('--batch_size {}: a process gets at most {} of the {} images of the training set'.format(
            batch_size, len(sampler), len(dataset)))
    return Batches(dataset, SeededDataset(dataset), sampler, batch_size, num_workers, pin_memory, accelerator)


def evaluation_loader(dataset, batch_size, world, distributed, num_workers, pin_memory, accelerator):
    """Batches of all readable images, in order: shared among all processes, or all on rank 0 and none elsewhere."""
    share = range(world.rank, len(dataset), world.size) if distributed else range(len(dataset) * world.is_main)
    readable = ReadableDataset(Subset(dataset, share))
    return Batches(dataset, readable, None, batch_size, num_workers, pin_memory, accelerator)


def worker_options(num_workers):
    """DataLoader keywords for so many loader processes.

    On Linux they are forked: started anew, as Python 3.14 does unless told, each would take seconds for its imports,
    and hold lists of its own.
    """
    found = {'num_workers': num_workers, 'worker_init_fn': partial(set_up, os.getpid())}
    if num_workers and sys.platform.startswith('linux'):
        found['multiprocessing_context'] = 'fork'
    return found


def set_up(parent, worker):
    """A DataLoader's worker_init_fn: this process leaves signals to its training process `parent`, and ends with it.

    A batch system signals all processes of a job, and those that train still need batches for the step at hand; the
    training process itself means its SIGTERM.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if _TELLS_SENDER:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    sys.excepthook = lambda *error: None    # of the thread whose connection breaks off as the training process dies
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent):
    """End with the training process, or by its SIGTERM.

    DataLoader's own way to end takes seconds, in which the memory and the terminal are not free, and for ever where a
    file blocks or a process that was killed held a lock.
    """
    while os.getppid() == parent:
        told = signal.sigtimedwait([signal.SIGTERM], 1.) if _TELLS_SENDER else time.sleep(1.)
        if told and told.si_pid == parent:
            break
    os._exit(1)


def batches_of(loader):
    """A generator of a DataLoader's batches; its workers run when this returns.

    Raises:
        SystemFailure: a worker has died; by the generator, when its batch is asked for.
    """
    return _following(_iterator(loader), multiprocessing.active_children())


def _iterator(loader):
    """iter(loader) without the handler of SIGCHLD by which DataLoader tells of a dead worker at any moment."""
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        # Not by a name of its own: Python 3.7's getsignal leaves this frame in a cycle, and an iterator that a younger
        # loader process collects as garbage waits there for processes that are not its own.
        return iter(loader)
    finally:
        if handler not in (None, signal.getsignal(signal.SIGCHLD)):     # None: not set from Python
            signal.signal(signal.SIGCHLD, handler)


def _following(iterator, processes):
    try:
        yield from iterator
    except (RuntimeError, OSError, EOFError) as error:
        deadline = time.monotonic() + GRACE     # a batch can break off before the system knows of its worker's end
        while processes and not _CAUGHT.match(str(error)):
            dead = [process for process in processes if process.exitcode is not None]
            if dead:
                raise SystemFailure(_how(dead[0])) from error
            if time.monotonic() > deadline:
                break
            time.sleep(.02)
        raise


def _how(worker):
    number = -worker.exitcode
    end = 'was killed by ' + signal.Signals(number).name if number > 0 else 'ended with status {}'.format(-number)
    return 'a loader process (pid {}) {}; {}'.format(worker.pid, end,
                                                     _ADVICE.get(number, '--num_workers 0 may show why'))
