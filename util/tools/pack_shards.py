"""Pack images into tar shards in WebDataset's layout: python -m util.tools.pack_shards SOURCE TARGET [flags]

A few hundred tar files are faster to list, to copy and to read from a shared disk than millions of small files. They
are written to a temporary folder, which is renamed to TARGET when it is complete.
"""
import io
import itertools
import json
import os
import shutil
import signal
import tarfile
import time
from argparse import Namespace
from functools import partial
from typing import List, Optional, Sequence, Tuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

from util import log
from util.config.parser import Parser, non_negative_int, number, positive_int
from util.config.train_flags import is_csv
from util.data import tar_dataset
from util.data.datasets import EXTENSIONS, ImageList, find_split, has_classes, labelled_set, pretraining_set
from util.data.file_index import UNLABELLED, PathArray
from util.data.image_files import ARRAY_EXTENSIONS, UnreadableImage, read_bytes, wrap_decode_errors
from util.data.lazy_image import open_image
from util.data.loader import iterate_loader, worker_options
from util.devices.host import default_workers
from util.errors import UserError, reworded, run
from util.log import logger, progress_bar

SETTINGS, UNREADABLE = 'packing.json', 'unreadable.txt'
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def parse_flags(argv: Optional[List[str]] = None) -> Namespace:
    """Parse the flags; a bad one ends the process with one line."""
    parser = Parser(prog='python -m util.tools.pack_shards', description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('source', metavar='SOURCE', help='a --data_path: a folder with train/ and val/, any folder of images, or CSV '
        'files')
    add('target', metavar='TARGET', help='new folder for the tar files, the --data_path for training')
    add('--short_side', type=positive_int,
        help='downscale larger images to this short side in pixels, as JPEG; default: files are packed unchanged')
    add('--quality', type=number(int, 1, 95), default=90, help='JPEG quality of downscaled images')
    add('--images_per_shard', type=positive_int, default=2000, help='images per tar file')
    add('--num_workers', type=non_negative_int, default=default_workers(), help='loader processes')
    return parser.parse_args(argv)


def main() -> None:
    args = parse_flags()
    log.set_up(True)
    torch.set_num_threads(1)
    with reworded('--data_path', 'SOURCE'):
        splits = load_splits(args.source, args.short_side)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    unreadable = pack(args, splits)
    if unreadable:
        logger.info('%d unreadable images skipped, see %s', unreadable, os.path.join(args.target, UNREADABLE))
    logger.info('%s is complete: train with --data_path %s', args.target, args.target)


def load_splits(source: str, short_side: Optional[int] = None) -> List[Tuple[str, ImageList]]:
    """(subfolder of TARGET, dataset) of each split; UserError if SOURCE is packed, or holds arrays to downscale."""
    train = source if is_csv(source) else find_split(source, 'train')
    if train and has_classes(train):
        first = labelled_set(source, 'train', val_fraction=0.)
        splits = [('train', first)]
        if find_split(source, 'val'):
            splits.append(('val', labelled_set(source, 'val', classes=first.classes)))
    else:
        splits = [('train' if train else '', pretraining_set(source))]
    for split, dataset in splits:
        if not isinstance(dataset, ImageList):
            raise UserError('SOURCE: {} is packed already, as tar files or CIFAR batches'.format(
                os.path.join(source, split)))
        if short_side and dataset.name_of(0).lower().endswith(ARRAY_EXTENSIONS):
            raise UserError('--short_side: makes JPEG files, and {} holds .npy arrays; leave it out'.format(source))
    return splits


def pack(args: Namespace, splits: Sequence[Tuple[str, ImageList]]) -> int:
    """Pack the splits into TARGET, and count unreadable images; UserError if it is in use or cannot be written."""
    target = os.path.normpath(args.target)
    if os.path.lexists(target) and (not os.path.isdir(target) or os.listdir(target)):
        raise UserError('TARGET: {} exists; choose a new folder'.format(target))
    incomplete = '{}.incomplete-{:x}'.format(target, time.time_ns())
    try:
        os.makedirs(incomplete)
        settings = {name: value for name, value in vars(args).items() if name not in ('target', 'num_workers')}
        with open(os.path.join(incomplete, SETTINGS), 'w', encoding='utf-8') as file:
            json.dump({**settings, 'images': sum(len(dataset) for _, dataset in splits)}, file, indent=1)
        unreadable = sum([_pack_split(args, incomplete, split, dataset) for split, dataset in splits], [])
        if unreadable:
            with open(os.path.join(incomplete, UNREADABLE), 'w', encoding='utf-8', errors='surrogateescape') as file:
                file.writelines(unreadable)
        os.sync()           # else a power cut could leave empty files under the final name
        os.rename(incomplete, target)
    except OSError as error:
        raise UserError('TARGET: {} cannot be written ({})'.format(target, error.strerror or error)) from error
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)
    return len(unreadable)


