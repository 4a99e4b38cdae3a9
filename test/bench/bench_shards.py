"""What tar files change: python test/bench/bench_shards.py FOLDER PACKED

PACKED is what util.tools.pack_shards made of FOLDER. The images of both are taken at random places, as a training
epoch takes them: read alone, and made into batches for pre-training; with the files dropped from the page cache, and
from it. One process with one thread, round by round in turn; medians are shown. How much came from the disk indeed is
the system's count; where it is 0, nothing could be dropped, and "cold" means nothing.
"""
import argparse
import json
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import util  # noqa: F401  (before torch: it keeps `import torch` from loading a broken torch_npu)

import numpy as np
import torch

from util.data.datasets import pretraining_set
from util.devices.accelerator import Cpu
from util.distributed.world import World
from util.data.loader import training_loader
from util.data.transforms import Normalize, pretraining_transform


def files_below(folder):
    return [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]


def drop(paths):
    """Ask the system to forget the contents of files."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)            # what is not written yet is not forgotten
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def from_disk():
    """Bytes that this process has had fetched from a disk; None where the system does not count."""
    try:
        with open('/proc/self/io') as file:
            return dict(line.split(': ') for line in file.read().splitlines())['read_bytes']
    except (OSError, KeyError):
        return None


def read(dataset):
    """Take every image of an epoch: the bytes, and the header."""
    for index in np.random.permutation(len(dataset)):
        dataset[int(index)]


def batches(loader):
    """Take every batch of an epoch, normalised."""
    normalize = Normalize()
    for images, _ in loader:
        normalize(images)


def measured(work, images, paths):
    """(images/s, MB from the disk) of a pass; `paths` are forgotten first."""
    drop(paths)
    before, begun = from_disk(), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - begun, from_disk()
    return images / seconds, 0. if before is None else (int(after) - int(before)) / 1e6


def works(folder, batch_size, input_size):
    """{what is done: (work, images)} with a folder of images or tar files."""
    plain, whole = pretraining_set(folder), pretraining_set(folder, pretraining_transform(input_size))
    loader = training_loader(whole, batch_size, World(), 0, 0, False, Cpu())
    return {'read': (lambda: read(plain), len(plain)), 'batches': (lambda: batches(loader), len(loader) * batch_size)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', help='of images, flat or nested')
    parser.add_argument('packed', help='what python -m util.tools.pack_shards made of it')
    parser.add_argument('--batch_size', type=int, default=32)
    parser.add_argument('--input_size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--json', help='file to write the figures to')
    args = parser.parse_args()
    torch.set_num_threads(1)
    sources = {folder: (works(folder, args.batch_size, args.input_size), files_below(folder))
               for folder in (args.folder, args.packed)}
    for folder, (todo, paths) in sources.items():
        print('{}: {} images in {} files, {:.1f} MB'.format(folder, todo['read'][1], len(paths),
                                                            sum(map(os.path.getsize, paths)) / 1e6))
    print('\n| images/s (MB from the disk) | folder | tar files |\n|---|---|---|')
    results = {}
    for what in ('read', 'batches'):
        for cache in ('cold', 'warm'):
            passes = [[measured(*todo[what], paths if cache == 'cold' else ()) for todo, paths in sources.values()]
                      for _ in range(args.rounds)]
            found = [[statistics.median(values) for values in zip(*source)] for source in zip(*passes)]
            results['{}, {}'.format(what, cache)] = found
            print('| {}, {} | {} |'.format(what, cache, ' | '.join(
                '{:.0f} ({:.1f})'.format(*values) for values in found)), flush=True)
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(results, file, indent=1)


if __name__ == '__main__':
    main()
