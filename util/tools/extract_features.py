"""Features of images: python -m util.tools.extract_features --resume CHECKPOINT --output FOLDER IMAGES...

FOLDER gets features.npy, a row an image, or block-N.npy for each of --blocks; files.txt, the image of each row; and
labels.npy and classes.txt where the images have classes. features.json says how they were made.
"""
import argparse
import fnmatch
import itertools
import json
import math
import os
import sys
import time
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np

from util import log
from util.checkpoints import load_model
from util.config.inference_flags import add_images, add_model, add_work, check_checkpoint
from util.config.parser import Parser, positive_int
from util.data.unreadable import NAME as BAD_IMAGES, escaped
from util.errors import UserError, run
from util.files import set_aside
from util.models import features
from util.text import one_line
from util.tools.inference import Inference, output_file
from util.training.epoch_meter import per_second

# What the folder may hold.
OURS = ('features.npy', 'block-*.npy', 'files.txt', 'labels.npy', 'classes.txt', BAD_IMAGES, 'features.json', '*.tmp-*')


def features_of(model, imgs, pool, blocks):
    """(N, C, H, W), normalised -> [features (N, D) after each of `blocks`, counted from 1 in rising order].

    These are pooled tokens as the next block takes them: no norm follows. Without `blocks`, the one entry is as
    util.models.features.pooled gives it, with the model's last norm.
    Args:
        pool: 'mean' of the patch tokens, or 'cls', the class token.
    """
    if not blocks:
        return [features.pooled(model, imgs, pool)]
    outputs = itertools.islice(features.block_outputs(model, imgs), max(blocks))
    return [tokens[:, 1:].mean(dim=1) if pool == 'mean' else tokens[:, 0]
            for number, tokens in enumerate(outputs, 1) if number in blocks]


def _block(text):
    if not (text == 'all' or text.isdigit()):
        raise argparse.ArgumentTypeError("{!r} is neither a block's number nor 'all'; name images before --blocks"
                                         .format(text))
    return text if text == 'all' else positive_int(text)


def prepare(folder):
    """Make an empty folder; one that holds earlier features is renamed first.

    Raises:
        UserError: it holds anything else, or cannot be made.
    """
    try:
        names = os.listdir(folder) if os.path.lexists(folder) else []
        strange = [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in OURS)]
        if strange:
            raise UserError('--output {}: holds {}, which is none of the features; name a new folder'
                            .format(folder, strange[0]))
        if names:
            print('earlier features kept in {}'.format(one_line(set_aside(folder))), file=sys.stderr)
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError('--output {}: cannot be made ({})'.format(folder, error.strerror)) from error


@contextmanager
def growing_array(path, shape, dtype):
    """What takes arrays (M, *shape) one after the other; at the block's end they are at `path`, as one .npy array.

    Rows go to the disk as they come: their number is known only at the end, and they need not fit into memory.
    Raises:
        UserError: see util.tools.inference.output_file.
    """
    dtype, count = np.dtype(dtype), 0
    with output_file(path) as file:
        def head():             # of 128 bytes, whatever the count
            file.seek(0)
            np.lib.format.write_array_header_1_0(
                file, {'descr': dtype.str, 'fortran_order': False, 'shape': (count, *shape)})

        def add(rows):
            nonlocal count
            file.write(np.ascontiguousarray(rows, dtype).tobytes())
            file.check()
            count += len(rows)
        head()
        yield add
        head()


def write(folder, names, batches, images, dtype, width, unreadable):
    """Write features to a folder; see the head of this module.

    Args:
        names: of the arrays, without ending; batches: yields (indices of images, [tensor (M, width) of each array]).
        images: InputImages; unreadable: (path, reason) pairs.
    Returns:
        the number of rows.
    Raises:
        UserError: the disk refuses, or `dtype` is too small for a feature.
    """
    count = 0
    with ExitStack() as stack:
        def opened(name, make=output_file, *options):
            return stack.enter_context(make(os.path.join(folder, name), *options))
        arrays = [opened(name + '.npy', growing_array, (width,), dtype) for name in names]
        files = opened('files.txt')
        labels = opened('labels.npy', growing_array, (), np.int64) if images.classes else None
        for indices, found in batches:
            for add, rows in zip(arrays, found):
                if float(np.finfo(dtype).max) < float(rows.abs().max()) < math.inf:
                    raise UserError('--dtype {}: features of {} or an image soon after it are too large for it; use '
                                    'float32'.format(dtype, images.name_of(indices[0])))
                add(rows.float().cpu().numpy())
            files.write(_lines(images.name_of(index) for index in indices))
            if labels:
                labels(images.labels[indices])
            count += len(indices)
        if images.classes:
            opened('classes.txt').write(_lines(images.classes))
        if unreadable:          # as util.data.unreadable lists them
            opened(BAD_IMAGES).write(''.join('{}\t{}\n'.format(escaped(path), reason) for path, reason in unreadable)
                                     .encode())
    return count


def _lines(names):
    return ''.join(escaped(name) + '\n' for name in names).encode()


def main(argv=None):
    parser = Parser(prog='python -m util.tools.extract_features', description=__doc__.split('\n')[0])
    add_model(parser, 'main_pretrain.py or main_finetune.py')
    add_images(parser)
    add = parser.add_argument
    add('--output', required=True, help='folder to write to; earlier features in it are set aside')
    add('--pool', choices=('mean', 'cls'),
        help="of the patch tokens their mean, or the class token; default: what the model's head takes, else mean")
    add('--blocks', nargs='+', type=_block, metavar='N',
        help='blocks after which to take features, counted from 1, or all; default: after the last, with its norm')
    add('--dtype', default='float32', choices=('float32', 'float16'), help='type of the numbers')
    add_work(parser)
    args = parser.parse_args(argv)
    check_checkpoint(parser, args)
    log.set_up(True, results=True)
    loaded = load_model.load_any(args.resume, args.input_size)
    asked, depth = set(args.blocks or ()), len(loaded.model.blocks)
    blocks = list(range(1, depth + 1)) if 'all' in asked else sorted(asked)
    if blocks and blocks[-1] > depth:
        raise UserError('--blocks {}: the model has {} blocks, counted from 1'.format(blocks[-1], depth))
    pool = args.pool or ('mean' if getattr(loaded.model, 'global_pool', True) else 'cls')
    inference = Inference(loaded, args.device, args.amp)
    images = inference.images(args.images)
    names = ['block-{}'.format(number) for number in blocks] or ['features']
    prepare(args.output)
    width, began = loaded.model.pos_embed.shape[-1], time.monotonic()
    batches = inference.over(images, partial(features_of, pool=pool, blocks=blocks), args.batch_size,
                             args.num_workers, 'features')
    count = write(args.output, names, batches, images, args.dtype, width, inference.unreadable)
    speed = per_second(count, time.monotonic() - began)
    about = {'resume': args.resume, 'model': loaded.flags['model'], 'input_size': loaded.flags.get('input_size') or 224,
             'pool': pool, 'blocks': blocks or None, 'dtype': args.dtype, 'images': count, 'width': width,
             'unreadable': len(inference.unreadable)}
    with output_file(os.path.join(args.output, 'features.json')) as file:
        file.write(json.dumps(about, indent=1).encode() + b'\n')
    print('features of {:,} images, {} numbers each: {} ({:.0f} images/s)'.format(
        count, width, one_line(', '.join(os.path.join(args.output, name + '.npy') for name in names)), speed))


if __name__ == '__main__':
    run(main)
