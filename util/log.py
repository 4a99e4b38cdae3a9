"""The logger, at level INFO on rank 0 only, and progress bars (tqdm) that log lines do not tear."""
import logging
import os
import sys
import threading
from typing import Iterable, Optional

from tqdm import tqdm

from util.text import one_line

logger = logging.getLogger('mae')

# tqdm's default lock is shared with forked loader processes: one killed while holding it would block all others.
tqdm.set_lock(threading.RLock())
os.register_at_fork(after_in_child=lambda: tqdm.set_lock(threading.RLock()))
tqdm.monitor_interval = 0       # no monitor thread, which could hold a lock when loader processes are forked


class _Handler(logging.StreamHandler):
    """Escapes values, such as file names, to one line, and clears the progress bar while writing."""

    def format(self, record):
        if isinstance(record.args, tuple):
            record.args = tuple(value if isinstance(value, (int, float)) else one_line(value) for value in record.args)
        return super().format(record)

    def emit(self, record):
        with tqdm.external_write_mode(self.stream):
            super().emit(record)


def set_up(is_main: bool, results: bool = False) -> None:
    """Log everything on the main process, warnings on the others; to standard error if stdout is for results."""
    logger.handlers[:] = [_Handler(sys.stderr if results else sys.stdout)]
    logger.propagate = False
    logger.setLevel(logging.INFO if is_main else logging.WARNING)


def progress_bar(what: str, unit: str, total: Optional[int] = None, done: int = 0,
                 items: Optional[Iterable] = None) -> tqdm:
    """A progress bar on the main process, where standard error is a terminal: call `update`, or iterate over it.

    No bar for `what` ''. `unit`: plural noun; `total`: number of steps, if known; `done`: those before this process.
    """
    hidden = not what or os.environ.get('RANK', '0') != '0'
    # None: hidden unless standard error is a terminal. Without miniters a bar freezes when the rate drops; without
    # smoothing the remaining time includes evaluations and checkpoints.
    return tqdm(items, one_line(what), total, leave=False, disable=hidden or None, unit=' ' + unit, initial=done,
                dynamic_ncols=True, miniters=1, smoothing=0)
