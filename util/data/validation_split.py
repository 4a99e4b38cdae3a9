"""Validation split of datasets without their own: a fraction of each class, the same images in every run.

Images are selected by a hash of their name within the dataset, ignoring what pack_shards changes. So all processes, a
resumed run, --eval and every tool select the same images, and a smaller fraction is a subset of a larger one.
"""
import hashlib
import os
from typing import Any, Dict, Iterable, Optional, Tuple

import numpy as np

from util.log import logger

VAL_FRACTION = .1       # of each class
VAL_SEED = 0


def validation_mask(labels: np.ndarray, names: Iterable[str], fraction: float, seed: int) -> np.ndarray:
    """(N,) boolean mask of the images in the validation split.

    Of a class with n images, fraction x n are selected, rounded; at least 1 and at most n - 1, so that a class of one
    image stays in training. A fraction of 1 selects all.
    Args:
        labels: (N,) class indices.
        names: N unique paths within the dataset.
    """
    if fraction == 1:
        return np.ones(len(labels), bool)
    hashes = np.empty(len(labels), np.uint64)
    for i, name in enumerate(names):
        text = '{}:{}'.format(seed, _stable_name(name)).encode('utf-8', 'surrogateescape')
        hashes[i] = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), 'big')
    order = np.lexsort((hashes, labels))
    mask, first = np.zeros(len(labels), bool), 0
    for count in np.bincount(labels, minlength=1):
        selected = min(max(int(count * fraction + .5), 1), max(count - 1, 0))
        mask[order[first:first + selected]] = True
        first += count
    return mask


def _stable_name(name):
    """The part of a path that stays the same when the file is packed, shrunk, or listed in a CSV file."""
    *folders, file = [part for part in name.split(os.sep) if part not in ('', os.curdir, os.pardir)]
    return os.sep.join([*folders, os.path.splitext(file)[0].replace('.', '_')])


def resolve_split(fraction: Optional[float], seed: Optional[int], has_own: bool, evaluating: bool,
                  trained_with: Optional[Dict[str, Any]]) -> Tuple[float, int]:
    """Effective (--val_fraction, --val_seed): as given, else of the flags `trained_with`, else the defaults.

    The fraction is 0 if the dataset has its own validation set, and by default if `evaluating` a checkpoint without it.
    """
    if has_own:
        if fraction:
            logger.info('warning: --val_fraction %g is ignored: the dataset has its own validation images', fraction)
        return 0., VAL_SEED
    old_fraction, old_seed = ((trained_with or {}).get(name) for name in ('val_fraction', 'val_seed'))
    recorded = None not in (old_fraction, old_seed)
    if not recorded:
        old_fraction, old_seed = 0. if evaluating else VAL_FRACTION, VAL_SEED
    fraction, seed = old_fraction if fraction is None else fraction, old_seed if seed is None else seed
    if recorded and old_fraction and (fraction > old_fraction or seed != old_seed):
        logger.info('warning: --val_fraction %g, --val_seed %d: the checkpoint was trained with %g and %d; if on the '
                    'same dataset, it was trained on some of the validation images', fraction, seed, old_fraction,
                    old_seed)
    return fraction, seed
