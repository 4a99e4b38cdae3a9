"""Channel mean and standard deviation of a dataset: python -m util.tools.dataset_stats DATA [flags]

Prints the flags --mean and --std for training, and the same as JSON. The images are those of pre-training on DATA,
whole and in their own size, all with equal weight, as in training. Pixels are in units of 0..1: 8-bit values divided by
255, 16-bit ones by 65535, floats unchanged.
"""
import json
from functools import partial
from typing import List, Tuple

import numpy as np
import torch

from util import log
from util.config.input_flags import flags_text, number_text
from util.config.parser import Parser, non_negative_int, positive_int
from util.data.datasets import Subset, pretraining_set
from util.data.lazy_image import LazyImage
from util.data.loader import evaluation_loader
from util.data.transforms import to_grey
from util.devices.accelerator import Cpu
from util.devices.host import default_workers
from util.distributed.world import World
from util.errors import UserError, reworded, run
from util.log import logger, progress_bar

ROUNDING = 1e-9         # standard deviation of a constant channel, relative to its mean


def channel_moments(in_chans: int, image: LazyImage) -> torch.Tensor:
    """Mean and variance of each channel of an image, in units of 0..1: (2, C) float64."""
    image = image.with_channels(in_chans)
    size = image.height, image.width
    pixels = image.resized_crop(0, 0, *size, size)
    values = (to_grey(pixels) if in_chans == 1 else pixels).reshape(-1, in_chans).numpy().astype(np.float64) / 255
    return torch.from_numpy(np.stack([values.mean(axis=0), values.var(axis=0)]))


def measure(dataset: Subset, num_workers: int = 0) -> Tuple[List[float], List[float], int]:
    """(mean, std, number of images) of a dataset with the transform `channel_moments`; mean and std by channel.

    The result does not depend on the number of processes. Unreadable images are logged and skipped.
    Raises:
        UserError: no image can be read, or a channel is constant.
    """
    loader = evaluation_loader(dataset, 16, World(), False, num_workers, False, Cpu())
    batches = []
    with progress_bar('measuring', 'images', len(dataset)) as bar:
        for batch, _ in loader:
            batches.append(batch)
            bar.update(len(batch))
    if not batches:
        raise UserError('DATA: none of the {} images can be read; see the lines above, and --in_chans'
                        .format(len(dataset)))
    means, variances = torch.cat(batches).numpy().transpose(1, 0, 2)
    mean, std = means.mean(axis=0), np.sqrt(variances.mean(axis=0) + means.var(axis=0))
    constant = np.flatnonzero(std <= ROUNDING * np.abs(mean))
    if len(constant):
        raise UserError('DATA: channel {} (counted from 0) is {} in all images; remove it'.format(
            constant[0], number_text(mean[constant[0]])))
    return mean.tolist(), std.tolist(), len(means)


def main() -> None:
    parser = Parser(prog='python -m util.tools.dataset_stats', description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('data', metavar='DATA', help='--data_path of main_pretrain.py; of train/ and val/, only train/')
    add('--in_chans', type=positive_int, default=3, help='channels of the images, as in training')
    add('--images', type=positive_int, help='number of images, drawn at random; default: all')
    add('--seed', type=non_negative_int, default=0, help='seed of this draw')
    add('--num_workers', type=non_negative_int, default=default_workers(), help='loader processes')
    args = parser.parse_args()
    log.set_up(True)
    torch.set_num_threads(1)
    with reworded('--data_path', 'DATA'):
        dataset = pretraining_set(args.data, partial(channel_moments, args.in_chans))
    indices = np.random.RandomState(args.seed).permutation(len(dataset))[:args.images]
    mean, std, count = measure(Subset(dataset, indices), args.num_workers)
    logger.info('%d of %d images measured', count, len(dataset))
    print(flags_text(mean, std))
    print(json.dumps({'mean': mean, 'std': std, 'images': count, 'in_chans': args.in_chans}))


if __name__ == '__main__':
    run(main)
