"""Hang detection: a thread aborts the process with all stack traces if the main thread makes no progress for too long.

Each process monitors itself and opens no connection. If one rank hangs, the others wait for it in a collective
operation until their own timeout, and each reports its own phase. On one node the launcher ends the remaining ones.
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


class HangDetector(threading.Thread):
    """Monitors the main thread of rank `rank` of `world_size`; `hang_timeout` in seconds."""

    def __init__(self, hang_timeout: float, rank: int, world_size: int):
        super().__init__(name='hang detector', daemon=True)
        self._timeout = hang_timeout
        self._process = 'rank {} of {} (host {}, pid {})'.format(rank, world_size, socket.gethostname(), os.getpid())
        self.phase, self.last_heartbeat = 'starting', time.monotonic()
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(TICK):
            # Re-armed at each tick, as a fallback: an extension that hangs while it holds the GIL blocks this thread,
            # but not faulthandler's, which is written in C.
            faulthandler.dump_traceback_later(self._timeout + SAVING, exit=True, file=sys.__stderr__)
            idle = time.monotonic() - self.last_heartbeat
            # Checkpoints are written by a non-daemon thread.
            saving = any(not each.daemon and each is not threading.main_thread() for each in threading.enumerate())
            if idle >= self._timeout + SAVING * saving:
                line = 'error: {}: no progress for {:.0f} s while {}; see --hang_timeout; stack traces:\n'.format(
                    self._process, idle, self.phase)
                os.write(sys.__stderr__.fileno(), line.encode())    # the main thread may hold the lock of sys.stderr
                faulthandler.dump_traceback(sys.__stderr__)
                os._exit(FAILURE_STATUS)
        faulthandler.cancel_dump_traceback_later()


_detector = None


def start(hang_timeout: float, rank: int = 0, world_size: int = 1) -> None:
    """Monitor this process until `stop`; without a heartbeat for `hang_timeout` seconds it exits with status 70."""
    global _detector
    _detector = HangDetector(hang_timeout, rank, world_size)
    _detector.start()


def stop() -> None:
    """Stop monitoring."""
    global _detector
    if _detector is not None:
        _detector.stopped.set()
        _detector.join()
        _detector = None


def heartbeat(phase: str) -> None:
    """Report progress; `phase` completes 'no progress while ...', such as 'listing files of FOLDER'."""
    if _detector is not None:
        _detector.phase, _detector.last_heartbeat = phase, time.monotonic()


def monitored(batches: Iterable, loop: str, start: int = 0) -> Iterator[Tuple[int, Any]]:
    """enumerate(batches, start) with heartbeats; `loop` names the loop in error messages, such as 'epoch 3'."""
    heartbeat('waiting for data ({}, iteration {})'.format(loop, start))
    for i, batch in enumerate(batches, start):
        heartbeat('computing ({}, iteration {})'.format(loop, i))
        yield i, batch
        heartbeat('waiting for data ({}, iteration {})'.format(loop, i + 1))
    heartbeat('finishing {}'.format(loop))
