"""Progress bars, by tqdm: on the terminal of the main process, gone when the work is done; nothing elsewhere."""
import os
import threading

from tqdm import tqdm

from util.errors import one_line

# tqdm's own lock is shared with forked loader processes, of which one that is killed may hold it for ever.
tqdm.set_lock(threading.RLock())
os.register_at_fork(after_in_child=lambda: tqdm.set_lock(threading.RLock()))


class Bar(tqdm):
    """tqdm without its thread: loader processes are forked, and no lock of a thread may be held then."""
    monitor_interval = 0


def progress_bar(what, unit, total=None, done=0, items=None):
    """A tqdm bar on standard error: call its `update`, or iterate over it for each of `items`.

    Args:
        what: words before the bar; '' for none at all.
        unit: what is counted, in the plural.
        total: how many there will be, if that is known; done: how many were done before.
    """
    hidden = not what or os.environ.get('RANK', '0') != '0'
    # None: hidden where standard error is not a terminal. Without miniters a bar stands still when the pace drops;
    # without smoothing the time left counts evaluations and checkpoints too.
    return Bar(items, one_line(what), total, leave=False, disable=hidden or None, unit=' ' + unit, initial=done,
               dynamic_ncols=True, miniters=1, smoothing=0)
