"""Mean and standard deviation of the input's channels, by which a model is trained and later used."""
import math

import numpy as np

from util.errors import UserError
from util.log import logger

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)        # of ImageNet, RGB


def statistics(in_chans, mean=None, std=None):
    """(mean, std), a number in each for each channel, in units of 0..1.

    Args:
        mean, std: one number each, or one a channel; default: ImageNet's, of which a grey image takes the average.
    Raises:
        UserError: there is no default for so many channels, or there are not as many numbers.
    """
    if mean is None or std is None:
        if in_chans not in (1, 3):
            raise UserError('--in_chans {}: so many channels have no usual mean and std; give --mean and --std, which '
                            'python -m util.tools.dataset_stats measures'.format(in_chans))
        return (MEAN, STD) if in_chans == 3 else ((sum(MEAN) / 3,), (sum(STD) / 3,))
    for name, values in (('mean', mean), ('std', std)):
        if len(values) not in (1, in_chans):
            raise UserError('--{}: {} numbers for {} channel{}; give one, or one a channel'.format(
                name, len(values), in_chans, 's'[:in_chans - 1]))
    return tuple(tuple(values) * (in_chans if len(values) == 1 else 1) for values in (mean, std))


def sound(flags):
    """Whether mean and std of a checkpoint's flags are as main_*.py write them: both None, or both lists of numbers."""
    values, lengths = (flags.get('mean'), flags.get('std')), (1, flags.get('in_chans') or 3)
    return values == (None, None) or all(
        type(numbers) is list and len(numbers) in lengths and
        all(type(number) is float and math.isfinite(number) for number in numbers) for numbers in values
    ) and min(values[1]) > 0


def adopt_statistics(args, saved, path):
    """Let `args` have the mean and std that a checkpoint was trained with, where they were not given; say it, or what
    was given instead.

    Args:
        saved: the flags in the checkpoint at `path`, a dict that util.checkpoints.schema has checked; None where it
            keeps none.
    """
    if saved is None or (saved.get('in_chans') or 3) != args.in_chans:
        return          # of other channels: whoever loads the weights says it
    mean, std = saved.get('mean'), saved.get('std')
    if args.mean is None:
        args.mean, args.std = mean, std
        if mean is not None:
            logger.info('mean and std are those of %s: %s', path, flags_text(mean, std))
    elif statistics(args.in_chans, args.mean, args.std) != statistics(args.in_chans, mean, std):
        logger.warning('%s was trained with %s, and this run has other numbers', path, flags_text(
            *((mean, std) if mean else statistics(args.in_chans))))


def flags_text(mean, std):
    """--mean ... --std ..., as it can be given to a script."""
    return '--mean {} --std {}'.format(*(' '.join(map(number_text, values)) for values in (mean, std)))


def number_text(value):
    """A number in six digits, without the exponent that a command line takes for a flag where it is negative."""
    return np.format_float_positional(value, 6, fractional=False, trim='-')
