"""On-disk cache of arrays that take long to build, such as the index of a million files; invalidated by size and mtime.

The cache is in $XDG_CACHE_HOME/mae or ~/.cache/mae. Of several processes of a machine that need the same arrays, one
builds them while the others wait.
"""
import hashlib
import io
import os
import time
from contextlib import ExitStack, suppress
from typing import Any, Callable, Dict, Sequence, Tuple

import numpy as np

from util.distributed import hang_detector
from util.file_lock import file_lock
from util.files import open_regular, write_atomically
from util.log import logger

MIN_BUILD_SECONDS = 1.      # arrays that are built faster are not cached
MIN_AGE = 2.                # seconds since the last change; a younger source may change again with the same mtime

Arrays = Dict[str, np.ndarray]
Fingerprint = Tuple[str, float]         # digest of names, sizes and mtimes; the latest mtime in seconds since the epoch


def load_or_build(what: str, source: str, fingerprint_of: Callable, build: Callable, sidecar: str = '') -> Arrays:
    """Arrays of the data at `source`: from `sidecar` or the cache if up to date, else newly built and cached.

    `what` describes them in the log; `fingerprint_of` maps arrays to the fingerprint of the source as it is now.
    """
    folder = os.path.join(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'mae')
    key = _digest(what, os.path.realpath(source))[:32]
    path = os.path.join(folder, key + '.npz')
    label = '{} of {}'.format(what, source)
    arrays = _load(label, (sidecar, path), fingerprint_of)
    if arrays:
        return arrays
    with ExitStack() as lock:
        with suppress(OSError):                     # without a cache directory, every process builds its own
            os.makedirs(folder, exist_ok=True)
            lock.enter_context(file_lock(os.path.join(folder, 'lock-' + key[:2]),       # 256 at most
                                         waiting=lambda: hang_detector.heartbeat('waiting for the ' + what)))
        arrays = _load(label, (path,), fingerprint_of)      # another process may have built it meanwhile
        if arrays:
            return arrays
        started, clock = time.time(), time.monotonic()
        arrays = build()
        digest, mtime = fingerprint_of(arrays)
        if time.monotonic() - clock > MIN_BUILD_SECONDS and mtime < started - MIN_AGE:
            try:
                save(path, arrays, digest)
                logger.info('%s: cached in %s', label, path)
            except OSError as error:
                logger.info('%s: cannot be cached in %s (%s)', label, path, error.strerror)
        return arrays


def fingerprint(root: str, names: Sequence[str], *options: Any) -> Fingerprint:
    """Fingerprint of files and folders below `root`; `options` go into the digest too."""
    stats = [os.stat(os.path.join(root, name)) for name in names]
    sizes, mtimes = [stat.st_size for stat in stats], [stat.st_mtime_ns for stat in stats]
    return _digest(names, *options, sizes, mtimes), max(mtimes) / 1e9


def _digest(*values):
    return hashlib.sha256(repr(values).encode()).hexdigest()


def _load(label, paths, fingerprint_of):
    """Arrays from the first file that is up to date, or None."""
    for path in filter(None, paths):
        with suppress(Exception):       # missing or damaged
            with open_regular(path) as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            if str(arrays.pop('state')) == fingerprint_of(arrays)[0]:
                logger.info('%s: loaded from %s', label, path)
                return arrays
    return None


def save(path: str, arrays: Arrays, digest: str) -> None:
    """Atomically write arrays and the digest of their source to an .npz file; OSError if that fails."""
    file = io.BytesIO()
    np.savez(file, state=digest, **arrays)
    write_atomically(path, file.getbuffer())
