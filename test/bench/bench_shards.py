"""Tar shards against image files: python test/bench/bench_shards.py FOLDER PACKED

PACKED is the output of util.tools.pack_shards for FOLDER. Images are accessed in random order, as in a training epoch:
only read, and loaded as pre-training batches; with a cold page cache (files dropped from it) and a warm one. One
process with one thread, in alternating rounds; medians are shown. The MB read from disk are the kernel's count: if it
is 0, the cache could not be dropped, and "cold" is meaningless.
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
    """Drop files from the page cache."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)            # dirty pages are not dropped
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def from_disk():
    """Bytes that this process has read from disk; None if the kernel does not count them."""
    try:
        with open('/proc/self/io') as file:
            return dict(line.split(': ') for line in file.read().splitlines())['read_bytes']
    except (OSError, KeyError):
        return None


def read(dataset):
    """Read every image of an epoch: the bytes, and the header."""
    for index in np.random.permutation(len(dataset)):
        dataset[int(index)]


def batches(loader):
    """Load and normalize every batch of an epoch."""
    normalize = Normalize()
    for images, _ in loader:
        normalize(images)


def measured(work, images, paths):
    """(images/s, MB from disk) of a pass, after dropping `paths` from the page cache."""
    drop(paths)
    before, begun = from_disk(), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - begun, from_disk()
    return images / seconds, 0. if before is None else (int(after) - int(before)) / 1e6


def works(folder, batch_size, input_size):
    """{name: (function, images)} for a folder of images or tar files."""
    plain, whole = pretraining_set(folder), pretraining_set(folder, pretraining_transform(input_size))
    loader = training_loader(whole, batch_size, World(), 0, 0, False, Cpu())
    return {'read': (lambda: read(plain), len(plain)), 'batches': (lambda: batches(loader), len(loader) * batch_size)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', help='image folder, flat or nested')
    parser.add_argument('packed', help='output of python -m util.tools.pack_shards for it')
    parser.add_argument('--batch_size', type=int, default=32)
    parser.add_argument('--input_size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--json', help='output file for the results')
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
