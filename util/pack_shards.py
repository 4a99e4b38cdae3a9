"""Packs a folder of images into tar files, WebDataset's layout: python -m util.pack_shards SOURCE TARGET [flags]

Millions of small files take long to list, to copy and to read from a shared disk; a few hundred tar files do not. Every
tar file is read again and compared before it gets its name. A packing that was stopped goes on when started again.
"""
import hashlib
import io
import json
import os
import signal
import tarfile
import time
import zlib

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from util import log, remember, shards, workers
from util.arguments import is_csv
from util.datasets import EXTENSIONS, ImageList, has_classes, labelled_set, place, pretraining_set
from util.errors import UserError, first_line, instead_of, run
from util.files import write_atomically
from util.images import ARRAYS, UnreadableImage, open_file
from util.loader import default_workers
from util.log import logger
from util.parser import COUNT, INDEX, Parser, number
from util.pictures import open_picture
from util.progress_bar import progress_bar
from util.throughput import duration

SETTINGS, UNREADABLE = 'packing.json', 'unreadable.txt'
_stopped, _forking = [], []         # signals that asked for the end; whether a loader process is being started


def parse(argv=None):
    """The flags."""
    parser = Parser(prog='python -m util.pack_shards', description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('source', metavar='SOURCE', help='images as --data_path has them: a folder with train/ and val/, any folder '
        'of images, or CSV files')
    add('target', metavar='TARGET', help='new folder for the tar files, which is then the --data_path of training')
    add('--short_side', type=COUNT, help='shrink larger images to this short side in pixels, as JPEG files; default: '
        'all files stay as they are')
    add('--quality', type=number(int, 1, 95), default=90, help='JPEG quality of images that are shrunk')
    add('--images_per_shard', type=COUNT, default=2000, help='images in a tar file')
    add('--num_workers', type=INDEX, default=default_workers(), help='processes that read and shrink images')
    return parser.parse_args(argv)


def main():
    args = parse()
    log.set_up(True)
    os.register_at_fork(before=lambda: _forking.append(True), after_in_parent=_forking.clear,
                        after_in_child=_forking.clear)
    for wanted in (signal.SIGINT, signal.SIGTERM):
        signal.signal(wanted, stop)
    torch.set_num_threads(1)
    with instead_of('--data_path', 'SOURCE'):
        sets = split_sets(args.source, args.short_side)
    open_target(args, sets)
    unread = sum([pack(args, split, dataset) for split, dataset in sets])
    if unread:
        logger.info('%d image%s could not be read and %s left out: %s', unread, *(
            ('', 'is') if unread == 1 else ('s', 'are')), os.path.join(args.target, UNREADABLE))
    logger.info('%s is complete: train with --data_path %s', args.target, args.target)


def stop(number, frame):
    """End by KeyboardInterrupt: now, or at the next image where Python would drop it, as at a fork."""
    _stopped.append(number)
    if not _forking:
        raise KeyboardInterrupt


def split_sets(source, short_side=None):
    """(folder within TARGET, ImageList) of each part of SOURCE, which can be shrunk where that is asked for."""
    if not (os.path.isdir(source) or is_csv(source)):
        raise UserError('SOURCE: {} is no folder and no CSV file'.format(source))
    train = source if is_csv(source) else place(source, 'train')
    if train and has_classes(train):
        first = labelled_set(source, 'train', val_fraction=0.)
        found = [('train', first)] + ([('val', labelled_set(source, 'val', classes=first.classes))]
                                      if place(source, 'val') else [])
    else:
        found = [('train' if train else '', pretraining_set(source))]
    for split, dataset in found:
        if not isinstance(dataset, ImageList):
            raise UserError('SOURCE: {} is packed already, as tar files or CIFAR batches'.format(
                os.path.join(source, split)))
        if short_side and dataset.name_of(0).lower().endswith(ARRAYS):
            raise UserError('--short_side: makes JPEG files, and {} holds .npy arrays; leave it out'.format(source))
    return found


def open_target(args, sets):
    """Make TARGET, or see that it is of an earlier packing of the same.

    Raises:
        UserError: it holds anything else.
    """
    names = hashlib.sha256()
    for _, dataset in sets:
        for i in range(len(dataset)):
            names.update(os.fsencode(dataset.name_of(i)) + b'\0')
    settings = {'source': os.path.realpath(args.source), 'images': sum(len(dataset) for _, dataset in sets),
                'sha256_of_names': names.hexdigest(), 'short_side': args.short_side,
                'quality': args.quality if args.short_side else None, 'images_per_shard': args.images_per_shard}
    path = os.path.join(args.target, SETTINGS)
    try:
        os.makedirs(args.target, exist_ok=True)
        if not os.listdir(args.target):
            return write_atomically(path, json.dumps(settings, indent=1).encode())
        with open(path, encoding='utf-8') as file:
            if json.load(file) == settings:
                return None
    except FileNotFoundError:
        raise UserError('TARGET: {} is not empty; name a new folder'.format(args.target)) from None
    except (OSError, ValueError) as error:
        raise UserError('TARGET: {} cannot be used ({})'.format(path, first_line(error))) from error
    raise UserError('TARGET: {} is of a packing of other images or with other flags ({}); name a new folder'.format(
        args.target, path))


def pack(args, split, dataset):
    """Write the tar files of a split that are not there yet; returns how many images could not be read."""
    folder = os.path.join(args.target, split)
    labelled = dataset.classes != ['unlabelled']
    os.makedirs(folder, exist_ok=True)
    if labelled:
        write_classes(os.path.join(folder, shards.CLASSES), dataset.classes)
    names = member_names(dataset.paths)
    # Shuffled, so that tools which read tar files from their beginning meet the classes mixed.
    order = np.random.RandomState(0).permutation(len(dataset))
    places = range(0, len(order), args.images_per_shard)
    shares = [(os.path.join(folder, '{}-{:06d}.tar'.format(split or 'images', i)),
               order[start:start + args.images_per_shard]) for i, start in enumerate(places)]
    missing = [(path, share) for path, share in shares if not os.path.exists(path)]
    todo = np.concatenate([share for _, share in missing] or [order[:0]])
    unreadable, skipped, done, began = 0, len(order) - len(todo), 0, time.monotonic()
    with progress_bar(os.path.normpath(folder), 'images', len(order), skipped) as bar:
        contents = counted(Contents(dataset.paths, todo, args.short_side, args.quality).read(args.num_workers), bar)
        for path, share in missing:
            labels = [str(dataset.labels[i]).encode() if labelled else None for i in share]
            unread = write(path, zip([names[i] for i in share], labels, contents))
            note(os.path.join(args.target, UNREADABLE), unread)
            os.replace(path + '.part', path)
            unreadable, done = unreadable + len(unread), done + len(share)
            if bar.disable:
                pace = (time.monotonic() - began) / done
                logger.info('%s: %d of %d images, %.0f images/s, %s left', path, skipped + done, len(order), 1 / pace,
                            duration(pace * (len(order) - skipped - done)))
    made, _ = shards.indexed(folder, shards.tar_files(folder), EXTENSIONS)
    remember.save(os.path.join(folder, shards.INDEX), made)
    return unreadable


def counted(samples, bar):
    """The samples, each counted; a signal that has not ended the program yet does it here."""
    for sample in samples:
        if _stopped:
            raise KeyboardInterrupt
        bar.update()
        yield sample


def write_classes(path, classes):
    """Write class names by label, a line each."""
    broken = [name for name in classes if '\n' in name]
    if broken:
        raise UserError('SOURCE: the class folder {!r} has a line break in its name; rename it'.format(broken[0]))
    with open(path, 'w', encoding='utf-8', errors='surrogateescape') as file:
        file.writelines(name + '\n' for name in classes)


def member_names(paths):
    """The name in a tar file of each path: folders as they are, one dot, none twice but for the ending."""
    taken, names = set(), []
    for path in paths:
        inside = os.path.relpath(path, paths.root or os.curdir).split(os.sep)
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


class Contents(Dataset):
    """(path, bytes, ending, why it cannot be read) of image files; the ending is None where it stays as it is.

    Args:
        paths, order: of files, and which of them in which order.
    """

    def __init__(self, paths, order, short_side, quality):
        self.paths, self.order, self.short_side, self.quality = paths, order, short_side, quality

    def __len__(self):
        return len(self.order)

    def __getitem__(self, index):
        path = self.paths[self.order[index]]
        try:
            data = self._shrunk(path) if self.short_side else None
            if data is not None:
                return path, data, '.jpg', None
            with open_file(path) as file:
                return path, file.read(), None, None
        except UnreadableImage as error:
            return path, b'', None, error.reason
        except OSError as error:
            return path, b'', None, error.strerror

    def _shrunk(self, path):
        """An image as an upright JPEG file; None where it is small enough."""
        picture = open_picture(path)
        scale = self.short_side / min(picture.height, picture.width)
        if scale >= 1:
            return None
        size = round(picture.height * scale), round(picture.width * scale)
        pixels = picture.part(0, 0, picture.height, picture.width, size).numpy()
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, 'JPEG', quality=self.quality)
        return file.getvalue()

    def read(self, num_workers):
        """All of them in order, by processes; raises util.errors.Fault where one of these dies."""
        loader = DataLoader(self, batch_size=8, collate_fn=list, **workers.options(num_workers))
        iterator = workers.start(loader)
        for batch in iter(lambda: workers.following(iterator), None):
            yield from batch


