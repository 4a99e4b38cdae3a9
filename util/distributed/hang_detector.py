"""Hang detection: a thread aborts the process with all stack traces if the main thread makes no progress for too long.

If one rank hangs, the others wait for it in a collective operation until their own timeout; each reports its own phase.
"""
import faulthandler
import os
import socket
import sys
import threading
import time
from typing import Any, Iterable, Iterator, Tuple

from util.errors import FAILURE_STATUS

TICK = 1.               # seconds between two checks
SAVING = 60.            # additional seconds while a checkpoint is being written

_watcher, _stopped = None, threading.Event()
_progress = 'starting', 0.      # phase and time of the last heartbeat
_accelerator = None             # see start
_begun, _is_first = set(), False            # kinds of loops so far; whether the first iteration of one is running


def start(hang_timeout: float, rank: int, world_size: int, accelerator: Any) -> None:
    """Monitor this process until `stop`; without a heartbeat for `hang_timeout` seconds it exits with status 70.

    The first iteration of each kind of loop may take `accelerator.first_iteration` seconds, if that is more; it then
    ends with a wait for the device, which is not to come in a later iteration.
    """
    global _watcher, _accelerator, _is_first
    _accelerator, _is_first = accelerator, False
    _begun.clear()
    process = 'rank {} of {} (host {}, pid {})'.format(rank, world_size, socket.gethostname(), os.getpid())
    _stopped.clear()
    heartbeat('starting')
    _watcher = threading.Thread(target=_watch, args=(hang_timeout, process), name='hang detector', daemon=True)
    _watcher.start()


def _watch(hang_timeout, process):
    while not _stopped.wait(TICK):
        # Re-armed at each tick, as a fallback: an extension that hangs while it holds the GIL blocks this thread, but
        # not faulthandler's, which is written in C.
        limit = max(hang_timeout, _accelerator.first_iteration * _is_first)
        faulthandler.dump_traceback_later(limit + SAVING, exit=True, file=sys.__stderr__)
        phase, last_heartbeat = _progress
        idle = time.monotonic() - last_heartbeat
        # Checkpoints are written by a non-daemon thread.
        saving = any(not each.daemon and each is not threading.main_thread() for each in threading.enumerate())
        if idle >= limit + SAVING * saving:
            line = 'error: {}: no progress for {:.0f} s while {}; see --hang_timeout; stack traces:\n'.format(
                process, idle, phase)
            os.write(sys.__stderr__.fileno(), line.encode())    # the main thread may hold the lock of sys.stderr
            faulthandler.dump_traceback(sys.__stderr__)
            os._exit(FAILURE_STATUS)
    faulthandler.cancel_dump_traceback_later()


def stop() -> None:
    """Stop monitoring."""
    if _watcher is not None:
        _stopped.set()
        _watcher.join()


def heartbeat(phase: str) -> None:
    """Report progress; `phase` completes 'no progress while ...', such as 'listing files of FOLDER'."""
    global _progress
    _progress = phase, time.monotonic()


def monitored(batches: Iterable, loop: str, start: int = 0) -> Iterator[Tuple[int, Any]]:
    """enumerate(batches, start) with heartbeats; `loop` names the loop in error messages, such as 'epoch 3'."""
    global _is_first
    kind = loop.split()[0]
    first, _is_first = kind not in _begun, False
    _begun.add(kind)
    heartbeat('waiting for data ({}, iteration {})'.format(loop, start))
    for i, batch in enumerate(batches, start):
        _is_first = first
        heartbeat('computing ({}, iteration {})'.format(loop, i))
        yield i, batch
        if first and _accelerator and _accelerator.first_iteration:
            _accelerator.synchronize()
        first = _is_first = False
        heartbeat('waiting for data ({}, iteration {})'.format(loop, i + 1))
    _is_first = first       # without a batch, this process waits for the first iteration of others
    heartbeat('finishing {}'.format(loop))
