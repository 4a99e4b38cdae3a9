"""From a picture to bytes in the model's size, in the loader; from bytes to what the model takes, on the device.

A transform takes a LazyImage and gives a (H, W, C) uint8 tensor; batches of these are a quarter of what
floats would be, and Normalize ends the way. Only arrays of more than 8 bits (ArrayImage) become floats
earlier. Sizes are those of util.config.input_flags: the side of a square, or height and width.
"""
import math
import random

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from util.config.input_flags import COLOURED, RECIPE_AA, sides
from util.config.normalization import MEAN, STD, statistics
from util.errors import UserError
from util.models.timm_adapter import color_augmentation

RATIO = (3 / 4, 4 / 3)      # width to height of a random crop
LOG_RATIO = tuple(math.log(ratio) for ratio in RATIO)
TRIES = 10                  # to draw a crop that lies within the picture
FAINT, SHOWN = .1, 2.5      # deviation, of 0..1, below which images are shown with more contrast; and how many of it
EVAL_CROP = .875            # share of the short side that evaluation keeps, up to 224 pixels


def pretraining_transform(input_size, in_chans=3, crop_min=.2):
    """Random resized crop, of `crop_min` of the area or more, and flip (arXiv:2111.06377, appendix A.1)."""
    return _composed(in_chans, RandomResizedCrop(input_size, (crop_min, 1.), in_chans), flip_at_random)


def finetuning_transform(input_size, in_chans=3, color_jitter=None, aa=RECIPE_AA, crop_min=.08):
    """Random resized crop, flip, and, of 1 or 3 channels, timm's RandAugment (or the policy `aa`).

    Args:
        crop_min: share of the area that a crop takes at least.
    Raises:
        UserError: timm cannot read the policy `aa`.
    """
    steps = []
    try:
        if in_chans in COLOURED:
            steps = color_augmentation(None if aa == 'none' else aa, color_jitter=color_jitter, mean=MEAN, std=STD,
                                       input_size=sides(input_size), interpolation='bicubic')
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError('--aa {}: timm does not know this policy ({}); e.g. {}, or none'
                        .format(aa, error, RECIPE_AA)) from error
    return _composed(in_chans, RandomResizedCrop(input_size, (crop_min, 1.), in_chans), flip_at_random,
                     *([to_pil, *steps, to_bytes] if steps else []))


def evaluation_transform(input_size, in_chans=3):
    """Bicubic resize so that the centre crop keeps 0.875 of the side that limits it (all of it above 224 pixels)."""
    size = sides(input_size)
    around = tuple(int(side / EVAL_CROP) for side in size) if max(size) <= 224 else size
    return _composed(in_chans, CentreCrop(around, size, in_chans))


def _composed(in_chans, *steps):
    # Augmentations are defined on colour images, so a grey input is made at the end.
    return transforms.Compose([*steps, to_grey] if in_chans == 1 else [*steps])


class RandomResizedCrop:
    """torchvision's random resized crop to `size`; as there, RATIO bounds a part's width to height whatever the size.

    The draws are torchvision's; in a part that can be had at 1 / n of its size they are rounded down to multiples of n,
    which is less than half a pixel of the result.
    """

    def __init__(self, size, scale, in_chans):
        self.size, self.scale, self.in_chans = sides(size), scale, in_chans

    def __call__(self, picture):
        picture = picture.channels(self.in_chans)
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
    """The middle `size` of a picture that is resized until it just covers `around`; both (height, width)."""

    def __init__(self, around, size, in_chans):
        self.around, self.size, self.in_chans = around, size, in_chans

    def __call__(self, picture):
        picture = picture.channels(self.in_chans)
        whole = picture.height, picture.width
        by_height = self.around[0] * picture.width >= self.around[1] * picture.height
        wanted, own = (sizes[0 if by_height else 1] for sizes in (self.around, whole))
        height, width = (int(wanted * length / own) for length in whole)
        pixels = picture.part(0, 0, *whole, (height, width))
        top, left = (int(round((length - side) / 2)) for length, side in zip((height, width), self.size))
        return pixels[top:top + self.size[0], left:left + self.size[1]]


def flip_at_random(pixels):
    """Mirror half of the pictures: (H, W, C)."""
    return pixels.flip(1) if random.random() < .5 else pixels


def to_pil(pixels):
    """(H, W, 3) or grey (H, W, 1) uint8 tensor -> PIL image; UserError where it is of floats."""
    if pixels.dtype != torch.uint8:
        raise UserError('--aa: augmentation of colours is for 8-bit images, and --data_path has arrays of more bits; '
                        'give --aa none')
    return Image.fromarray(pixels.expand(-1, -1, 3).numpy())


def to_bytes(image):
    """PIL image -> (H, W, C) uint8 tensor."""
    pixels = torch.from_numpy(np.array(image))
    return pixels if pixels.dim() == 3 else pixels[..., None]


def to_grey(pixels):
    """(H, W, 3) uint8 tensor -> (H, W, 1): luma; what is grey stays as it is."""
    return pixels if pixels.shape[-1] == 1 else to_bytes(to_pil(pixels).convert('L'))


class Normalize:
    """(N, H, W, C) of 0..255 -> (N, C, H, W) float32 less the mean, by the deviation; on the images' device.

    Args:
        mean, std: in units of 0..1, see util.config.normalization.statistics.
    Raises:
        UserError: there is no default for so many channels.
    """

    def __init__(self, in_chans=3, mean=None, std=None):
        mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None]
                     for values in statistics(in_chans, mean, std))
        self._scale, self._shift = (1 / (255 * std)).float(), (mean / std).float()

    @classmethod
    def of(cls, flags):
        """As the flags of a training say, a dict."""
        return cls(flags.get('in_chans') or 3, flags.get('mean'), flags.get('std'))

    def __call__(self, images):
        if self._scale.device != images.device:
            self._scale, self._shift = self._scale.to(images.device), self._shift.to(images.device)
        count, height, width, channels = images.shape
        normalised = torch.empty(count, channels, height, width, device=images.device)
        return normalised.copy_(images.permute(0, 3, 1, 2)).mul_(self._scale).sub_(self._shift)

    def shown(self, images):
        """(N, C, H, W) normalised -> (N, H, W, 1 or 3) uint8 to look at, on the host; of more channels the first three.

        The pixels as they were; those of other than grey or RGB images, and such as would be seen as black or white
        alone, from SHOWN deviations below the mean to as many above it.
        """
        images, scale, shift = images.cpu().float(), self._scale.cpu(), self._shift.cpu()
        deviation, mean = 1 / (255 * scale), shift / (255 * scale)
        if len(scale) in COLOURED and deviation.min() > FAINT and mean.min() >= 0 and mean.max() <= 1:
            pixels = (images + shift) / scale
        else:
            pixels = (images + SHOWN) * (255 / (2 * SHOWN))
        return pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1)[..., :3 if len(scale) >= 3 else 1]


def preprocessing_of(flags):
    """(transform, normalize) of a trained model, as in evaluation, from the flags that its checkpoint keeps."""
    return evaluation_transform(flags.get('input_size') or 224, flags.get('in_chans') or 3), Normalize.of(flags)
