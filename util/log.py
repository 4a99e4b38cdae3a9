"""A logger that speaks on rank 0 alone, so that no print has to ask for the rank, and progress bars, by tqdm."""
import logging
import os
import sys
import threading

from tqdm import tqdm

from util.text import one_line

logger = logging.getLogger('mae')

# tqdm's own lock is shared with forked loader processes, of which one that is killed may hold it for ever.
tqdm.set_lock(threading.RLock())
os.register_at_fork(after_in_child=lambda: tqdm.set_lock(threading.RLock()))


class _Bar(tqdm):
    """tqdm without its thread: loader processes are forked, and no lock of a thread may be held then."""
    monitor_interval = 0


class _Handler(logging.StreamHandler):
    """Values, such as names that come from outside, stay within their line; a progress bar makes way for it."""

    def format(self, record):
        if isinstance(record.args, tuple):
            record.args = tuple(value if isinstance(value, (int, float)) else one_line(value) for value in record.args)
        return super().format(record)

    def emit(self, record):
        with _Bar.external_write_mode(self.stream):
            super().emit(record)


def set_up(is_main, results=False):
    """Send the logger's lines to standard output; processes other than the main one only warn.

    Args:
        results: standard output is for results, and the lines go to standard error.
    """
    logger.handlers[:] = [_Handler(sys.stderr if results else sys.stdout)]
    logger.propagate = False
    logger.setLevel(logging.INFO if is_main else logging.WARNING)


def progress_bar(what, unit, total=None, done=0, items=None):
    """A bar on the main process's standard error, if that is a terminal, until the work is done.

    Call its `update`, or iterate over it for each of `items`.
    Args:
        what: words before the bar; '' for none at all.
        unit: what is counted, in the plural.
        total: how many there will be, if that is known; done: how many were done before.
    """
    hidden = not what or os.environ.get('RANK', '0') != '0'
    # None: hidden where standard error is not a terminal. Without miniters a bar stands still when the pace drops;
    # without smoothing the time left counts evaluations and checkpoints too.
    return _Bar(items, one_line(what), total, leave=False, disable=hidden or None, unit=' ' + unit, initial=done,
                dynamic_ncols=True, miniters=1, smoothing=0)
