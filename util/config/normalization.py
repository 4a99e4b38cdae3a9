"""Mean and standard deviation of the input channels."""
import math
from argparse import Namespace
from decimal import Decimal
from typing import Any, Dict, Optional, Sequence, Tuple

from util.errors import UserError
from util.log import logger

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)        # of ImageNet, RGB
Values = Sequence[float]


def statistics(in_chans: int, mean: Optional[Values] = None, std: Optional[Values] = None) -> Tuple[Values, Values]:
    """(mean, std), one number per channel each, on a scale of 0 to 1.

    Args:
        mean, std: one number each, or one per channel; default: ImageNet's, averaged over RGB for grey images.
    Raises:
        UserError: no default for this number of channels, or another number of values.
    """
    if mean is None or std is None:
        if in_chans not in (1, 3):
            raise UserError('--in_chans {}: no default mean and std; measure them by python -m '
                            'util.tools.dataset_stats, and give --mean and --std'.format(in_chans))
        return (MEAN, STD) if in_chans == 3 else ((sum(MEAN) / 3,), (sum(STD) / 3,))
    for name, values in (('mean', mean), ('std', std)):
        if len(values) not in (1, in_chans):
            raise UserError('--{}: {} numbers for {} channel{}; give one, or one per channel'.format(
                name, len(values), in_chans, 's'[:in_chans - 1]))
    return tuple(tuple(values) * (in_chans if len(values) == 1 else 1) for values in (mean, std))


def valid_statistics(flags: Dict[str, Any]) -> bool:
    """Whether mean and std of a checkpoint's flags are what training writes: both None, or both lists of floats."""
    values, lengths = (flags.get('mean'), flags.get('std')), (1, flags.get('in_chans') or 3)
    return values == (None, None) or all(
        type(numbers) is list and len(numbers) in lengths and
        all(type(number) is float and math.isfinite(number) for number in numbers) for numbers in values
    ) and min(values[1]) > 0


def adopt_statistics(args: Namespace, saved: Optional[Dict[str, Any]], path: str) -> None:
    """Set mean and std to the checkpoint's unless given as flags; log them, or the difference.

    `saved`: the flags in the checkpoint at `path`, checked by util.checkpoints.schema; None without flags.
    """
    if saved is None or (saved.get('in_chans') or 3) != args.in_chans:
        return          # loading the weights reports other channels
    mean, std = saved.get('mean'), saved.get('std')
    if args.mean is None:
        args.mean, args.std = mean, std
        if mean is not None:
            logger.info('using mean and std of %s: %s', path, flags_text(mean, std))
    elif statistics(args.in_chans, args.mean, args.std) != statistics(args.in_chans, mean, std):
        logger.warning('%s was trained with %s; this run uses other values', path, flags_text(
            *((mean, std) if mean else statistics(args.in_chans))))


def flags_text(mean: Values, std: Values) -> str:
    """'--mean ... --std ...', for a command line."""
    return '--mean {} --std {}'.format(*(' '.join(map(number_text, values)) for values in (mean, std)))


def number_text(value: float) -> str:
    """A number in six digits, without an exponent: argparse takes -1e-3 for a flag."""
    return '{:f}'.format(Decimal('{:.6g}'.format(value)))
