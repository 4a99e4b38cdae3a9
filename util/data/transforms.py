"""Image transforms in the loader workers, and normalization on the device.

A transform maps a LazyImage to an (H, W, C) uint8 tensor; batches of these are a quarter of the size of float ones.
Only arrays of more than 8 bits (.npy) become floats earlier. Sizes are those of util.config.input_flags: the side
of a square, or height and width.
"""
import math
import random
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from util.config.input_flags import COLOURED, MEAN, RECIPE_AA, STD, InputSize, sides, statistics
from util.data.lazy_image import LazyImage
from util.errors import UserError
from util.models.timm_adapter import color_augmentation

RATIO = (3 / 4, 4 / 3)      # aspect ratio (width / height) of a random crop
LOG_RATIO = tuple(math.log(ratio) for ratio in RATIO)
MAX_TRIES = 10              # to sample a crop inside the image
MIN_DISPLAY_STD, DISPLAY_STDS = .1, 2.5     # display mean +- 2.5 deviations if the deviation is below 0.1 (of 0..1)
EVAL_CROP = .875            # fraction of the short side that evaluation keeps, up to 224 pixels

Statistics = Optional[Sequence[float]]
Transform = Callable[[LazyImage], torch.Tensor]


def pretraining_transform(input_size: InputSize, in_chans: int = 3, crop_min: float = .2) -> Transform:
    """Random resized crop of at least `crop_min` of the area, and horizontal flip (arXiv:2111.06377, appendix A.1)."""
    return _compose(in_chans, RandomResizedCrop(input_size, (crop_min, 1.), in_chans), random_horizontal_flip)


def finetuning_transform(input_size: InputSize, in_chans: int = 3, color_jitter: Optional[float] = None,
                         aa: str = RECIPE_AA, crop_min: float = .08) -> Transform:
    """Random resized crop, horizontal flip and, for 1 or 3 channels, timm's RandAugment or another policy `aa`.

    Args:
        crop_min: minimum area of a crop as a fraction of the image.
    Raises:
        UserError: timm cannot parse the policy `aa`.
    """
    steps = []
    try:
        if in_chans in COLOURED:
            steps = color_augmentation(None if aa == 'none' else aa, color_jitter=color_jitter, mean=MEAN, std=STD,
                                       input_size=sides(input_size), interpolation='bicubic')
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError('--aa {}: not a policy of timm ({}); e.g. {}, or none'.format(aa, error, RECIPE_AA)) from error
    return _compose(in_chans, RandomResizedCrop(input_size, (crop_min, 1.), in_chans), random_horizontal_flip,
                    *([to_pil, *steps, to_tensor] if steps else []))


def evaluation_transform(input_size: InputSize, in_chans: int = 3) -> Transform:
    """Bicubic resize and centre crop, which keeps 0.875 of the limiting side (all of it above 224 pixels)."""
    size = sides(input_size)
    resize = tuple(int(side / EVAL_CROP) for side in size) if max(size) <= 224 else size
    return _compose(in_chans, ResizeCentreCrop(resize, size, in_chans))


def _compose(in_chans, *steps):
    # Augmentations need colour images, so the conversion to grey comes last.
    return transforms.Compose([*steps, to_grey] if in_chans == 1 else [*steps])


