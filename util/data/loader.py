"""Data loading: samplers, per-sample random seeds, substitutes for unreadable images, and loader worker processes."""
import itertools
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import warnings
from functools import partial
from multiprocessing import connection
from typing import Any, Iterator, List, Optional, Tuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, get_worker_info
from torch.utils.data.dataloader import default_collate

from util.compat import supported
from util.data.image_files import Failures, UnreadableImage
from util.devices.accelerator import Cpu
from util.distributed.world import World
from util.errors import SystemFailure, UserError, raise_if_exhausted
from util.log import logger

MAX_SUBSTITUTES = 99        # if these are unreadable too, the cause is not single files
GRACE = 2.                  # seconds
_RAISED_IN_WORKER = re.compile(r'Caught \w+ in DataLoader worker process')      # which is still alive
_HINTS = {signal.SIGKILL: 'most often memory ran out: lower --num_workers',
          signal.SIGBUS: 'most often shared memory ran out: enlarge /dev/shm or lower --num_workers'}
# Older releases need to be given the accelerator to pin memory for; newer ones detect it and warn.
warnings.filterwarnings('ignore', 'pin_memory_device is deprecated')


class TrainingSampler(Sampler):
    """Distributed shuffling sampler that yields (index, seed) pairs and can start within an epoch.

    Process r of W gets positions r, r + W, ... of one permutation that depends on (seed, epoch) alone, so that W
    processes with batch size B see the same images per step as one with W x B. The remainder is dropped, a different
    one in each epoch. The seed of a sample depends on (seed, epoch, index): its augmentation is the same for any number
    of loader workers, and after a resume.
    """

    def __init__(self, length: int, seed: int, rank: int = 0, world_size: int = 1):
        self.length, self.seed, self.rank, self.world_size = length, seed, rank, world_size
        self.epoch = 0
        self.start = 0          # images of the epoch that all processes together have already seen

    def __len__(self):
        return max(self.length - self.start, 0) // self.world_size

    def __iter__(self):
        return iter(self.samples(self.rank, self.epoch, self.start))

    def samples(self, rank: int, epoch: int, start: int = 0) -> List[Tuple[int, int]]:
        """(index, seed) pairs of a process in an epoch, from its image `start` on."""
        generator = torch.Generator()
        generator.manual_seed((self.seed * 1000003 + epoch) % 2 ** 63)
        order = torch.randperm(self.length, generator=generator)
        seeds = torch.randint(2 ** 31, (self.length,), generator=generator)
        shard = order[start:][rank::self.world_size][:max(self.length - start, 0) // self.world_size]
        return list(zip(shard.tolist(), seeds[shard].tolist()))


class SkipUnreadableDataset(Dataset):
    """Wrapper that looks up (sample, []), or (None, [(path, reason)]) for an unreadable file."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index: int) -> Tuple[Any, Failures]:
        try:
            return self.dataset[index], []
        except UnreadableImage as error:
            return None, [(error.path, error.reason)]


class SeededDataset(SkipUnreadableDataset):
    """Wrapper that looks up samples by (index, seed), after seeding the random generators.

    An unreadable file is replaced by another sample, which depends on (index, seed) alone, and is among the failures.
    """

    def __getitem__(self, key: Tuple[int, int]) -> Tuple[Any, Failures]:
        index, seed = key
        seed_generators(seed)
        failures = []
        for candidate in itertools.chain([index], self._substitutes(index, seed)):
            sample, failed = super().__getitem__(candidate)
            failures += failed
            if sample is not None:
                return sample, failures
        raise UserError('--data_path: {} images in a row cannot be read, the last {} ({}); is the disk mounted?'
                        .format(len(failures), *failures[-1]))

    def _substitutes(self, index, seed):
        """Up to MAX_SUBSTITUTES other indices in random order, drawn lazily."""
        others = len(self.dataset) - 1
        drawn = random.Random(seed << 40 | index).sample(range(others), min(others, MAX_SUBSTITUTES))
        yield from (other + (other >= index) for other in drawn)


def collate(items: List[Tuple[Any, Failures]]) -> Tuple[Any, Failures]:
    """(batch of the readable samples, or None; all failures)."""
    samples = [sample for sample, _ in items if sample is not None]
    if len({getattr(sample[0], 'dtype', None) for sample in samples}) > 1:         # uint8 and float arrays
        samples = [(pixels.float(), *others) for pixels, *others in samples]
    batch = default_collate(samples) if samples else None
    if get_worker_info() is not None:       # else the queue's thread moves it, where a lack of shared memory hangs
        for tensor in batch if isinstance(batch, (list, tuple)) else [batch]:
            if isinstance(tensor, torch.Tensor):
                tensor.share_memory_()
    return batch, [pair for _, failures in items for pair in failures]


class Batches:
    """DataLoader that skips empty batches and reports unreadable files.

    If `unreadable_images` (see UnreadableTracker) is set, its `add` gets them; otherwise they are logged. `failures`:
    those of the last pass in this process; `workers`: number of loader workers.
    """

    def __init__(self, dataset: Dataset, wrapped: Dataset, sampler: Optional[Sampler], batch_size: int,
                 num_workers: int, pin_memory: bool, accelerator: Cpu):
        # Without its own generator, each new iterator (e.g. after a resume) draws from the one of the random masks.
        options = supported(DataLoader, generator=torch.Generator())
        if pin_memory and accelerator.is_accelerator:
            options.update(pin_memory=True, **supported(DataLoader, **accelerator.loader_options))
        if num_workers:
            # Spawned ones, the default of Python 3.14, take seconds to import their modules, and copy the dataset.
            options.update(worker_init_fn=partial(init_worker, os.getpid()), multiprocessing_context='fork',
                           **supported(DataLoader, persistent_workers=True))
        self.loader = DataLoader(wrapped, batch_size=batch_size, sampler=sampler, collate_fn=collate,
                                 drop_last=sampler is not None, num_workers=num_workers, **options)
        self.dataset, self.sampler, self.workers = dataset, sampler, num_workers
        self.unreadable_images, self.failures = None, []

    def __len__(self):
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """Raises SystemFailure if a loader worker has died."""
        self.failures.clear()
        return self._readable(iterate_loader(self.loader))

    def _readable(self, batches):
        for batch, failures in batches:
            failures = [tuple(pair) for pair in failures]       # memory pinning converts tuples to lists
            self.failures += failures
            if self.unreadable_images is not None:
                self.unreadable_images.add(failures)
            else:
                for pair in failures:
                    logger.warning('%s: cannot be read (%s)', *pair)
            if batch is not None:
                yield batch

    def evaluated_indices(self) -> List[int]:
        """Dataset indices of the images in the last evaluation pass, in order."""
        indices, skipped = self.loader.dataset.dataset.indices, {path for path, _ in self.failures}
        return [i for i in indices if not skipped or self.dataset.name_of(i) not in skipped]


def seed_generators(seed: int) -> None:
    """Seed the CPU random generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.random.default_generator.manual_seed(seed)


def training_loader(dataset: Dataset, batch_size: int, world: World, seed: int, num_workers: int, pin_memory: bool,
                    accelerator: Cpu) -> Batches:
    """Loader of full batches in shuffled order, with substitutes for unreadable images.

    Set loader.sampler.epoch before each epoch. UserError if one step of all processes needs more images than there are.
    """
    sampler = TrainingSampler(len(dataset), seed, world.rank, world.size)
    if len(sampler) < batch_size:
        raise UserError('--batch_size {}: a process gets at most {} of the {} images of the training set'.format(
            batch_size, len(sampler), len(dataset)))
    return Batches(dataset, SeededDataset(dataset), sampler, batch_size, num_workers, pin_memory, accelerator)


def evaluation_loader(dataset: Dataset, batch_size: int, world: World, distributed: bool, num_workers: int,
                      pin_memory: bool, accelerator: Cpu) -> Batches:
    """Loader of all readable images in order: split among all processes if `distributed`, else all on rank 0."""
    indices = range(world.rank, len(dataset), world.size) if distributed else range(len(dataset) * world.is_main)
    wrapped = SkipUnreadableDataset(Subset(dataset, indices))
    return Batches(dataset, wrapped, None, batch_size, num_workers, pin_memory, accelerator)


def init_worker(parent: int, worker: int) -> None:
    """worker_init_fn: leave signals to the training process (pid `parent`), and exit with it.

    A batch system signals all processes of a job, and the training process still needs batches to finish its step. A
    SIGTERM from the training process itself ends the worker.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.excepthook = lambda *error: None    # of the queue's thread, whose connection breaks when the parent dies
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def _exit_with_parent(parent):
    """Exit once the training process has ended, or when it sends SIGTERM.

    DataLoader's own shutdown takes seconds, during which memory and terminal stay in use, and hangs if a read blocks or
    a killed process held a lock.
    """
    while os.getppid() == parent:
        received = signal.sigtimedwait([signal.SIGTERM], 1.)
        if received and received.si_pid == parent:
            break
    os._exit(1)


def iterate_loader(loader: DataLoader) -> Iterator[Any]:
    """Batches of a DataLoader, whose workers have started on return.

    Raises SystemFailure if shared memory or the like runs out, or when the batch of a dead worker is requested.
    """
    try:
        # What its queues need: a DataLoader that lacks it prints a traceback when it is deleted half made.
        if loader.num_workers:
            context = loader.multiprocessing_context or multiprocessing
            queues = [context.SimpleQueue() for _ in range(2 * (loader.num_workers + 1))]
            del queues
        return _with_worker_failures(_iterator(loader), multiprocessing.active_children())
    except OSError as error:            # also of starting a process
        raise_if_exhausted(error)
        raise


def _iterator(loader):
    """iter(loader) without its SIGCHLD handler, which would raise at an arbitrary moment after a worker dies."""
    handler = signal.getsignal(signal.SIGCHLD)
    # Inherited by the workers: PyTorch may start threads in them before init_worker, and one of these could take it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        # Not bound to a name: Python 3.7's getsignal leaves this frame in a reference cycle, and an iterator that is
        # garbage-collected in a later loader worker waits there for processes that are not its children.
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if handler not in (None, signal.getsignal(signal.SIGCHLD)):     # None: not set from Python
            signal.signal(signal.SIGCHLD, handler)


def _with_worker_failures(iterator, workers):
    try:
        yield from iterator
    except (RuntimeError, OSError, EOFError, SystemFailure) as error:
        raise_if_exhausted(error)
        if workers and not _RAISED_IN_WORKER.match(str(error)):
            ended = connection.wait([worker.sentinel for worker in workers], GRACE)     # the error may precede its end
            for worker in workers:
                if worker.sentinel in ended:
                    worker.join()
                    raise SystemFailure(_describe_exit(worker)) from error
        raise


def _describe_exit(worker):
    number = -worker.exitcode
    cause = 'was killed by ' + signal.Signals(number).name if number > 0 else 'exited with status {}'.format(-number)
    return 'loader worker (pid {}) {}; {}'.format(worker.pid, cause,
                                                  _HINTS.get(number, 'try --num_workers 0 to see the cause'))
