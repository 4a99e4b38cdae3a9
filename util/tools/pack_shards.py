"""Pack images into tar shards in WebDataset's layout: python -m util.tools.pack_shards SOURCE TARGET [flags]

A few hundred tar files are faster to list, to copy and to read from a shared disk than millions of small files.
"""
import io
import itertools
import os
import signal
import tarfile
from argparse import Namespace
from typing import List, Optional, Sequence, Tuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from util import log
from util.config.parser import Parser, non_negative_int, number, positive_int
from util.config.train_flags import is_csv
from util.data import tar_dataset
from util.data.datasets import ImageList, find_split, has_classes, labelled_set, pretraining_set
from util.data.file_index import UNLABELLED, PathArray
from util.data.image_files import ARRAY_EXTENSIONS, read_bytes, wrap_decode_errors
from util.data.loader import evaluation_loader
from util.devices.accelerator import Cpu
from util.devices.host import default_workers
from util.distributed.world import World
from util.errors import UserError, reworded, run
from util.log import logger, progress_bar
from util.tools.outputs import output_path

UNREADABLE = 'unreadable.txt'


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
    """Pack the splits into TARGET, and count unreadable images; UserError if it has files or cannot be written."""
    with output_path(args.target) as folder:
        unreadable = sum([_pack_split(args, folder, split, dataset) for split, dataset in splits], [])
        if unreadable:
            with open(os.path.join(folder, UNREADABLE), 'w', encoding='utf-8', errors='surrogateescape') as file:
                file.writelines(unreadable)
        os.sync()           # else a power cut could leave empty files under the final name
    return len(unreadable)


def _pack_split(args, folder, split, dataset):
    """Write the tar files and class names of a split; returns the lines of unreadable.txt."""
    folder, labelled = os.path.join(folder, split), dataset.classes != UNLABELLED
    os.makedirs(folder, exist_ok=True)
    if labelled:
        with open(os.path.join(folder, tar_dataset.CLASSES), 'w', encoding='utf-8', errors='backslashreplace') as file:
            file.writelines(name.replace('\n', ' ') + '\n' for name in dataset.classes)
    names, files = member_names(dataset.paths), _Files(dataset, args.short_side, args.quality)
    loader = evaluation_loader(files, 8, World(), False, args.num_workers, False, Cpu())
    with progress_bar(os.path.normpath(os.path.join(args.target, split)), 'images', len(files)) as bar:
        samples = itertools.chain.from_iterable(zip(*batch) for batch in loader)
        for number, shard in itertools.groupby(enumerate(samples), lambda item: item[0] // args.images_per_shard):
            path = os.path.join(folder, '{}-{:06d}.tar'.format(split or 'images', number))
            with tarfile.open(path, 'w', format=tarfile.GNU_FORMAT) as tar:
                for _, (data, extension, i) in shard:
                    stem, original = os.path.splitext(names[i])
                    _add(tar, stem + (extension or original), data)
                    if labelled:
                        _add(tar, stem + '.cls', str(dataset.labels[i]).encode())
                    bar.update()
    return ['{}\t{}\n'.format(*pair) for pair in loader.failures]


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


class _Files(Dataset):
    """(bytes, new extension or '', index) of each file, in random order, as other tools read tar files sequentially.

    A file is a JPEG if its image's short side exceeds `short_side`, else unchanged. Raises UnreadableImage.
    """

    def __init__(self, dataset: ImageList, short_side: Optional[int], quality: int):
        self.dataset, self.short_side, self.quality = dataset, short_side, quality
        self.order = np.random.RandomState(0).permutation(len(dataset))

    def __len__(self):
        return len(self.order)

    def __getitem__(self, position: int) -> Tuple[bytes, str, int]:
        index = int(self.order[position])
        path, file = self.dataset.paths[index], io.BytesIO()
        with wrap_decode_errors(path):
            image = self.dataset.load_image(index) if self.short_side else None
            if image is None or self.short_side >= min(image.height, image.width):
                return read_bytes(path), '', index
            scale = self.short_side / min(image.height, image.width)
            size = round(image.height * scale), round(image.width * scale)
            pixels = image.resized_crop(0, 0, image.height, image.width, size).numpy()
            Image.fromarray(pixels).save(file, 'JPEG', quality=self.quality)
            return file.getvalue(), '.jpg', index


if __name__ == '__main__':
    run(main)