class RandomResizedCrop:
    """Random crop resized to `size`, with torchvision's distribution: RATIO bounds the crop's aspect ratio.

    A crop that is decoded at 1 / n of its size is rounded down to multiples of n, less than half an output pixel.
    """

    def __init__(self, size: InputSize, scale: Tuple[float, float], in_chans: int):
        self.size, self.scale, self.in_chans = sides(size), scale, in_chans

    def __call__(self, image: LazyImage) -> torch.Tensor:
        image = image.with_channels(self.in_chans)
        crop = self._sample(image.height, image.width)
        n = image.scale_denominator(*crop[2:], size=self.size)
        return image.resized_crop(*(edge // n * n for edge in crop), size=self.size)

    def _sample(self, height, width):
        """(top, left, height, width); Python's generator takes a quarter of the time of torch's."""
        for _ in range(MAX_TRIES):
            area = height * width * random.uniform(*self.scale)
            ratio = math.exp(random.uniform(*LOG_RATIO))
            size = int(round(math.sqrt(area / ratio))), int(round(math.sqrt(area * ratio)))
            if 0 < size[0] <= height and 0 < size[1] <= width:
                return (random.randint(0, height - size[0]), random.randint(0, width - size[1]), *size)
        # Fall back to the largest centre crop that RATIO allows.
        size = min(height, int(round(width / RATIO[0]))), min(width, int(round(height * RATIO[1])))
        return ((height - size[0]) // 2, (width - size[1]) // 2, *size)


class ResizeCentreCrop:
    """Resize until the image just covers `resize`, then crop the central `size`; both (height, width)."""

    def __init__(self, resize: Tuple[int, int], size: Tuple[int, int], in_chans: int):
        self.resize, self.size, self.in_chans = resize, size, in_chans

    def __call__(self, image: LazyImage) -> torch.Tensor:
        image = image.with_channels(self.in_chans)
        whole = image.height, image.width
        axis = 0 if self.resize[0] * image.width >= self.resize[1] * image.height else 1
        height, width = (int(self.resize[axis] * length / whole[axis]) for length in whole)
        pixels = image.resized_crop(0, 0, *whole, (height, width))
        top, left = (int(round((length - side) / 2)) for length, side in zip((height, width), self.size))
        return pixels[top:top + self.size[0], left:left + self.size[1]]


def random_horizontal_flip(pixels: torch.Tensor) -> torch.Tensor:
    """Mirror (H, W, C) with probability 0.5."""
    return pixels.flip(1) if random.random() < .5 else pixels


def to_pil(pixels: torch.Tensor) -> Image.Image:
    """(H, W, 1 or 3) uint8 tensor -> RGB PIL image; UserError for floats."""
    if pixels.dtype != torch.uint8:
        raise UserError('--aa: colour augmentation needs 8-bit images, and --data_path has arrays of more bits; use '
                        '--aa none')
    return Image.fromarray(pixels.expand(-1, -1, 3).numpy())


def to_tensor(image: Image.Image) -> torch.Tensor:
    """PIL image -> (H, W, C) uint8 tensor."""
    return torch.from_numpy(np.atleast_3d(np.array(image)))


def to_grey(pixels: torch.Tensor) -> torch.Tensor:
    """(H, W, 3) uint8 tensor -> (H, W, 1) luma; grey images are returned as they are."""
    return pixels if pixels.shape[-1] == 1 else to_tensor(to_pil(pixels).convert('L'))


class Normalize:
    """Channel normalization on the images' device: (N, H, W, C) of 0..255 -> (N, C, H, W) float32.

    Args:
        mean, std: per channel, in units of 0..1; see util.config.input_flags.statistics.
    Raises:
        UserError: there are no defaults for `in_chans`.
    """

    def __init__(self, in_chans: int = 3, mean: Statistics = None, std: Statistics = None):
        mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None]
                     for values in statistics(in_chans, mean, std))
        self._scale, self._shift = (1 / (255 * std)).float(), (mean / std).float()

    @classmethod
    def of(cls, flags: Dict[str, Any]) -> 'Normalize':
        """Normalization for the flags of a training."""
        return cls(flags.get('in_chans') or 3, flags.get('mean'), flags.get('std'))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self._scale, self._shift = self._scale.to(images.device), self._shift.to(images.device)
        count, height, width, channels = images.shape
        normalized = torch.empty(count, channels, height, width, device=images.device)
        return normalized.copy_(images.permute(0, 3, 1, 2)).mul_(self._scale).sub_(self._shift)

    def to_display(self, images: torch.Tensor) -> torch.Tensor:
        """Displayable pixels on the CPU: (N, C, H, W) normalized -> (N, H, W, 1 or 3) uint8, of the first channels.

        Grey and RGB images of usual statistics are denormalized. Others, which would be nearly black or white, show the
        range of DISPLAY_STDS deviations around the mean.
        """
        images, scale, shift = images.cpu().float(), self._scale.cpu(), self._shift.cpu()
        std, mean = 1 / (255 * scale), shift / (255 * scale)
        if len(scale) in COLOURED and std.min() > MIN_DISPLAY_STD and mean.min() >= 0 and mean.max() <= 1:
            pixels = (images + shift) / scale
        else:
            pixels = (images + DISPLAY_STDS) * (255 / (2 * DISPLAY_STDS))
        return pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1)[..., :3 if len(scale) >= 3 else 1]


def preprocessing_of(flags: Dict[str, Any]) -> Tuple[Transform, Normalize]:
    """(transform, normalize) for evaluating a model that was trained with `flags`."""
    return evaluation_transform(flags.get('input_size') or 224, flags.get('in_chans') or 3), Normalize.of(flags)
