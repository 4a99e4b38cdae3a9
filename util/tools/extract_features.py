"""Feature extraction: python -m util.tools.extract_features --resume CHECKPOINT --output FOLDER IMAGES...

FOLDER gets features.npy, a row per image, or block-N.npy for each of --blocks; files.txt, the image of each row;
labels.npy and classes.txt if the images have classes; and features.json, how the features were made.
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
from typing import Any, Callable, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch

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

# Files of an earlier extraction; a folder with others is refused.
RESULTS = ('features.npy', 'block-*.npy', 'files.txt', 'labels.npy', 'classes.txt', BAD_IMAGES, 'features.json',
           '*.tmp-*')


def extract(model: torch.nn.Module, imgs: torch.Tensor, pool: str, blocks: Sequence[int]) -> List[torch.Tensor]:
    """(N, C, H, W), normalised -> [features (N, D) after each of `blocks`, counted from 1 in ascending order].

    These are pooled tokens without a norm, as the next block takes them: the 'mean' of the patch tokens, or 'cls'.
    Without `blocks`, the one entry is that of util.models.features.pooled, with the last norm of the model.
    """
    if not blocks:
        return [features.pooled(model, imgs, pool)]
    outputs = itertools.islice(features.block_outputs(model, imgs), max(blocks))
    return [tokens[:, 1:].mean(dim=1) if pool == 'mean' else tokens[:, 0]
            for number, tokens in enumerate(outputs, 1) if number in blocks]


def _block(text: str) -> Union[str, int]:
    if not (text == 'all' or text.isdigit()):
        raise argparse.ArgumentTypeError("{!r} is neither a block number nor 'all'; name images before --blocks"
                                         .format(text))
    return text if text == 'all' else positive_int(text)


def make_folder(folder: str) -> None:
    """Make an empty folder, renaming one with earlier features; UserError if it holds others or cannot be made."""
    try:
        names = os.listdir(folder) if os.path.lexists(folder) else []
        others = [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in RESULTS)]
        if others:
            raise UserError('--output {}: holds {}, not only features; choose a new folder'.format(folder, others[0]))
        if names:
            print('earlier features kept in {}'.format(one_line(set_aside(folder))), file=sys.stderr)
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError('--output {}: cannot be made ({})'.format(folder, error.strerror)) from error


@contextmanager
def npy_writer(path: str, shape: Tuple[int, ...], dtype: Any) -> Iterator[Callable[[np.ndarray], None]]:
    """Write a .npy file batch by batch: yields a function that appends arrays (M, *shape); raises as output_file.

    The number of rows is known only at the end, and they need not fit into memory.
    """
    dtype, count = np.dtype(dtype), 0
    with output_file(path) as file:
        def write_header():             # 128 bytes, whatever the count
            file.seek(0)
            np.lib.format.write_array_header_1_0(
                file, {'descr': dtype.str, 'fortran_order': False, 'shape': (count, *shape)})

        def append(rows):
            nonlocal count
            file.write(np.ascontiguousarray(rows, dtype).tobytes())
            file.check()
            count += len(rows)
        write_header()
        yield append
        write_header()


def write(folder: str, names: list, batches: Iterable, dataset: Any, dtype: str, width: int, unreadable: list) -> int:
    """Write the files of a folder, see the head of this module, and return the number of rows.

    Args:
        names: of the arrays, without extension; batches: (indices, [features (M, width) for each array]).
        dataset: InputImages; unreadable: (path, reason) pairs.
    Raises:
        UserError: a file cannot be written, or a feature overflows `dtype`.
    """
    count = 0
    with ExitStack() as stack:
        def create(name, opener=output_file, *options):
            return stack.enter_context(opener(os.path.join(folder, name), *options))
        arrays = [create(name + '.npy', npy_writer, (width,), dtype) for name in names]
        files = create('files.txt')
        append_labels = create('labels.npy', npy_writer, (), np.int64) if dataset.classes else None
        for indices, outputs in batches:
            for append, rows in zip(arrays, outputs):
                if float(np.finfo(dtype).max) < float(rows.abs().max()) < math.inf:
                    raise UserError('--dtype {}: features of {} or one of the next images overflow; use float32'.format(
                        dtype, dataset.name_of(indices[0])))
                append(rows.float().cpu().numpy())
            files.write(_lines(dataset.name_of(index) for index in indices))
            if append_labels:
                append_labels(dataset.labels[indices])
            count += len(indices)
        if dataset.classes:
            create('classes.txt').write(_lines(dataset.classes))
        if unreadable:          # in the format of util.data.unreadable
            create(BAD_IMAGES).write(''.join('{}\t{}\n'.format(escaped(path), reason) for path, reason in unreadable)
                                     .encode())
    return count


def _lines(names):
    return ''.join(escaped(name) + '\n' for name in names).encode()


def main(argv: Optional[List[str]] = None) -> None:
    parser = Parser(prog='python -m util.tools.extract_features', description=__doc__.split('\n')[0])
    add_model(parser, 'main_pretrain.py or main_finetune.py')
    add_images(parser)
    add = parser.add_argument
    add('--output', required=True, help='output folder; earlier features in it are set aside')
    add('--pool', choices=('mean', 'cls'),
        help='mean of the patch tokens, or class token; default: the input of the head, else mean')
    add('--blocks', nargs='+', type=_block, metavar='N',
        help='blocks to take features after, counted from 1, or all; default: the last, with the norm after it')
    add('--dtype', default='float32', choices=('float32', 'float16'), help='data type of the features')
    add_work(parser)
    args = parser.parse_args(argv)
    check_checkpoint(parser, args)
    log.set_up(True, results=True)
    loaded = load_model.load_any(args.resume, args.input_size)
    requested, depth = set(args.blocks or ()), len(loaded.model.blocks)
    blocks = list(range(1, depth + 1)) if 'all' in requested else sorted(requested)
    if blocks and blocks[-1] > depth:
        raise UserError('--blocks {}: the model has {} blocks, counted from 1'.format(blocks[-1], depth))
    pool = args.pool or ('mean' if getattr(loaded.model, 'global_pool', True) else 'cls')
    inference = Inference(loaded, args.device, args.amp)
    dataset = inference.dataset(args.images)
    names = ['block-{}'.format(number) for number in blocks] or ['features']
    make_folder(args.output)
    width, start = loaded.model.pos_embed.shape[-1], time.monotonic()
    batches = inference.run(dataset, partial(extract, pool=pool, blocks=blocks), args.batch_size, args.num_workers,
                            'features')
    count = write(args.output, names, batches, dataset, args.dtype, width, inference.unreadable)
    speed = per_second(count, time.monotonic() - start)
    settings = {'resume': args.resume, 'model': loaded.flags['model'],
                'input_size': loaded.flags.get('input_size') or 224, 'pool': pool, 'blocks': blocks or None,
                'dtype': args.dtype, 'images': count, 'width': width, 'unreadable': len(inference.unreadable)}
    with output_file(os.path.join(args.output, 'features.json')) as file:
        file.write(json.dumps(settings, indent=1).encode() + b'\n')
    print('features of {:,} images, {} numbers each: {} ({:.0f} images/s)'.format(
        count, width, one_line(', '.join(os.path.join(args.output, name + '.npy') for name in names)), speed))


if __name__ == '__main__':
    run(main)