def write(path, samples):
    """Write path + '.part' and see that it holds what it should; returns lines about the images left out.

    Args:
        samples: (name, label or None, (path, bytes, ending, why it cannot be read)) of each.
    Raises:
        UserError: it cannot be written, or holds something else when it is read again.
    """
    sums, unread, part = [], [], path + '.part'
    try:
        with open(part, 'wb') as file:
            with tarfile.open(fileobj=file, mode='w', format=tarfile.GNU_FORMAT) as tar:
                for name, label, (source, image, ending, reason) in samples:
                    if reason:
                        unread.append('{}\t{}\n'.format(source, reason))
                        continue
                    stem, own = os.path.splitext(name)
                    pieces = [(stem + (ending or own), image), (stem + '.cls', label)]
                    for piece, data in pieces if label else pieces[:1]:
                        info = tarfile.TarInfo(piece)
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
                        sums.append((piece, zlib.crc32(data)))
            file.flush()
            os.fsync(file.fileno())
        with tarfile.open(part, 'r:') as tar:
            again = [(member.name, zlib.crc32(tar.extractfile(member).read())) for member in tar]
    except (OSError, tarfile.TarError) as error:
        raise UserError('TARGET: {} cannot be written ({})'.format(part, first_line(error))) from error
    if again != sums:
        raise UserError('TARGET: {} holds something else than was written; is the disk in order?'.format(part))
    return unread


def note(path, lines):
    """Add lines to a file, if there are any."""
    if lines:
        with open(path, 'a', encoding='utf-8', errors='surrogateescape') as file:
            file.writelines(lines)


if __name__ == '__main__':
    run(main)
