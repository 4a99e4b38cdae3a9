"""Which process sees which image, with which augmentation."""
import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from util.device import Cpu
from util.distributed import World
from util.errors import UserError
from util.loader import EvaluationSampler, SeededDataset, TrainingSampler, default_workers, training_loader


class Noise(Dataset):
    """Each sample is its index beside numbers from all three generators."""

    def __init__(self, length=12):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()])


def batches(num_workers, epoch=0, seed=0, size=1, rank=0, batch_size=4):
    loader = training_loader(Noise(), batch_size, World(rank, size), seed, num_workers, True, Cpu())
    loader.sampler.epoch = epoch
    return torch.stack(list(loader))


def test_augmentation_is_the_same_for_any_number_of_loader_processes():
    assert torch.equal(batches(0), batches(2))


def test_each_epoch_has_its_own_order_and_augmentation():
    first, second = batches(0, epoch=0), batches(0, epoch=1)
    assert not torch.equal(first[..., 0], second[..., 0])
    assert set(first[..., 1].flatten().tolist()).isdisjoint(second[..., 1].flatten().tolist())


def test_the_same_epoch_again_gives_the_same_batches_whatever_came_between():
    torch.manual_seed(1)
    first = batches(0, epoch=3)
    torch.manual_seed(2)
    assert torch.equal(first, batches(0, epoch=3))


def test_seeds_give_different_orders():
    assert not torch.equal(batches(0, seed=0), batches(0, seed=1))


def test_looking_up_a_sample_leaves_the_generators_as_they_were():
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(())
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    SeededDataset(Noise())[3, 99]
    assert (random.random(), np.random.rand(), torch.rand(())) == expected


def test_two_processes_see_per_step_what_one_sees_with_twice_the_batch():
    one = batches(0, batch_size=4)
    two = [batches(0, size=2, rank=rank, batch_size=2) for rank in (0, 1)]
    for step in range(3):
        together = torch.cat([share[step] for share in two])
        assert sorted(together.tolist()) == sorted(one[step].tolist())


def test_training_shares_are_equal_and_disjoint_when_the_world_does_not_divide():
    shares = [[index for index, _ in TrainingSampler(11, 0, rank, 3)] for rank in range(3)]
    assert [len(share) for share in shares] == [3, 3, 3]
    assert len(set(sum(shares, []))) == 9


@pytest.mark.parametrize('length, size', [(10, 4), (3, 8), (16, 2), (1, 1)])
def test_evaluation_shares_hold_every_image_exactly_once(length, size):
    shares = [list(EvaluationSampler(length, rank, size)) for rank in range(size)]
    assert sorted(sum(shares, [])) == list(range(length))
    assert [len(EvaluationSampler(length, rank, size)) for rank in range(size)] == [len(share) for share in shares]


def test_a_batch_larger_than_the_data_is_refused_by_name():
    with pytest.raises(UserError, match=r'--batch_size 16: the training set has 12 images for 1 process; at most 12'):
        training_loader(Noise(), 16, World(), 0, 0, True, Cpu())


def test_default_workers_share_the_cores_and_are_at_least_one():
    assert default_workers(10 ** 6) == 1
    assert 1 <= default_workers(1) <= 10
