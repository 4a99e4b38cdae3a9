"""Feature extraction: python -m util.tools.extract_features --resume CHECKPOINT --output FOLDER IMAGES...

FOLDER gets features.npy, a row per image; files.txt, the image of each row; labels.npy and classes.txt if the images
have classes; and features.json, how the features were made.
"""
import json
import math
import os
from functools import partial
from typing import Any, Iterable, List, Optional

import numpy as np

from util import log
from util.checkpoints import load_model
from util.config.inference_flags import add_images, add_model, add_work
from util.config.parser import Parser
from util.data.unreadable import NAME as BAD_IMAGES, escaped
from util.errors import UserError, run
from util.models.features import pooled
from util.text import one_line
from util.tools.inference import Inference
from util.tools.outputs import output_path

FEATURES = 'features.npy'
NPY_HEADER = 128        # bytes, for arrays of two dimensions


def write(folder: str, batches: Iterable, dataset: Any, dtype: str, width: int) -> int:
    """Write the features, names and labels of images into a folder, see the head of this module; returns their number.

    Args:
        batches: (indices, features (M, width)); dataset: InputImages.
    Raises:
        UserError: a feature overflows `dtype`. OSError: a file cannot be written.
    """
    indices = []
    with open(os.path.join(folder, FEATURES), 'wb') as file:
        file.seek(NPY_HEADER)           # the header has the number of rows, which is known at the end
        for batch, rows in batches:
            if float(np.finfo(dtype).max) < float(rows.abs().max()) < math.inf:
                raise UserError('--dtype {}: features of {} or one of the next images overflow; use float32'.format(
                    dtype, dataset.name_of(batch[0])))
            file.write(rows.float().cpu().numpy().astype(dtype).tobytes())
            indices += batch
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
    add('--dtype', default='float32', choices=('float32', 'float16'), help='data type of the features')
    add_work(parser)
    args = parser.parse_args(argv)
    log.set_up(True, results=True)
    loaded = load_model.load_any(args.resume, args.input_size)
    pool = args.pool or ('mean' if getattr(loaded.model, 'global_pool', True) else 'cls')
    inference = Inference(loaded, args.device, args.amp)
    dataset = inference.dataset(args.images)
    width = loaded.model.pos_embed.shape[-1]
    batches = inference.run(dataset, partial(pooled, pool=pool), args.batch_size, args.num_workers, 'features')
    with output_path(args.output) as folder:
        os.mkdir(folder)
        count = write(folder, batches, dataset, args.dtype, width)
        if inference.unreadable:
            _write_lines(folder, BAD_IMAGES, ('{}\t{}'.format(escaped(path), reason)
                                              for path, reason in inference.unreadable))
        settings = {'resume': args.resume, 'model': loaded.flags['model'],
                    'input_size': loaded.flags.get('input_size') or 224, 'pool': pool,
                    'dtype': args.dtype, 'images': count, 'width': width, 'unreadable': len(inference.unreadable)}
        _write_lines(folder, 'features.json', [json.dumps(settings, indent=1)])
    print('features of {:,} images, {} numbers each: {}'.format(
        count, width, one_line(os.path.join(args.output, FEATURES))))


if __name__ == '__main__':
    run(main)
