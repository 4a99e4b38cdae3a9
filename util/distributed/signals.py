"""Stop signals of a training process: SIGTERM, SIGINT (Ctrl-C), SIGUSR1 (Slurm's warning), and its launcher's death.

The first signal is a request: the trainer polls `requested`, finishes the step and saves. A second signal ends the
process at once. A thread receives them, since Python runs signal handlers between bytecodes of the main thread only,
which never happens while that waits in a collective operation.
"""
import os
import select
import signal
import sys
import threading
import time

from util.errors import FAILURE_STATUS, PREEMPTED_STATUS

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
DUPLICATE_WINDOW = 2.       # seconds: Ctrl-C reaches a process directly and through its launcher


class LauncherMonitor:
    """Watches the launcher whose pid is in MAE_LAUNCHER, if there is one."""

    def __init__(self):
        self._pid, self._parent = os.environ.get('MAE_LAUNCHER'), os.getppid()

    @property
    def exited(self) -> bool:
        """Whether the launcher, or a wrapper between it and this process, has exited."""
        if self._pid is None:
            return False
        try:
            os.kill(int(self._pid), 0)
        except ProcessLookupError:
            return True
        return os.getppid() != self._parent     # the launcher may be a zombie, which still has its pid


class SignalHandler:
    """Handles stop signals within its `with` block; until `graceful` is set, the first one ends the process."""

    def __init__(self):
        self.requested = ''         # name of the first stop signal
        self.graceful = False       # to be set once `requested` is polled
        self._requested_at = 0.

    def __enter__(self):
        self._pipe, self._sender = os.pipe()
        os.set_blocking(self._sender, False)
        # receives the signal numbers, whatever the main thread is doing
        self._earlier_sender = signal.set_wakeup_fd(self._sender)
        # replaces the default action
        self._earlier_handlers = [signal.signal(number, lambda number, frame: None) for number in SIGNALS]
        self._thread = threading.Thread(target=self._listen, name='stop signals', daemon=True)
        self._thread.start()
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)    # util.tools.launch blocks them
        return self

    def __exit__(self, *error):
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        for number, handler in zip(SIGNALS, self._earlier_handlers):
            signal.signal(number, handler or signal.SIG_DFL)        # None: not set from Python
        signal.set_wakeup_fd(self._earlier_sender)
        os.write(self._sender, b'\0')
        self._thread.join()
        os.close(self._pipe)
        os.close(self._sender)

    def _listen(self):
        launcher = LauncherMonitor()
        while True:
            if select.select([self._pipe], [], [], 1.)[0]:
                number = os.read(self._pipe, 1)[0]
                if number == 0:         # from __exit__
                    return
                if number in SIGNALS:
                    self._handle(signal.Signals(number).name, 128 + number)
            elif launcher.exited and not self.requested:
                self._handle('the exit of its launcher', FAILURE_STATUS)

    def _handle(self, cause, status):
        now = time.monotonic()
        if not self.graceful:
            _exit('stopped by {} before training; nothing to save'.format(cause), PREEMPTED_STATUS)
        if not self.requested:
            self._requested_at, self.requested = now, cause
        elif now - self._requested_at > DUPLICATE_WINDOW:
            _exit('stopped at once by a second signal ({})'.format(cause), status)


def _exit(line, status):
    if int(os.environ.get('LOCAL_RANK', 0)) == 0:
        print(line, file=sys.stderr, flush=True)
    os._exit(status)
