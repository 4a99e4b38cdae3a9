"""Hang detection: a thread ends this process, with all its stacks, when the main thread makes no progress for too long.

Each process watches itself and opens no connection. Where one rank hangs, the others wait for it in a collective
operation until their time is over too; each says where. On one node the launcher ends those that are left.
"""
import faulthandler
import os
import socket
import sys
import threading
import time

from util.errors import FAILURE_STATUS

TICK = 1.               # seconds between two checks
SUSPENDED = 10.         # seconds that a tick is late, after which this process or its host was suspended
SAVING = 60.            # seconds more while a checkpoint is being written


class _Detector(threading.Thread):
    """Watches the main thread of one process; see start."""

    def __init__(self, hang_timeout, rank, size):
        super().__init__(name='hang detector', daemon=True)
        self._timeout = hang_timeout
        self._process = 'process {} of {} (host {}, pid {})'.format(rank, size, socket.gethostname(), os.getpid())
        self.place, self.moved = 'its start', time.monotonic()
        self.stopped = threading.Event()

    def run(self):
        before = time.monotonic()
        while not self.stopped.wait(TICK):
            # The backstop, armed anew each time: an extension that hangs with Python's lock keeps this thread from
            # running, but not faulthandler's, which is in C.
            faulthandler.dump_traceback_later(self._timeout + SAVING, exit=True, file=sys.__stderr__)
            now = time.monotonic()
            if now - before > TICK + SUSPENDED:
                self.moved = now
            before, idle = now, now - self.moved
            # A checkpoint is written by a thread that the interpreter's own end would wait for.
            saving = any(not each.daemon and each is not threading.main_thread() for each in threading.enumerate())
            if idle >= self._timeout + SAVING * saving:
                line = 'error: {}: no progress for {:.0f} s at {}; see --hang_timeout; all stacks:\n'.format(
                    self._process, idle, self.place)
                os.write(sys.__stderr__.fileno(), line.encode())    # the main thread may hold the lock of sys.stderr
                faulthandler.dump_traceback(sys.__stderr__)
                os._exit(FAILURE_STATUS)
        faulthandler.cancel_dump_traceback_later()


_detector = None


def start(hang_timeout, rank=0, size=1):
    """Watch this process, `rank` of `size`, until `stop`: without progress for so many seconds it ends (status 70)."""
    global _detector
    _detector = _Detector(hang_timeout, rank, size)
    _detector.start()


def stop():
    """Watch this process no longer."""
    if _detector is not None:
        _detector.stopped.set()
        _detector.join()


def progress(place):
    """Restart the clock; `place` says in a few words what the main thread does next."""
    if _detector is not None:
        _detector.place, _detector.moved = place, time.monotonic()


def watched(batches, where, first=0):
    """(index, batch) of `batches`, counted from `first`; each step counts as progress, at `where`."""
    progress('{}, iteration {}: waiting for data'.format(where, first))
    for i, batch in enumerate(batches, first):
        progress('{}, iteration {}: computing'.format(where, i))
        yield i, batch
        progress('{}, iteration {}: waiting for data'.format(where, i + 1))
    progress('{}: all batches done'.format(where))
