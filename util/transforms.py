"""From a picture to bytes in the model's size, in the loader; from bytes to what the model takes, on the device.

Augmentation for pre-training and fine-tuning, resizing for evaluation. A transform takes a util.pictures.Picture and
gives a (H, W, C) uint8 tensor; batches of these are a quarter of what floats would be, and Normalize ends the way.
"""
import math
import random

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from util.errors import UserError
from util.timm_compat import RandomErasing, create_transform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)        # of ImageNet, RGB
RATIO = (3 / 4, 4 / 3)      # width to height of a random crop
LOG_RATIO = tuple(math.log(ratio) for ratio in RATIO)
TRIES = 10                  # to draw a crop that lies within the picture
EVAL_CROP = .875            # share of the short side that evaluation keeps, up to 224 pixels


def statistics(in_chans):
    """(mean, std) of each input channel; a grey image takes the average of the three."""
    return (MEAN, STD) if in_chans == 3 else ((sum(MEAN) / 3,), (sum(STD) / 3,))


def pretraining_transform(input_size, in_chans=3, crop_min=.2):
    """Random resized crop, of `crop_min` of the area or more, and flip (arXiv:2111.06377, appendix A.1)."""
    return transforms.Compose([RandomResizedCrop(input_size, (crop_min, 1.)), flip_at_random, *_grey(in_chans)])


def finetuning_transform(input_size, in_chans=3, color_jitter=None, aa='rand-m9-mstd0.5-inc1', crop_min=.08):
    """Random resized crop, flip, and timm's RandAugment (or the policy `aa`).

    Args:
        crop_min: share of the area that a crop takes at least.
    Raises:
        UserError: timm cannot read the policy `aa`.
    """
    try:
        colour = create_transform(input_size, is_training=True, color_jitter=color_jitter, separate=True,
                                  auto_augment=None if aa == 'none' else aa, interpolation='bicubic',
                                  mean=MEAN, std=STD)[1]
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError('--aa {}: timm does not know this policy ({}); e.g. rand-m9-mstd0.5-inc1, or none'
                        .format(aa, error)) from error
    on_pil = [to_pil, *colour.transforms, to_bytes] if colour.transforms else []
    return transforms.Compose([RandomResizedCrop(input_size, (crop_min, 1.)), flip_at_random, *on_pil,
                               *_grey(in_chans)])


def evaluation_transform(input_size, in_chans=3):
    """Bicubic resize so that the centre crop keeps 0.875 of the short side (all of it above 224 pixels)."""
    side = int(input_size / EVAL_CROP) if input_size <= 224 else input_size
    return transforms.Compose([CentreCrop(side, input_size), *_grey(in_chans)])


class RandomResizedCrop:
    """torchvision's random resized crop to a square of `side` pixels.

    The draws are torchvision's; in a part that can be had at 1 / n of its size they are rounded down to multiples of n,
    which is less than half a pixel of the result.
    """

    def __init__(self, side, scale):
        self.size, self.scale = (side, side), scale

    def __call__(self, picture):
        part = self._part(picture.height, picture.width)
        step = picture.step(*part[2:], size=self.size)
        return picture.part(*(edge // step * step for edge in part), size=self.size)

    def _part(self, height, width):
        """(top, left, height, width); by Python's generator, in a fourth of the time that torch's takes."""
        for _ in range(TRIES):
            area = height * width * random.uniform(*self.scale)
            ratio = math.exp(random.uniform(*LOG_RATIO))
            size = int(round(math.sqrt(area / ratio))), int(round(math.sqrt(area * ratio)))
            if 0 < size[0] <= height and 0 < size[1] <= width:
                return (random.randint(0, height - size[0]), random.randint(0, width - size[1]), *size)
        # The middle of it, as much as RATIO allows.
        size = min(height, int(round(width / RATIO[0]))), min(width, int(round(height * RATIO[1])))
        return ((height - size[0]) // 2, (width - size[1]) // 2, *size)


class CentreCrop:
    """The middle `side` x `side` pixels of a picture whose short side is resized to `short`."""

    def __init__(self, short, side):
        self.short, self.side = short, side

    def __call__(self, picture):
        height, width = (int(self.short * length / min(picture.height, picture.width))
                         for length in (picture.height, picture.width))
        pixels = picture.part(0, 0, picture.height, picture.width, (height, width))
        top, left = (int(round((length - self.side) / 2)) for length in (height, width))
        return pixels[top:top + self.side, left:left + self.side]


def flip_at_random(pixels):
    """Mirror half of the pictures: (H, W, C)."""
    return pixels.flip(1) if random.random() < .5 else pixels


def to_pil(pixels):
    """(H, W, 3) uint8 tensor -> PIL image."""
    return Image.fromarray(pixels.numpy())


def to_bytes(image):
    """PIL image -> (H, W, C) uint8 tensor."""
    pixels = torch.from_numpy(np.array(image))
    return pixels if pixels.dim() == 3 else pixels[..., None]


def _grey(in_chans):
    # Augmentations are defined on colour images, so a grey input is made at the end.
    return [to_grey] if in_chans == 1 else []


def to_grey(pixels):
    """(H, W, 3) uint8 tensor -> (H, W, 1): luma."""
    return to_bytes(to_pil(pixels).convert('L'))


class Normalize:
    """(N, H, W, C) uint8 -> (N, C, H, W) float32 less ImageNet's mean, by its deviation; on the images' device."""

    def __init__(self, in_chans=3):
        mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in statistics(in_chans))
        self._scale, self._shift = (1 / (255 * std)).float(), (mean / std).float()

    def __call__(self, images):
        if self._scale.device != images.device:
            self._scale, self._shift = self._scale.to(images.device), self._shift.to(images.device)
        count, height, width, channels = images.shape
        normalised = torch.empty(count, channels, height, width, device=images.device)
        return normalised.copy_(images.permute(0, 3, 1, 2)).mul_(self._scale).sub_(self._shift)


def random_erasing(device, prob, mode='pixel', count=1, resplit=False):
    """timm's random erasing of normalised images (N, C, H, W), in place (arXiv:1708.04896).

    Args:
        prob: of an image to be erased in part; mode: 'const', 'rand' or 'pixel'; count: parts at most.
        resplit: leave the first half of the batch as it is.
    """
    return RandomErasing(prob, mode=mode, max_count=count, num_splits=2 if resplit else 0, device=device)
