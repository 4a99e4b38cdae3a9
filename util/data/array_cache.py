"""On-disk cache of arrays that take long to build, such as the index of a million files; invalidated by size and mtime.

The cache is in $XDG_CACHE_HOME/mae or ~/.cache/mae.
"""
import hashlib
import io
import os
import time
from contextlib import suppress
from typing import Callable, Dict, List

import numpy as np

from util.data.image_files import EXTENSIONS
from util.files import open_regular, write_atomically
from util.log import logger

MIN_BUILD_SECONDS = 1.      # arrays that are built faster are not cached
MIN_AGE = 2.                # seconds since the last change; a younger source may change again with the same mtime

Arrays = Dict[str, np.ndarray]


def load_or_build(what: str, root: str, sources_of: Callable[[Arrays], List[str]],
                  build: Callable[[], Arrays]) -> Arrays:
    """Arrays about the images below `root`: from the cache if up to date, else newly built and cached.

    `what` describes them in the log; `sources_of` lists the files and folders, relative to `root`, that determine them.
    """
    folder = os.path.join(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'mae')
    key = _digest(what, os.path.realpath(root), sorted(EXTENSIONS))[:32]
    path, label = os.path.join(folder, key + '.npz'), '{} of {}'.format(what, root)
    with suppress(Exception):                       # missing or damaged
        with open_regular(path) as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if str(arrays.pop('state')) == _fingerprint(root, sources_of(arrays))[0]:
            logger.info('%s: loaded from %s', label, path)
            return arrays
    started = time.time()
    arrays = build()
    digest, mtime = _fingerprint(root, sources_of(arrays))
    if time.time() - started > MIN_BUILD_SECONDS and mtime < started - MIN_AGE:
        content = io.BytesIO()
        np.savez(content, state=digest, **arrays)
        with suppress(OSError):
            os.makedirs(folder, exist_ok=True)
            write_atomically(path, content.getbuffer())
            logger.info('%s: cached in %s', label, path)
    return arrays


def _fingerprint(root, names):
    """(digest of names, sizes and mtimes, latest mtime in seconds since the epoch) of files and folders."""
    stats = [os.stat(os.path.join(root, name)) for name in names]
    mtimes = [stat.st_mtime_ns for stat in stats]
    return _digest(names, [stat.st_size for stat in stats], mtimes), max(mtimes) / 1e9


def _digest(*values):
    return hashlib.sha256(repr(values).encode()).hexdigest()
