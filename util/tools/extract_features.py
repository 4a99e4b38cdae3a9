"""Feature extraction: python -m util.tools.extract_features --resume CHECKPOINT --output FOLDER IMAGES...

FOLDER gets features.npy, a row per image, or block-N.npy for each of --blocks; files.txt, the image of each row;
labels.npy and classes.txt if the images have classes; and features.json, how the features were made.
"""
import itertools
import json
import math
import os
from contextlib import ExitStack
from functools import partial
from typing import Any, Iterable, List, Optional, Sequence

import numpy as np
import torch

from util import log
from util.checkpoints import load_model
from util.config.inference_flags import add_images, add_model, add_work
from util.config.parser import Parser, positive_int, word_or
from util.data.unreadable import NAME as BAD_IMAGES, escaped
from util.errors import UserError, run
from util.models import features
from util.text import one_line
from util.tools.inference import Inference
from util.tools.outputs import output_path

NPY_HEADER = 128        # bytes, for arrays of two dimensions


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


def write(folder: str, names: List[str], batches: Iterable, dataset: Any, dtype: str, width: int) -> int:
    """Write the features, names and labels of images into a folder, see the head of this module; returns their number.

    Args:
        names: of the arrays, without extension; batches: (indices, [features (M, width) for each array]).
        dataset: InputImages.
    Raises:
        UserError: a feature overflows `dtype`. OSError: a file cannot be written.
    """
    indices = []
    with ExitStack() as stack:
        files = [stack.enter_context(open(os.path.join(folder, name + '.npy'), 'wb')) for name in names]
        for file in files:              # the header has the number of rows, which is known at the end
            file.seek(NPY_HEADER)
        for batch, outputs in batches:
            for file, rows in zip(files, outputs):
                if float(np.finfo(dtype).max) < float(rows.abs().max()) < math.inf:
                    raise UserError('--dtype {}: features of {} or one of the next images overflow; use float32'.format(
                        dtype, dataset.name_of(batch[0])))
                file.write(rows.float().cpu().numpy().astype(dtype).tobytes())
            indices += batch
        for file in files:
            file.seek(0)
            np.lib.format.write_array_header_1_0(
                file, {'descr': np.dtype(dtype).str, 'fortran_order': False, 'shape': (len(indices), width)})
    _write_lines(folder, 'files.txt', (escaped(dataset.name_of(index)) for index in indices))
    if dataset.classes:
        np.save(os.path.join(folder, 'labels.npy'), np.asarray(dataset.labels)[indices].astype(np.int64))
        _write_lines(folder, 'classes.txt', map(escaped, dataset.classes))
    return len(indices)


def _write_lines(folder, name, lines):
    with open(os.path.join(folder, name), 'w', encoding='utf-8') as file:
        file.writelines(line + '\n' for line in lines)


def main(argv: Optional[List[str]] = None) -> None:
    parser = Parser(prog='python -m util.tools.extract_features', description=__doc__.split('\n')[0])
    add_model(parser, 'main_pretrain.py or main_finetune.py')
    add_images(parser)
    add = parser.add_argument
    add('--output', required=True, help='output folder; must be new or empty')
    add('--pool', choices=('mean', 'cls'),
        help='mean of the patch tokens, or class token; default: the input of the head, else mean')
    add('--blocks', nargs='+', type=word_or('all', 'all', positive_int), metavar='N',
        help='after the images: blocks to take features after, from 1, or all; default: the last, with its norm')
    add('--dtype', default='float32', choices=('float32', 'float16'), help='data type of the features')
    add_work(parser)
    args = parser.parse_args(argv)
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
    width = loaded.model.pos_embed.shape[-1]
    batches = inference.run(dataset, partial(extract, pool=pool, blocks=blocks), args.batch_size, args.num_workers,
                            'features')
    with output_path(args.output) as folder:
        os.mkdir(folder)
        count = write(folder, names, batches, dataset, args.dtype, width)
        if inference.unreadable:
            _write_lines(folder, BAD_IMAGES, ('{}\t{}'.format(escaped(path), reason)
                                              for path, reason in inference.unreadable))
        settings = {'resume': args.resume, 'model': loaded.flags['model'],
                    'input_size': loaded.flags.get('input_size') or 224, 'pool': pool, 'blocks': blocks or None,
                    'dtype': args.dtype, 'images': count, 'width': width, 'unreadable': len(inference.unreadable)}
        _write_lines(folder, 'features.json', [json.dumps(settings, indent=1)])
    print('features of {:,} images, {} numbers each: {}'.format(
        count, width, one_line(', '.join(os.path.join(args.output, name + '.npy') for name in names))))


if __name__ == '__main__':
    run(main)
