"""Mixup, CutMix and random erasing of a batch, on its device.

The host draws boxes and mixing factors and sends them as one small tensor. Whatever was drawn, the device runs the same
operators with the same shapes: NPUs compile each new one, and a launch for each image would take long.
"""
import math
import random
from typing import List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from util.devices.host_to_device import copy_small
from util.models.timm_adapter import cutmix_bbox_and_lam

ERASED_AREA = (.02, 1 / 3)                      # as a fraction of the image
LOG_RATIO = (math.log(.3), math.log(1 / .3))    # of an erased box, height / width
MAX_TRIES = 10                                  # to sample a box inside the image


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """(..., 4) boxes [top, bottom) x [left, right) -> (..., height, width): whether each pixel is in the box."""
    top, bottom, left, right = boxes[..., None, None].unbind(-3)
    rows = torch.arange(height, dtype=boxes.dtype, device=boxes.device)[:, None]
    columns = torch.arange(width, dtype=boxes.dtype, device=boxes.device)
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


class Mixup:
    """Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899) with the random draws and results of timm's class.

    Args:
        mixup_alpha, cutmix_alpha: parameters of the beta distributions; 0: off.
        cutmix_minmax: bounds of the CutMix side as fractions of the image, instead of cutmix_alpha.
        mode: unit with a common mixing factor: 'batch', 'pair' or 'elem'.
    """

    def __init__(self, mixup_alpha: float = 0., cutmix_alpha: float = 0.,
                 cutmix_minmax: Optional[Sequence[float]] = None, prob: float = 1., switch_prob: float = .5,
                 mode: str = 'batch', label_smoothing: float = .1, num_classes: int = 1000):
        self.mixup_alpha, self.cutmix_alpha = mixup_alpha, 1. if cutmix_minmax else cutmix_alpha
        self.cutmix_minmax, self.mix_prob, self.switch_prob, self.mode = cutmix_minmax, prob, switch_prob, mode
        self.label_smoothing, self.num_classes = label_smoothing, num_classes

    def __call__(self, images: Tensor, labels: Tensor) -> Tuple[Tensor, Tensor]:
        """Mix image i with image N - 1 - i: (N, C, H, W) in place, labels (N,) -> (N, classes)."""
        opposite, drawn = images.flip(0), copy_small(self._draw(images.shape), images.device)
        mask = inside(drawn[:, :4], *images.shape[2:])[:, None].to(drawn.dtype)         # (1 or N, 1, H, W)
        own, other = drawn[:, 4:6, None, None, None].unbind(1)
        images.mul_((mask * own).add_(1 - mask)).add_(opposite.mul_(mask * other))      # mask is 0 or 1: exact
        off = self.label_smoothing / self.num_classes
        targets = torch.full((len(labels), self.num_classes), off, device=labels.device)
        targets.scatter_(1, labels[:, None], 1 - self.label_smoothing + off)
        return images, targets * drawn[:, 6:7] + targets.flip(0) * drawn[:, 7:]

    def _draw(self, shape: Sequence[int]) -> np.ndarray:
        """(1 or N, 8): box; weights of the image and the opposite one inside of it; weights of their labels."""
        rows = []
        for factor, cut in self._draw_factors(shape[0]):
            box, own = (0, shape[2], 0, shape[3]), factor
            if cut and factor != 1:
                box, area = cutmix_bbox_and_lam(shape, factor, ratio_minmax=self.cutmix_minmax)
                own, factor = 0., type(factor)(area)        # as timm: rounded to the type of the draw
            rows.append((*box, own, 1 - own, factor, 1 - factor))
        return np.array(rows + rows[::-1] if self.mode == 'pair' else rows, np.float32)

    def _draw_factors(self, count: int) -> List[Tuple[float, bool]]:
        """(mixing factor, whether to use CutMix) of the batch, or of each pair or image."""
        alphas = [alpha for alpha in (self.cutmix_alpha, self.mixup_alpha) if alpha > 0]
        if self.mode == 'batch':
            if np.random.rand() >= self.mix_prob:
                return [(1., False)]
            cut = self.cutmix_alpha > 0 and (len(alphas) == 1 or np.random.rand() < self.switch_prob)
            alpha = alphas[0 if cut else -1]
            return [(float(np.random.beta(alpha, alpha)), cut)]
        count = count // 2 if self.mode == 'pair' else count
        cut = (np.random.rand(count) < self.switch_prob if len(alphas) == 2 else
               np.full(count, self.cutmix_alpha > 0))
        factors = [np.random.beta(alpha, alpha, size=count) for alpha in alphas]
        mixed = np.where(cut, factors[0], factors[-1]).astype(np.float32)
        return list(zip(np.where(np.random.rand(count) < self.mix_prob, mixed, np.float32(1)), cut))


class RandomErasing:
    """Random erasing (arXiv:1708.04896) of a share `probability` of the images, with the boxes of timm's class.

    Args:
        mode: fill: normal noise for each 'pixel', one normal colour for each box ('rand'), or zeros ('const').
        max_count: an image has 1 to max_count boxes, which share ERASED_AREA.
        num_splits: if above 1, the first 1 / num_splits of each batch is left alone.
    """

    def __init__(self, probability: float, mode: str = 'pixel', max_count: int = 1, num_splits: int = 0):
        self.probability, self.mode, self.max_count, self.num_splits = probability, mode, max_count, num_splits

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        if not self.probability:
            return images
        count, channels, height, width = images.shape
        boxes = np.zeros((self.max_count, count, 4), np.float32)
        for i in range(count // self.num_splits if self.num_splits > 1 else 0, count):
            self._draw(boxes[:, i], height, width)
        fill = images.new_zeros({'pixel': (1, *images.shape), 'rand': (self.max_count, count, channels, 1, 1),
                                 'const': (1, 1, 1, 1, 1)}[self.mode])
        if self.mode != 'const':
            fill.normal_()
        masks = inside(copy_small(boxes, images.device), height, width)[:, :, None]     # (max_count, N, 1, H, W)
        for mask, pixels in zip(masks, fill.expand(self.max_count, *fill.shape[1:])):
            images = torch.where(mask, pixels, images)
        return images

    def _draw(self, boxes: np.ndarray, height: int, width: int) -> None:
        """Fill in up to max_count boxes of an image (max_count, 4); Python's generator is called as by timm."""
        if random.random() > self.probability:
            return
        count = random.randint(1, self.max_count) if self.max_count > 1 else 1
        for box in boxes[:count]:
            for _ in range(MAX_TRIES):
                area = random.uniform(*ERASED_AREA) * (height * width) / count
                ratio = math.exp(random.uniform(*LOG_RATIO))
                rows, columns = int(round(math.sqrt(area * ratio))), int(round(math.sqrt(area / ratio)))
                if rows < height and columns < width:
                    top, left = random.randint(0, height - rows), random.randint(0, width - columns)
                    box[:] = top, top + rows, left, left + columns
                    break
