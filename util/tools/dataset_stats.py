"""Mean and standard deviation of a dataset's channels: python -m util.tools.dataset_stats DATA [flags]

Prints the flags --mean and --std for training, and the same as JSON. The images are those that pre-training on DATA
has, whole and in their own size; each counts the same, however large it is, as in training. Pixels are in units of
0..1: 8-bit values divided by 255, 16-bit ones by 65535, floats as they are.
"""
import json
from functools import partial

import numpy as np
import torch

from util import log
from util.config.normalization import flags_text, number_text
from util.config.parser import Parser, non_negative_int, positive_int
from util.data.datasets import Subset, pretraining_set
from util.data.loader import evaluation_loader
from util.data.transforms import to_grey
from util.devices.accelerator import Cpu
from util.devices.host import default_workers
from util.distributed.world import World
from util.errors import UserError, reworded, run
from util.log import logger, progress_bar

FLAT = 1e-9         # deviation, as a share of the mean, that comes of rounding


def moments(in_chans, picture):
    """The mean and the variance of each channel of a picture, in units of 0..1: (2, C) float64 tensor."""
    picture = picture.with_channels(in_chans)
    size = picture.height, picture.width
    pixels = picture.resized_crop(0, 0, *size, size)
    values = (to_grey(pixels) if in_chans == 1 else pixels).reshape(-1, in_chans).numpy().astype(np.float64) / 255
    return torch.from_numpy(np.stack([values.mean(axis=0), values.var(axis=0)]))


def measure(dataset, num_workers=0):
    """(mean, std, images measured) of a dataset with the transform `moments`: a number for each channel.

    The result does not depend on the number of processes. Unreadable images are told and left out.
    Raises:
        UserError: no image can be read, or a channel has the same value everywhere.
    """
    loader = evaluation_loader(dataset, 16, World(), False, num_workers, False, Cpu())
    found = []
    with progress_bar('measuring', 'images', len(dataset)) as bar:
        for batch, _ in loader:
            found.append(batch)
            bar.update(len(batch))
    if not found:
        raise UserError('DATA: none of the {} images can be read; see the lines above, and --in_chans'
                        .format(len(dataset)))
    means, variances = torch.cat(found).numpy().transpose(1, 0, 2)
    mean, std = means.mean(axis=0), np.sqrt(variances.mean(axis=0) + means.var(axis=0))
    flat = np.flatnonzero(std <= FLAT * np.abs(mean))
    if len(flat):
        raise UserError('DATA: channel {} (counted from 0) is {} in all of the images; leave it out of them'.format(
            flat[0], number_text(mean[flat[0]])))
    return mean.tolist(), std.tolist(), len(means)


def main():
    parser = Parser(prog='python -m util.tools.dataset_stats', description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('data', metavar='DATA', help='what is given to main_pretrain.py as --data_path; with train/ in it, only that')
    add('--in_chans', type=positive_int, default=3, help='channels of the images, as in training')
    add('--images', type=positive_int, help='measure so many images, drawn at random; default: all')
    add('--seed', type=non_negative_int, default=0, help='seed of that draw')
    add('--num_workers', type=non_negative_int, default=default_workers(), help='processes that read images')
    args = parser.parse_args()
    log.set_up(True)
    torch.set_num_threads(1)
    with reworded('--data_path', 'DATA'):
        whole = pretraining_set(args.data, partial(moments, args.in_chans))
    chosen = np.random.RandomState(args.seed).permutation(len(whole))[:args.images]
    mean, std, measured = measure(Subset(whole, chosen), args.num_workers)
    logger.info('%d of %d images measured', measured, len(whole))
    print(flags_text(mean, std))
    print(json.dumps({'mean': mean, 'std': std, 'images': measured, 'in_chans': args.in_chans}))


if __name__ == '__main__':
    run(main)
