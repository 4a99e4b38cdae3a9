"""The flags of what uses a trained model. Nothing here imports torch, so --help and a wrong flag answer at once."""
import os

from util.config import input_size
from util.config.parser import Parser, add_device, non_negative_int, positive_int
from util.config.weights_location import fault_of_weights


def parse_predict(argv=None):
    """Parse and check the flags of main_predict.py; a bad one ends the process with one line."""
    parser = Parser(prog='main_predict.py', description='The classes of images, by a model of main_finetune.py.')
    add_model(parser, 'main_finetune.py')
    add_images(parser)
    add = parser.add_argument
    add('--top', type=positive_int, default=5, help='classes to give of each image, at most as many as there are')
    add('--json', action='store_true', help='a JSON object a line, with file, classes and probabilities, not a table')
    add('--output', default='', help='write these JSON lines to this file, whole; default: to standard output')
    add('--class_names', default='',
        help="text file with the names of the classes by number, one a line; default: the checkpoint's")
    add_work(parser)
    args = parser.parse_args(argv)
    check_checkpoint(parser, args)
    check_output(parser, args)
    return args


def add_model(parser, scripts):
    """Add what names the model; `scripts` are those that train it."""
    parser.add_argument('--resume', required=True,
                        help='checkpoint of {}, or weights of timm or Hugging Face: a file, a folder, or a URL with a '
                             'hash in its name'.format(scripts))
    parser.add_argument('--input_size', type=input_size.parse, metavar='SIDE or HxW',
                        help='side of the square input in pixels, or its height and width, as 160x320; positions are '
                             'interpolated; default: as in training')


def add_images(parser):
    """Add what names the images."""
    parser.add_argument('images', nargs='+', metavar='IMAGES',
                        help='image files, folders of images at any depth or of tar files, CSV lists, CIFAR batches')


def add_work(parser):
    """Add how many images are worked on."""
    add = parser.add_argument
    add_device(add)
    add('--amp', action='store_true', help='mixed precision where the device gains by it, as in training')
    add('--batch_size', type=positive_int, default=64, help='images that the model takes at once')
    add('--num_workers', type=non_negative_int,
        help='loader processes, 0: load in this one; default: the cores there are, at most 10')


def check_checkpoint(parser, args):
    """End the process with one line where --resume names no file and no URL that could be fetched."""
    fault = fault_of_weights(args.resume)
    if fault:
        parser.error('argument --resume: {} {}'.format(args.resume, fault))


def check_output(parser, args):
    """End the process with one line where --output, if it is given, cannot be a file."""
    folder = os.path.dirname(os.path.abspath(args.output))
    if not os.path.isdir(folder):
        parser.error('argument --output: there is no folder {}'.format(folder))
    if args.output and os.path.isdir(args.output):
        parser.error('argument --output: {} is a folder'.format(args.output))
