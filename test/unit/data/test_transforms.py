"""Augmentation and evaluation transforms."""
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from util.data.lazy_image import LazyImage
from util.data.transforms import MEAN, STD, Normalize, evaluation_transform, finetuning_transform, pretraining_transform
from util.models import timm_adapter

BICUBIC = transforms.InterpolationMode.BICUBIC if hasattr(transforms, 'InterpolationMode') else 3

pytestmark = pytest.mark.compat


def lazy(image):
    return LazyImage(np.array(image))


def image(width=80, height=60, colour=(10, 120, 250)):
    return Image.new('RGB', (width, height), colour)


@pytest.mark.parametrize('transform, in_chans', [(pretraining_transform, 1), (finetuning_transform, 1),
                                                 (finetuning_transform, 3), (evaluation_transform, 1)])
def test_output_size_and_channels(transform, in_chans):
    pixels = transform(32, in_chans=in_chans)(lazy(image()))
    assert pixels.shape == (32, 32, in_chans) and pixels.dtype == torch.uint8


def test_normalize_equals_torchvision():
    images = torch.randint(256, (2, 8, 8, 3), dtype=torch.uint8)
    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    expected = torch.stack([steps(pixels.numpy()) for pixels in images])
    assert Normalize()(images).is_contiguous() and (Normalize()(images) - expected).abs().max() < 1e-6


@pytest.mark.parametrize('width, height, size, resize', [
    (500, 375, 224, 256), (375, 500, 256, 256), (500, 375, [32, 48], (40, 54)), (120, 451, [160, 96], (409, 109))])
def test_evaluation_equals_torchvision_resize_and_center_crop(width, height, size, resize):
    noise = np.random.RandomState(0).randint(0, 256, (9, 12, 3)).astype(np.uint8)
    image = Image.fromarray(noise).resize((width, height), 3)
    steps = transforms.Compose([transforms.Resize(resize, interpolation=BICUBIC), transforms.CenterCrop(size)])
    expected = np.asarray(steps(image)).astype(int)
    differences = abs(evaluation_transform(size)(lazy(image)).numpy() - expected)
    assert differences.max() <= 2 and differences.mean() < .1


class RecordedCrops:
    """Image that records the crops: area fraction, aspect ratio and left edge."""
    width, height = 500, 375

    def __init__(self):
        self.areas, self.ratios, self.lefts = [], [], []

    def with_channels(self, count):
        return self

    def scale_denominator(self, height, width, size):
        return 1

    def resized_crop(self, top, left, height, width, size):
        assert 0 <= top <= self.height - height and 0 <= left <= self.width - width
        self.areas.append(height * width / (self.height * self.width))
        self.ratios.append(width / height)
        self.lefts.append(left / max(self.width - width, 1))
        return torch.zeros((*size, 3), dtype=torch.uint8)


@pytest.mark.parametrize('transform, least', [(pretraining_transform, .2), (finetuning_transform, .08)])
def test_crop_distribution_equals_torchvision(transform, least):
    """Quantiles of area, aspect ratio and position."""
    torch.manual_seed(0)
    random.seed(0)
    ours, theirs, crop = RecordedCrops(), RecordedCrops(), transform([8, 16]).transforms[0]
    frame = Image.new('1', (ours.width, ours.height))
    for _ in range(4000):
        crop(ours)
        theirs.resized_crop(*transforms.RandomResizedCrop.get_params(frame, (least, 1.), (3 / 4, 4 / 3)), size=(8, 8))
    for name in ('areas', 'ratios', 'lefts'):
        for quantile in (.05, .25, .5, .75, .95):
            assert np.quantile(getattr(ours, name), quantile) == pytest.approx(
                np.quantile(getattr(theirs, name), quantile), abs=.04), (name, quantile)
    assert min(ours.areas) == pytest.approx(least, rel=.05) and max(ours.areas) > .95


def test_crops_are_rounded_down_to_the_scale_denominator(monkeypatch):
    crops, crop = [], pretraining_transform(8).transforms[0]
    for n in (1, 4):
        image = RecordedCrops()
        monkeypatch.setattr(image, 'scale_denominator', lambda height, width, size, n=n: n)
        monkeypatch.setattr(image, 'resized_crop', lambda *box, size: crops.append(box))
        random.seed(1)
        crop(image)
    assert crops[1] == tuple(edge // 4 * 4 for edge in crops[0]) != crops[0]


def test_half_of_the_images_are_mirrored():
    random.seed(0)
    slope = lazy(Image.linear_gradient('L').rotate(90).convert('RGB'))
    transform = pretraining_transform(8)
    left = [bool(pixels[0, 0, 0] > pixels[0, -1, 0]) for pixels in (transform(slope) for _ in range(400))]
    assert 150 < sum(left) < 250


def test_posterize_to_0_bits_is_black_with_every_pillow():
    original = image(8, 8)
    ops = timm_adapter.color_augmentation('rand-m9-inc1', input_size=32)[0].ops
    operation = next(op.aug_fn for op in ops if op.aug_fn.__name__ == 'posterize')
    assert operation is timm_adapter.posterize
    assert operation(original, 0).getextrema() == ((0, 0),) * 3
    assert operation(original, 1).getextrema() == ((0, 0), (0, 0), (128, 128))
    assert operation(original, 8).getextrema() == original.getextrema()
