"""Batches: which process sees which image, in which order, with which random augmentation."""
import itertools
import os
import random
import warnings

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import default_collate

from util import workers
from util.errors import UserError
from util.features import supported
from util.images import UnreadableImage
from util.log import logger

MAX_DEFAULT_WORKERS = 10
MOST_SUBSTITUTES = 99       # that may be unreadable too, before something other than the files must be broken
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


class ShareSampler(Sampler):
    """Given indices in their order; PyTorch 1.5 takes no range for a sampler."""

    def __init__(self, indices):
        self.indices = indices

    def __len__(self):
        return len(self.indices)

    def __iter__(self):
        return iter(self.indices)


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

    Set `bad_images` to a util.bad_images.BadImages to have them counted and listed, not just logged. `unreadable` is
    how many the last pass has met in this process, `workers` how many loader processes it has. Batches that would be
    empty are left out.
    """

    def __init__(self, loader, dataset):
        self.loader, self.dataset, self.sampler, self.workers = loader, dataset, loader.sampler, loader.num_workers
        self.bad_images, self.unreadable, self._left_out = None, 0, set()

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        """Raises util.errors.Fault where a loader process has died."""
        self.unreadable, self._left_out = 0, set()
        return self._batches(workers.start(self.loader))

    def _batches(self, iterator):
        for batch, found in iter(lambda: workers.following(iterator), None):
            found = [tuple(pair) for pair in found]     # memory pinning makes lists of them
            self.unreadable += len(found)
            self._left_out.update(path for path, _ in found)
            if self.bad_images is not None:
                self.bad_images.met(found)
            else:
                for pair in found:
                    logger.warning('%s: cannot be read (%s)', *pair)
            if batch is not None:
                yield batch

    def given(self):
        """Indices of the images that the last pass of an evaluation gave, in their order."""
        indices = list(self.sampler)
        return [i for i in indices if self.dataset.name_of(i) not in self._left_out] if self._left_out else indices


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
        raise UserError('--batch_size {}: the training set has {} images for {} process{}; at most {} fit'
                        .format(batch_size, len(dataset), world.size, '' if world.size == 1 else 'es', len(sampler)))
    return _batches(dataset, SeededDataset, sampler, batch_size, num_workers, pin_memory, accelerator)


def evaluation_loader(dataset, batch_size, world, distributed, num_workers, pin_memory, accelerator):
    """All readable images once, in order: shared among all processes, or all on rank 0 and none elsewhere; as Batches.
    """
    share = range(world.rank, len(dataset), world.size) if distributed else range(len(dataset) * world.is_main)
    return _batches(dataset, ReadableDataset, ShareSampler(share), batch_size, num_workers, pin_memory, accelerator)


def _batches(dataset, lookup, sampler, batch_size, num_workers, pin_memory, accelerator):
    # A generator of its own: else an iterator that is made anew, as after a resume, draws from the masks' generator.
    options = supported(DataLoader, generator=torch.Generator())
    if pin_memory and accelerator.is_accelerator:
        options.update(pin_memory=True, **supported(DataLoader, **accelerator.loader_options))
    if num_workers:
        options.update(supported(DataLoader, persistent_workers=True))
    return Batches(DataLoader(lookup(dataset), batch_size=batch_size, sampler=sampler, collate_fn=collate,
                              drop_last=lookup is SeededDataset, **workers.options(num_workers), **options), dataset)


def default_workers(local_processes=1, most=MAX_DEFAULT_WORKERS):
    """The cores this process may use, shared among the training processes of the node; 1 to `most`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return max(1, min(most, cores // local_processes))