def _pack_split(args, folder, split, dataset):
    """Write the tar files, index and class names of a split; returns the lines of unreadable.txt."""
    folder, labelled, unreadable = os.path.join(folder, split), dataset.classes != UNLABELLED, []
    os.makedirs(folder, exist_ok=True)
    if labelled:
        with open(os.path.join(folder, tar_dataset.CLASSES), 'w', encoding='utf-8', errors='surrogateescape') as file:
            file.writelines(name.replace('\n', ' ') + '\n' for name in dataset.classes)
    names = member_names(dataset.paths)
    # Shuffled, since other tools read tar files sequentially.
    order = np.random.RandomState(0).permutation(len(dataset))
    contents = _load(Subset(dataset.paths, order), args.num_workers, args.short_side, args.quality)
    with progress_bar(os.path.normpath(os.path.join(args.target, split)), 'images', len(order)) as bar:
        for number, start in enumerate(range(0, len(order), args.images_per_shard)):
            path = os.path.join(folder, '{}-{:06d}.tar'.format(split or 'images', number))
            with tarfile.open(path, 'w', format=tarfile.GNU_FORMAT) as tar:
                for i, (data, extension, reason) in zip(order[start:start + args.images_per_shard], contents):
                    bar.update()
                    if reason:
                        unreadable.append('{}\t{}\n'.format(dataset.name_of(i), reason))
                        continue
                    stem, original = os.path.splitext(names[i])
                    _add(tar, stem + (extension or original), data)
                    if labelled:
                        _add(tar, stem + '.cls', str(dataset.labels[i]).encode())
            if bar.disable:
                done = min(start + args.images_per_shard, len(order))
                logger.info('%s: %d of %d images', os.path.basename(path), done, len(order))
    tar_dataset.write_index(folder, EXTENSIONS)
    return unreadable


def _add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def member_names(paths: PathArray) -> List[str]:
    """Names in the tar files: relative paths with a single dot, unique without their extension."""
    used, names = set(), []
    for i in range(len(paths)):
        parts = [part for part in paths.relative(i).split(os.sep) if part != os.pardir]     # `..` in a CSV file
        folder, file = os.path.split(os.path.join(*parts))
        stem, extension = os.path.splitext(file)
        stem = unique = os.path.join(folder, stem.replace('.', '_'))
        number = 1
        while unique in used:
            number += 1
            unique = '{}_{}'.format(stem, number)
        used.add(unique)
        names.append(unique + extension)
    return names


def _load(paths, num_workers, short_side, quality):
    """Yield `_load_one` of each path, from loader processes; SystemFailure if one has died."""
    loader = DataLoader(paths, batch_size=8, collate_fn=partial(_load_batch, short_side=short_side, quality=quality),
                        **worker_options(num_workers))
    # An exception raised by a signal handler during a fork would be lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    batches = iterate_loader(loader)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    return itertools.chain.from_iterable(batches)


def _load_batch(paths, **options):
    return [_load_one(path, **options) for path in paths]


def _load_one(path, short_side, quality):
    """(bytes, new extension or None, error or None): the file, or a JPEG if its short side exceeds `short_side`."""
    try:
        with wrap_decode_errors(path):
            image = open_image(path) if short_side else None
            if image is None or short_side >= min(image.height, image.width):
                return read_bytes(path), None, None
            scale = short_side / min(image.height, image.width)
            size = round(image.height * scale), round(image.width * scale)
            pixels, file = image.resized_crop(0, 0, image.height, image.width, size).numpy(), io.BytesIO()
            Image.fromarray(pixels).save(file, 'JPEG', quality=quality)
            return file.getvalue(), '.jpg', None
    except UnreadableImage as error:
        return b'', None, error.reason


if __name__ == '__main__':
    run(main)
