"""Stop signals of a training process: SIGTERM, SIGINT (Ctrl-C), SIGUSR1 (Slurm's warning), and its launcher's death.

The launcher forwards a signal to every training process. The first one sets `requested`; Trainer.check sees it at the
end of a step, all processes agree, and the loop calls Trainer.stop: it saves, waits for the file and raises Preempted,
which errors.run turns into a line and status 75. A second signal ends the process at once. A thread receives them,
since Python runs signal handlers between bytecodes of the main thread only, which never happens while that waits in a
collective operation. Until a session starts, see errors.begin.
"""
import ctypes
import os
import signal
import threading
import time
from typing import List

from util.errors import FORWARDED, LAUNCHER_EXITED, STOP_SIGNALS, exit_before_training, exit_now, signal_name

PR_SET_PDEATHSIG = 1        # of Linux
REPEATED = 2.               # seconds: torchrun used by hand repeats a Ctrl-C, which its processes have got already


def signal_on_exit_of_parent(number: int, parent: int) -> None:
    """Let the kernel send this process a signal when its parent, or the process `parent` above it, exits."""
    if hasattr(ctypes.CDLL(None), 'prctl'):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    try:
        os.kill(parent, 0)
    except ProcessLookupError:      # before this call
        os.kill(os.getpid(), number)


def watch_launcher() -> None:
    """Let the exit of the launcher, whose pid is in MAE_LAUNCHER, be a stop signal; nothing without a launcher."""
    if 'MAE_LAUNCHER' in os.environ:
        signal_on_exit_of_parent(LAUNCHER_EXITED, int(os.environ['MAE_LAUNCHER']))


class StopRequests:
    """The stop signals that a process got, without the second of a signal and its forwarded copy."""

    def __init__(self):
        self.numbers: List[int] = []
        self._counts = {False: 0, True: 0}      # signals got directly and forwarded by the launcher
        self._last = -REPEATED

    def add(self, number: int) -> None:
        """Count a signal. The exit of the launcher is a request only if it is the first."""
        forwarded, now = number > FORWARDED, time.monotonic()
        if number == LAUNCHER_EXITED and self.numbers or not forwarded and now - self._last < REPEATED:
            return
        self._last = self._last if forwarded else now
        self._counts[forwarded] += 1
        if self._counts[forwarded] > len(self.numbers):
            self.numbers.append(number)


class SignalHandler:
    """Handles stop signals within its `with` block; until `graceful` is set, the first one ends the process."""

    def __init__(self):
        self.requested = ''         # name of the first stop signal
        self.graceful = False       # to be set once `requested` is polled
        self._requests = StopRequests()

    def __enter__(self):
        self._pipe, self._sender = os.pipe()
        os.set_blocking(self._sender, False)
        # receives the signal numbers, whatever the main thread is doing
        self._earlier_sender = signal.set_wakeup_fd(self._sender)
        # replaces the default action
        self._earlier_handlers = [signal.signal(number, lambda number, frame: None) for number in STOP_SIGNALS]
        self._thread = threading.Thread(target=self._listen, name='stop signals', daemon=True)
        self._thread.start()
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)       # util.tools.launch blocks them
        watch_launcher()
        return self

    def __exit__(self, *error):
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        for number, handler in zip(STOP_SIGNALS, self._earlier_handlers):
            signal.signal(number, handler or signal.SIG_DFL)        # None: not set from Python
        signal.set_wakeup_fd(self._earlier_sender)
        os.write(self._sender, b'\0')
        self._thread.join()
        os.close(self._pipe)
        os.close(self._sender)

    def _listen(self):
        for number in iter(lambda: os.read(self._pipe, 1)[0], 0):       # 0: from __exit__
            if number in STOP_SIGNALS:
                self._handle(number)

    def _handle(self, number):
        if not self.graceful:
            exit_before_training(number)
        self._requests.add(number)
        self.requested = self.requested or signal_name(number)
        if len(self._requests.numbers) > 1:
            exit_now('stopped at once by a second signal ({})'.format(signal_name(number)), 128 + number % FORWARDED)
