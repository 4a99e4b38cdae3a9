"""Batches: which process sees which image, in which order, with which random augmentation."""
import os
import random
import warnings

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from util.errors import UserError
from util.features import supported

MAX_DEFAULT_WORKERS = 10
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


class EvaluationSampler(Sampler):
    """One process's share of a set, in order: every image in exactly one share, none twice."""

    def __init__(self, length, rank=0, world_size=1):
        self.indices = range(rank, length, world_size)

    def __len__(self):
        return len(self.indices)

    def __iter__(self):
        return iter(self.indices)


class SeededDataset(Dataset):
    """Looks a sample up by (index, seed), with the random generators seeded for it and put back afterwards."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def name_of(self, index):
        """What the dataset calls a sample."""
        return self.dataset.name_of(index)

    def __getitem__(self, key):
        index, seed = key
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()
        seed_generators(seed)
        sample = self.dataset[index]
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
        return sample


def seed_generators(seed):
    """Seed the host's generators: Python's, numpy's and torch's."""
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.random.default_generator.manual_seed(seed)


def training_loader(dataset, batch_size, world, seed, num_workers, pin_memory, accelerator):
    """Full batches in shuffled order; set the epoch by loader.sampler.epoch.

    Raises:
        UserError: there are fewer images than one step of all processes takes.
    """
    sampler = TrainingSampler(len(dataset), seed, world.rank, world.size)
    if len(sampler) < batch_size:
        raise UserError('--batch_size {}: the training set has {} images for {} process{}; at most {} fit'
                        .format(batch_size, len(dataset), world.size, '' if world.size == 1 else 'es', len(sampler)))
    return _loader(SeededDataset(dataset), sampler, batch_size, num_workers, pin_memory, accelerator, drop_last=True)


def evaluation_loader(dataset, batch_size, world, distributed, num_workers, pin_memory, accelerator):
    """All images once: shared among all processes, or all on rank 0 and none elsewhere."""
    if distributed:
        sampler = EvaluationSampler(len(dataset), world.rank, world.size)
    else:
        sampler = EvaluationSampler(len(dataset) if world.is_main else 0)
    return _loader(dataset, sampler, batch_size, num_workers, pin_memory, accelerator, drop_last=False)


def _loader(dataset, sampler, batch_size, num_workers, pin_memory, accelerator, drop_last):
    # A generator of its own: else an iterator that is made anew, as after a resume, draws from the masks' generator.
    options = supported(DataLoader, generator=torch.Generator())
    if pin_memory and accelerator.is_accelerator:
        options.update(pin_memory=True, **supported(DataLoader, **accelerator.loader_options()))
    if num_workers:
        options.update(supported(DataLoader, persistent_workers=True))
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler, num_workers=num_workers, drop_last=drop_last,
                      **options)


def default_workers(local_processes=1, most=MAX_DEFAULT_WORKERS):
    """The cores this process may use, shared among the training processes of the node; 1 to `most`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return max(1, min(most, cores // local_processes))
