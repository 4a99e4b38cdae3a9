"""Packs a folder of images into tar files, WebDataset's layout: python -m util.tools.pack_shards SOURCE TARGET [flags]

Millions of small files take long to list, to copy and to read from a shared disk; a few hundred tar files do not. They
are written to a folder beside TARGET, which gets its name when it is complete.
"""
import io
import itertools
import json
import os
import shutil
import signal
import tarfile
import time
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

from util import log
from util.config.parser import Parser, non_negative_int, number, positive_int
from util.config.train_flags import is_csv
from util.data import tar_dataset
from util.data.datasets import EXTENSIONS, ImageList, find_split, has_classes, labelled_set, pretraining_set
from util.data.file_index import UNLABELLED
from util.data.image_files import ARRAY_EXTENSIONS, UnreadableImage, read_bytes, wrap_decode_errors
from util.data.lazy_image import open_image
from util.data.loader import iterate_loader, worker_options
from util.devices.host import default_workers
from util.errors import UserError, reworded, run
from util.log import logger, progress_bar

SETTINGS, UNREADABLE = 'packing.json', 'unreadable.txt'
STOPS = (signal.SIGINT, signal.SIGTERM)


def parse(argv=None):
    """The flags."""
    parser = Parser(prog='python -m util.tools.pack_shards', description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('source', metavar='SOURCE', help='images as --data_path has them: a folder with train/ and val/, any folder '
        'of images, or CSV files')
    add('target', metavar='TARGET', help='new folder for the tar files, which is then the --data_path of training')
    add('--short_side', type=positive_int,
        help='shrink larger images to this short side in pixels, as JPEG files; default: all files stay as they are')
    add('--quality', type=number(int, 1, 95), default=90, help='JPEG quality of images that are shrunk')
    add('--images_per_shard', type=positive_int, default=2000, help='images in a tar file')
    add('--num_workers', type=non_negative_int, default=default_workers(), help='processes that read and shrink images')
    return parser.parse_args(argv)


def main():
    args = parse()
    log.set_up(True)
    torch.set_num_threads(1)
    with reworded('--data_path', 'SOURCE'):
        sets = split_sets(args.source, args.short_side)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    unread = pack(args, sets)
    if unread:
        logger.info('images that could not be read and are left out: %d, see %s', unread,
                    os.path.join(args.target, UNREADABLE))
    logger.info('%s is complete: train with --data_path %s', args.target, args.target)


def split_sets(source, short_side=None):
    """(folder within TARGET, ImageList) of each part of SOURCE, which can be shrunk where that is asked for."""
    train = source if is_csv(source) else find_split(source, 'train')
    if train and has_classes(train):
        first = labelled_set(source, 'train', val_fraction=0.)
        found = [('train', first)]
        if find_split(source, 'val'):
            found.append(('val', labelled_set(source, 'val', classes=first.classes)))
    else:
        found = [('train' if train else '', pretraining_set(source))]
    for split, dataset in found:
        if not isinstance(dataset, ImageList):
            raise UserError('SOURCE: {} is packed already, as tar files or CIFAR batches'.format(
                os.path.join(source, split)))
        if short_side and dataset.name_of(0).lower().endswith(ARRAY_EXTENSIONS):
            raise UserError('--short_side: makes JPEG files, and {} holds .npy arrays; leave it out'.format(source))
    return found


def pack(args, sets):
    """Make TARGET of what `split_sets` gave; returns how many images could not be read.

    Raises:
        UserError: TARGET is there already, or cannot be written.
    """
    target = os.path.normpath(args.target)
    if os.path.lexists(target) and (not os.path.isdir(target) or os.listdir(target)):
        raise UserError('TARGET: {} is there already; name a new folder'.format(target))
    incomplete = '{}.incomplete-{:x}'.format(target, time.time_ns())
    try:
        os.makedirs(incomplete)
        settings = {name: value for name, value in vars(args).items() if name not in ('target', 'num_workers')}
        with open(os.path.join(incomplete, SETTINGS), 'w', encoding='utf-8') as file:
            json.dump({**settings, 'images': sum(len(dataset) for _, dataset in sets)}, file, indent=1)
        unread = sum([_pack_split(args, incomplete, split, dataset) for split, dataset in sets], [])
        if unread:
            with open(os.path.join(incomplete, UNREADABLE), 'w', encoding='utf-8', errors='surrogateescape') as file:
                file.writelines(unread)
        os.sync()           # else a power cut could leave files that are empty below the final name
        os.rename(incomplete, target)
    except OSError as error:
        raise UserError('TARGET: {} cannot be written ({})'.format(target, error.strerror or error)) from error
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)
    return len(unread)


