"""Mixup, CutMix and random erasing: timm's results, by the same operators with the same shapes in every step."""
import random
from functools import partial

import numpy as np
import pytest
import torch
from timm.data import mixup, random_erasing
from torch.autograd.profiler import profile

from util.compat import accepts
from util.data.batch_augmentation import Mixup, RandomErasing

pytestmark = pytest.mark.compat


@pytest.mark.parametrize('mode', ['batch', 'pair', 'elem'])
@pytest.mark.parametrize('options', [{'mixup_alpha': .8, 'cutmix_alpha': 1., 'switch_prob': .4}, {'mixup_alpha': .8},
                                     {'cutmix_alpha': .7}, {'cutmix_minmax': (.2, .6)}])
def test_mixup_and_cutmix_equal_those_of_timm(monkeypatch, mode, options):
    target, results = mixup.mixup_target, []
    if accepts(target, 'device'):           # timm for PyTorch 1.x makes them on a GPU by default
        monkeypatch.setattr(mixup, 'mixup_target', partial(target, device='cpu'))
    options = {'mixup_alpha': 0., 'cutmix_alpha': 0., 'prob': .7, 'mode': mode, 'num_classes': 5, **options}
    for kind in (mixup.Mixup, Mixup):
        torch.manual_seed(0)
        np.random.seed(0)
        mix = kind(**options)
        results.append([mix(torch.randn(6, 3, 16, 24), torch.randint(5, (6,))) for _ in range(10)])
    assert all(torch.equal(*pair) for one, other in zip(*results) for pair in zip(one, other))


def erased(kind, images, seed, **options):
    """A copy of the images, erased."""
    random.seed(seed)
    torch.manual_seed(seed)
    return kind(**options)(images.clone())


@pytest.mark.parametrize('options', [{'probability': .25}, {'probability': 1., 'max_count': 3},
                                     {'probability': .5, 'num_splits': 2}])
@pytest.mark.parametrize('mode', ['const', 'rand', 'pixel'])
def test_the_boxes_of_random_erasing_are_those_of_timm(mode, options):
    """Also in images that some boxes do not fit into; the fill is other noise."""
    images = torch.full((300, 2, 4, 40), 7.)
    theirs = erased(partial(random_erasing.RandomErasing, device='cpu'), images, 0, mode=mode, **options)
    ours = erased(RandomErasing, images, 0, mode=mode, **options)
    assert torch.equal(ours == 7, theirs == 7) and (ours != 7).any() and (mode != 'const' or torch.equal(ours, theirs))


@pytest.mark.parametrize('mode', ['rand', 'pixel'])
def test_the_fill_of_random_erasing_is_distributed_as_that_of_timm(mode):
    """Normal; 'rand' has another colour in each box and channel, 'pixel' in each pixel."""
    counts, shares = [], []
    for kind in (RandomErasing, partial(random_erasing.RandomErasing, device='cpu')):
        images = erased(kind, torch.full((600, 3, 16, 16), 7.), 1, probability=1., mode=mode, max_count=3)
        fill = torch.cat([image[channel][image[channel] != 7].unique() for image in images for channel in range(3)])
        counts += [len(fill), len(fill.unique())]
        shares.append((fill < torch.linspace(-3, 3, 61)[:, None]).float().mean(dim=1))
    assert counts == pytest.approx([counts[0]] * 4, rel=.01) and (shares[0] - shares[1]).abs().max() < .04


ARANGE = 'aten::arange'


def operators(augment, count):
    """(operator, shapes of its inputs) of a step with `count` images, sorted."""
    images, labels = torch.randn(count, 3, 32, 48), torch.arange(count) % 5
    with profile(record_shapes=True) as steps:
        augment(images, labels)
    # PyTorch 2.1's profiler now and then loses one of two nested events of arange.
    return sorted((event.name, str(event.input_shapes)) for event in steps.function_events if event.name != ARANGE)


@pytest.mark.parametrize('mode', ['batch', 'pair', 'elem'])
@pytest.mark.parametrize('erasing', [{}, {'mode': 'rand', 'max_count': 2}])
def test_every_step_has_the_same_operators_with_the_same_shapes(mode, erasing):
    mix, erase = Mixup(.8, 1., prob=.7, mode=mode, num_classes=5), RandomErasing(.25, **erasing)
    steps = [operators(lambda images, labels: mix(erase(images), labels), count) for count in [16] * 12 + [128]]
    assert all(step == steps[0] for step in steps[:12])
    assert [name for name, _ in steps[12]] == [name for name, _ in steps[0]]
    assert not operators(lambda images, labels: RandomErasing(0., **erasing)(images), 16)
