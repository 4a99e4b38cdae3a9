"""Flags of the model's input: size, patches, channels, mean and standard deviation.

An input size is the side of a square in pixels, or [height, width].
"""
import math
import re
from argparse import ArgumentTypeError, Namespace
from decimal import Decimal
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

from util.config.parser import Parser, number, positive, positive_int
from util.errors import UserError
from util.log import logger

RECIPE_AA = 'rand-m9-mstd0.5-inc1'
COLOURED = (1, 3)           # channels for which colour augmentation, a usual mean and a usual std exist
MAX_SIDE, MAX_PATCHES = 2 ** 13, 2 ** 18        # positions alone then have a gigabyte in the largest model
InputSize = Union[int, Sequence[int]]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)        # of ImageNet, RGB
Values = Sequence[float]


def add_flags(add: Callable) -> None:
    """Add the flags by `add`, see Parser.adder."""
    add('--input_size', type=positive_int, nargs='+', default=224, metavar=('H', 'W'),
        help='side of the square input in pixels; or its height and width')
    add('--patch_size', type=positive_int, help="side of a patch in pixels; default: the model's own")
    add('--in_chans', type=positive_int, default=3,
        help='image channels: 1 (gray), 3 (RGB), or those of .npy arrays')
    add('--mean', type=number(float), nargs='+',
        help="pixel mean, per channel or one for all, on a scale of 0 to 1; default: the checkpoint's, or ImageNet's")
    add('--std', type=positive, nargs='+', help='pixel standard deviation, as --mean')


def check_flags(parser: Parser, args: Namespace) -> None:
    """End the process with one line if the flags do not fit together; normalise `args.input_size`."""
    if isinstance(args.input_size, list):
        if len(args.input_size) > 2:
            parser.error('argument --input_size: takes one number, or height and width; not {} numbers'
                         .format(len(args.input_size)))
        args.input_size = normalised_size(args.input_size)
    fault = size_fault(args.input_size, args.patch_size or patch_in_name(args.model))
    if fault:
        parser.error('argument --input_size: {} (or see --patch_size)'.format(fault))
    if (args.mean is None) != (args.std is None):
        parser.error('argument --{}: give --{} too'.format(*('std', 'mean') if args.mean is None else ('mean', 'std')))
    if args.mean is None and any(getattr(args, name, '') for name in ('resume', 'finetune', 'init_from')):
        return          # the checkpoint's are used
    try:
        statistics(args.in_chans, args.mean, args.std)
    except UserError as error:
        parser.error('argument {}'.format(error))


def set_augmentation(parser: Parser, args: Namespace) -> None:
    """Set the default of --aa, without colour augmentation where channels are not colours; reject flags for colours."""
    if args.in_chans not in COLOURED:
        for flag, value in (('aa', args.aa if args.aa != 'none' else None), ('color_jitter', args.color_jitter)):
            if value:
                parser.error('argument --{}: for images of 1 or 3 channels, not {}'.format(flag, args.in_chans))
    if args.aa is None:
        args.aa = RECIPE_AA if args.in_chans in COLOURED else 'none'


def sides(size: InputSize) -> Tuple[int, int]:
    """224 or [160, 320] -> (height, width) in pixels."""
    return tuple(size) if isinstance(size, (list, tuple)) else (size, size)


def normalised_size(numbers: Sequence[int]) -> Union[int, List[int]]:
    """[side] or [height, width] -> the input size as flags and checkpoints store it: a square as one number."""
    height, width = (list(numbers) * 2)[:2]
    return height if height == width else [height, width]


def parse_size(text: str) -> Union[int, List[int]]:
    """argparse type: '224' -> 224, '160x320' -> [160, 320], for commands with positional arguments."""
    sizes = re.match(r'([1-9]\d*)(?:x([1-9]\d*))?$', text)
    if not sizes:
        raise ArgumentTypeError('{!r} is neither a side in pixels nor HEIGHTxWIDTH'.format(text))
    return normalised_size([int(number) for number in sizes.groups() if number])


def patch_in_name(model: str) -> Optional[int]:
    """Patch side in pixels in a model's name, 16 in vit_base_patch16; None without one."""
    found = re.search(r'_patch(\d+)', model)
    return int(found.group(1)) if found else None


def size_fault(size: InputSize, patch: int) -> Optional[str]:
    """Error message if patches do not tile the input (with the nearest valid sizes) or are too many, else None."""
    height, width = sides(size)
    if max(height, width) > MAX_SIDE or height // patch * (width // patch) > MAX_PATCHES:
        return '{} x {} is too large: at most {} pixels a side and {} patches'.format(height, width, MAX_SIDE,
                                                                                      MAX_PATCHES)
    odd = next((length for length in sides(size) if length % patch), None)
    if odd is None:
        return None
    near = [str(length) for length in (odd // patch * patch, -(-odd // patch) * patch) if length]
    return '{} is not a multiple of the patch size {}; use {}'.format(odd, patch, ' or '.join(near))


def grid_of(flags: Optional[Dict[str, Any]]) -> Optional[Tuple[int, int]]:
    """Patch grid (rows, columns) by the flags in a checkpoint; None if they do not define one."""
    flags = flags or {}
    patch = flags.get('patch_size') or patch_in_name(str(flags.get('model')))
    size = sides(flags.get('input_size'))
    if len(size) != 2 or any(type(number) is not int or number < 1 for number in (patch, *size)):
        return None
    return size[0] // patch, size[1] // patch


def statistics(in_chans: int, mean: Optional[Values] = None, std: Optional[Values] = None) -> Tuple[Values, Values]:
    """(mean, std), one number per channel each, on a scale of 0 to 1.

    Args:
        mean, std: one number each, or one per channel; default: ImageNet's, averaged over RGB for grey images.
    Raises:
        UserError: no default for this number of channels, or another number of values.
    """
    if mean is None or std is None:
        if in_chans not in COLOURED:
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