def _pack_split(args, folder, split, dataset):
    """Write the tar files of a split, its index and its classes below `folder`; returns lines about unread images."""
    folder, labelled, unread = os.path.join(folder, split), dataset.classes != UNLABELLED, []
    os.makedirs(folder, exist_ok=True)
    if labelled:
        with open(os.path.join(folder, tar_dataset.CLASSES), 'w', encoding='utf-8', errors='surrogateescape') as file:
            file.writelines(name.replace('\n', ' ') + '\n' for name in dataset.classes)
    names = member_names(dataset.paths)
    # Shuffled, so that tools which read tar files from their beginning meet the classes mixed.
    order = np.random.RandomState(0).permutation(len(dataset))
    contents = _read(Subset(dataset.paths, order), args.num_workers, args.short_side, args.quality)
    with progress_bar(os.path.normpath(os.path.join(args.target, split)), 'images', len(order)) as bar:
        for number, start in enumerate(range(0, len(order), args.images_per_shard)):
            path = os.path.join(folder, '{}-{:06d}.tar'.format(split or 'images', number))
            with tarfile.open(path, 'w', format=tarfile.GNU_FORMAT) as tar:
                for i, (data, ending, reason) in zip(order[start:start + args.images_per_shard], contents):
                    bar.update()
                    if reason:
                        unread.append('{}\t{}\n'.format(dataset.name_of(i), reason))
                        continue
                    stem, own = os.path.splitext(names[i])
                    _add(tar, stem + (ending or own), data)
                    if labelled:
                        _add(tar, stem + '.cls', str(dataset.labels[i]).encode())
            if bar.disable:
                done = min(start + args.images_per_shard, len(order))
                logger.info('%s: %d of %d images', os.path.basename(path), done, len(order))
    tar_dataset.write_index(folder, EXTENSIONS)
    return unread


def _add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def member_names(paths):
    """The name in a tar file of each path: folders as they are, one dot, none twice but for the ending."""
    taken, names = set(), []
    for i in range(len(paths)):
        inside = paths.relative(i).split(os.sep)
        folder, file = os.path.split(os.path.join(*(part for part in inside if part != os.pardir)))     # from CSV files
        stem, ending = os.path.splitext(file)
        stem = unique = os.path.join(folder, stem.replace('.', '_'))
        number = 1
        while unique in taken:
            number += 1
            unique = '{}_{}'.format(stem, number)
        taken.add(unique)
        names.append(unique + ending)
    return names


def _read(paths, num_workers, short_side, quality):
    """(bytes, ending or None, why it cannot be read) of each file, by processes; see `_content`.

    Raises:
        SystemFailure: one of the processes dies.
    """
    loader = DataLoader(paths, batch_size=8, collate_fn=partial(_contents, short_side=short_side, quality=quality),
                        **worker_options(num_workers))
    # What a signal raises while Python forks would be lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    batches = iterate_loader(loader)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    return itertools.chain.from_iterable(batches)


def _contents(paths, **options):
    return [_content(path, **options) for path in paths]


def _content(path, short_side, quality):
    """(bytes of an image file, None, None); (those of a JPEG file, '.jpg', None) of one whose short side is longer."""
    try:
        with wrap_decode_errors(path):
            picture = open_image(path) if short_side else None
            if picture is None or short_side >= min(picture.height, picture.width):
                return read_bytes(path), None, None
            scale = short_side / min(picture.height, picture.width)
            size = round(picture.height * scale), round(picture.width * scale)
            pixels, file = picture.resized_crop(0, 0, picture.height, picture.width, size).numpy(), io.BytesIO()
            Image.fromarray(pixels).save(file, 'JPEG', quality=quality)
            return file.getvalue(), '.jpg', None
    except UnreadableImage as error:
        return b'', None, error.reason


if __name__ == '__main__':
    run(main)
