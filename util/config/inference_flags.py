"""Flags of main_predict.py, and those that the tools for trained models share."""
from util.config.input_flags import parse_size
from util.config.parser import Parser, add_device, non_negative_int, positive_int, weights


def predict_parser() -> Parser:
    """Parser of main_predict.py."""
    parser = Parser(prog='main_predict.py', description='Classify images by a model of main_finetune.py.')
    add_model(parser, 'main_finetune.py')
    add_images(parser)
    add = parser.add_argument
    add('--top', type=positive_int, default=5, help='classes to print per image')
    add('--json', action='store_true', help='print a JSON object per image (file, classes, probabilities)')
    add('--output', help='file to write these JSON lines to when all are there; default: standard output')
    add('--class_names', help="text file with one class name per line, in label order; default: the checkpoint's")
    add_work(parser)
    return parser


def add_checkpoint(parser: Parser, scripts: str) -> None:
    """Add --resume; `scripts` are those that train the model."""
    parser.add_argument('--resume', required=True, type=weights, help='checkpoint of {}, or weights of timm or Hugging '
                        'Face: a file, a folder, or a URL with a hash in its name'.format(scripts))


def add_model(parser: Parser, scripts: str) -> None:
    """Add --resume, as add_checkpoint, and --input_size."""
    add_checkpoint(parser, scripts)
    parser.add_argument('--input_size', type=parse_size, metavar='SIDE or HxW', help='side of the square input in '
                        'pixels, or height and width, as 160x320; positions are interpolated; default: as in training')


def add_images(parser: Parser) -> None:
    """Add the positional arguments: images."""
    parser.add_argument('images', nargs='+', metavar='IMAGES',
                        help='image files, folders of images at any depth or of tar files, CSV lists, CIFAR batches')


def add_work(parser: Parser) -> None:
    """Add device, precision, batch size and loader processes."""
    add = parser.add_argument
    add_device(add)
    add('--amp', action='store_true', help='mixed precision on devices that it speeds up, as in training')
    add('--batch_size', type=positive_int, default=64, help='images per batch')
    add('--num_workers', type=non_negative_int,
        help='loader processes; 0: load in the main process; default: number of cores, at most 10')
