"""Flags of the model's input: its size, channels, mean and standard deviation. Nothing here imports torch."""
from util.config import input_size, normalization
from util.config.parser import number, positive, positive_int
from util.errors import UserError

RECIPE_AA = 'rand-m9-mstd0.5-inc1'
COLOURED = (1, 3)           # channels that augmentation of colours is defined for, and that have a usual mean and std


def add(add):
    """Add them by `add`, of Parser.adder."""
    add('--input_size', type=positive_int, nargs='+', default=224, metavar=('H', 'W'),
        help='side of the square input in pixels; or its height and width')
    add('--patch_size', type=positive_int, help="side of a patch in pixels; default: the model's own")
    add('--in_chans', type=positive_int, default=3,
        help='image channels: 1 (grey), 3 (RGB), or as many as the files have (.npy arrays, RGBA)')
    add('--mean', type=number(float), nargs='+',
        help="mean of the pixels, for each channel or for all, white being 1; default: the checkpoint's, or ImageNet's")
    add('--std', type=positive, nargs='+', help='standard deviation of the pixels, as --mean')


def check(parser, args, patch_size):
    """End the process with one line where they do not go together; settle `args.input_size` (input_size.plain)."""
    if isinstance(args.input_size, list):
        if len(args.input_size) > 2:
            parser.error('argument --input_size: takes one number, or height and width; not {} numbers'
                         .format(len(args.input_size)))
        args.input_size = input_size.plain(args.input_size)
    misfit = input_size.misfit(args.input_size, patch_size)
    if misfit:
        parser.error('argument --input_size: {} (or see --patch_size)'.format(misfit))
    if (args.mean is None) != (args.std is None):
        parser.error('argument --{}: give --{} too'.format(*('std', 'mean') if args.mean is None else ('mean', 'std')))
    if args.mean is None and any(getattr(args, name, '') for name in ('resume', 'finetune', 'init_from')):
        return          # the checkpoint says
    try:
        normalization.statistics(args.in_chans, args.mean, args.std)
    except UserError as error:
        parser.error('argument {}'.format(error))


def settle_colours(parser, args):
    """Give --aa its default, which augments colours only where there are such; refuse what is for these."""
    if args.in_chans not in COLOURED:
        if args.aa not in (None, 'none'):
            parser.error('argument --aa: {} is for images of 1 or 3 channels, not {}; leave it out'
                         .format(args.aa, args.in_chans))
        if args.color_jitter:
            parser.error('argument --color_jitter: is for images of 1 or 3 channels, not {}; leave it out'
                         .format(args.in_chans))
    if args.aa is None:
        args.aa = RECIPE_AA if args.in_chans in COLOURED else 'none'
