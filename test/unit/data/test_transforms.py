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


def picture_of(image):
    return LazyImage(np.array(image))


def image(width=80, height=60, colour=(10, 120, 250)):
    return Image.new('RGB', (width, height), colour)


@pytest.mark.parametrize('transform, in_chans', [(pretraining_transform, 1), (finetuning_transform, 1),
                                                 (finetuning_transform, 3), (evaluation_transform, 1)])
def test_the_result_has_the_asked_size_and_channels(transform, in_chans):
    pixels = transform(32, in_chans=in_chans)(picture_of(image()))
    assert pixels.shape == (32, 32, in_chans) and pixels.dtype == torch.uint8


def test_normalising_a_batch_gives_what_torchvision_gives_each_image():
    images = torch.randint(256, (2, 8, 8, 3), dtype=torch.uint8)
    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    expected = torch.stack([steps(pixels.numpy()) for pixels in images])
    assert Normalize()(images).is_contiguous() and (Normalize()(images) - expected).abs().max() < 1e-6


@pytest.mark.parametrize('width, height, size, covering', [
    (500, 375, 224, 256), (375, 500, 256, 256), (500, 375, [32, 48], (40, 54)), (120, 451, [160, 96], (409, 109))])
def test_evaluation_shows_what_torchvisions_resize_and_centre_crop_show(width, height, size, covering):
    noise = np.random.RandomState(0).randint(0, 256, (9, 12, 3)).astype(np.uint8)
    image = Image.fromarray(noise).resize((width, height), 3)
    steps = transforms.Compose([transforms.Resize(covering, interpolation=BICUBIC), transforms.CenterCrop(size)])
    expected = np.asarray(steps(image)).astype(int)
    differences = abs(evaluation_transform(size)(picture_of(image)).numpy() - expected)
    assert differences.max() <= 2 and differences.mean() < .1


class Boxes:
    """A picture that notes which parts of it are asked for, as shares of its area, and their width to height."""
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
def test_crops_are_distributed_as_those_of_a_random_resized_crop(transform, least):
    """Area and log ratio uniform, as far as the image leaves room; compared with torchvision's by quantiles."""
    torch.manual_seed(0)
    random.seed(0)
    ours, theirs, crop = Boxes(), Boxes(), transform([8, 16]).transforms[0]
    frame = Image.new('1', (ours.width, ours.height))
    for _ in range(4000):
        crop(ours)
        theirs.resized_crop(*transforms.RandomResizedCrop.get_params(frame, (least, 1.), (3 / 4, 4 / 3)), size=(8, 8))
    for name in ('areas', 'ratios', 'lefts'):
        for quantile in (.05, .25, .5, .75, .95):
            assert np.quantile(getattr(ours, name), quantile) == pytest.approx(
                np.quantile(getattr(theirs, name), quantile), abs=.04), (name, quantile)
    assert min(ours.areas) == pytest.approx(least, rel=.05) and max(ours.areas) > .95


def test_crops_of_a_picture_with_a_step_are_the_same_rounded_down_to_it(monkeypatch):
    parts, crop = [], pretraining_transform(8).transforms[0]
    for step in (1, 4):
        picture = Boxes()
        monkeypatch.setattr(picture, 'scale_denominator', lambda height, width, size, step=step: step)
        monkeypatch.setattr(picture, 'resized_crop', lambda *part, size: parts.append(part))
        random.seed(1)
        crop(picture)
    assert parts[1] == tuple(edge // 4 * 4 for edge in parts[0]) != parts[0]


def test_half_of_the_pictures_are_mirrored():
    random.seed(0)
    slope = picture_of(Image.linear_gradient('L').rotate(90).convert('RGB'))
    transform = pretraining_transform(8)
    left = [bool(pixels[0, 0, 0] > pixels[0, -1, 0]) for pixels in (transform(slope) for _ in range(400))]
    assert 150 < sum(left) < 250


def test_posterizing_to_no_bits_at_all_is_black_on_every_pillow():
    picture = image(8, 8)
    ops = timm_adapter.color_augmentation('rand-m9-inc1', input_size=32)[0].ops
    operation = next(op.aug_fn for op in ops if op.aug_fn.__name__ == 'posterize')
    assert operation is timm_adapter.posterize
    assert operation(picture, 0).getextrema() == ((0, 0),) * 3
    assert operation(picture, 1).getextrema() == ((0, 0), (0, 0), (128, 128))
    assert operation(picture, 8).getextrema() == picture.getextrema()
