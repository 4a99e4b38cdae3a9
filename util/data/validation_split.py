"""The validation images of data that have none of their own: a share of each class, the same in every run.

An image is chosen by a hash of its name within the data, as far as pack_shards leaves that alone. So all processes
choose alike, as do a resumed run, --eval and every other tool; and a smaller share is a part of a larger one.
"""
import hashlib
import os

import numpy as np

from util.distributed import hang_detector
from util.log import logger

VAL_FRACTION = .1       # of each class
VAL_SEED = 0


def held_out(labels, names, fraction, seed):
    """Which images are for validation: (N,) truth values.

    Of a class with n images it is fraction x n, rounded; at least 1 and at most n - 1, so that a class of one image
    stays in training. A fraction of 1 takes all.

    Args:
        labels: (N,) numbers.
        names: N paths within the data, which tell the images apart.
    """
    labels = np.asarray(labels)
    if fraction == 1:
        return np.ones(len(labels), bool)
    hashes = np.empty(len(labels), np.uint64)
    salt = '{}:'.format(seed).encode()
    for i, name in enumerate(names):
        if i % 100000 == 0:
            hang_detector.heartbeat('selecting validation images')
        text = salt + lasting(name).encode('utf-8', 'surrogateescape')
        hashes[i] = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), 'big')
    order = np.lexsort((hashes, labels))
    chosen, first = np.zeros(len(labels), bool), 0
    for count in np.bincount(labels, minlength=1):
        wanted = min(max(int(count * fraction + .5), 1), max(count - 1, 0))
        chosen[order[first:first + wanted]] = True
        first += count
    return chosen


def lasting(name):
    """What a path keeps where its file is packed into a tar file, shrunk, or listed in a CSV file beside the folder."""
    *folders, file = [part for part in name.split(os.sep) if part not in ('', os.curdir, os.pardir)]
    return os.sep.join([*folders, os.path.splitext(file)[0].replace('.', '_')])


def split_settings(fraction, seed, own, evaluating, trained_with):
    """(fraction, seed) of a run: as given, else those of the checkpoint that it starts from, else the defaults.

    Args:
        fraction, seed: the flags, None where not given.
        own: whether the data have a validation set of their own, of which checkpoints are to tell by a fraction of 0.
        evaluating: hold nothing out where no training is known to have done so.
        trained_with: the checkpoint's flags as a dict; None where it keeps none.
    """
    if own:
        if fraction:
            logger.info('warning: --val_fraction %g is not used: the data have validation images of their own',
                        fraction)
        return 0., VAL_SEED
    old_fraction, old_seed = ((trained_with or {}).get(name) for name in ('val_fraction', 'val_seed'))
    known = None not in (old_fraction, old_seed)
    if not known:
        old_fraction, old_seed = 0. if evaluating else VAL_FRACTION, VAL_SEED
    fraction, seed = old_fraction if fraction is None else fraction, old_seed if seed is None else seed
    if known and old_fraction and (fraction > old_fraction or seed != old_seed):
        logger.info('warning: --val_fraction %g, --val_seed %d: the checkpoint was trained with %g and %d; if on these '
                    'data, validation images are among those that it was trained on', fraction, seed, old_fraction,
                    old_seed)
    return fraction, seed
