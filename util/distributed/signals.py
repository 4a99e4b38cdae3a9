"""Stop signals of a training process: SIGTERM, SIGINT (Ctrl-C), SIGUSR1 (Slurm's warning), and its launcher's death.

The first one asks: whoever trains looks at `requested`, finishes the step and saves. A second one ends the process.
A thread receives them, since Python calls signal handlers between bytecodes only, which a main thread that waits in a
collective operation does not reach.
"""
import os
import select
import signal
import sys
import threading
import time

from util.errors import FAILURE_STATUS, PREEMPTED_STATUS

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ONE_REQUEST = 2.            # seconds: Ctrl-C reaches a process directly and through its launcher


class Launcher:
    """The process that a launcher names in MAE_LAUNCHER as the one that this process depends on; there may be none."""

    def __init__(self):
        self._pid, self._parent = os.environ.get('MAE_LAUNCHER'), os.getppid()

    @property
    def gone(self):
        """True where it has ended, or a wrapper between the two has."""
        if self._pid is None:
            return False
        try:
            os.kill(int(self._pid), 0)
        except ProcessLookupError:
            return True
        return os.getppid() != self._parent     # of one that has ended and that nobody has waited for


class SignalHandler:
    """Receives stop signals from its creation on."""

    def __init__(self):
        self.requested = ''             # what asked to stop: the name of a signal
        self.patient = False            # to be set: somebody looks at `requested`; until then a signal ends the process
        self._at = 0.
        self._receiving, sending = os.pipe()
        os.set_blocking(sending, False)
        signal.set_wakeup_fd(sending)   # gets each signal's number, whatever the main thread does
        for number in SIGNALS:
            signal.signal(number, lambda number, frame: None)       # keeps it from its default action
        threading.Thread(target=self._listen, name='stops', daemon=True).start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)     # util.tools.launch blocks them

    def _listen(self):
        launcher = Launcher()
        while True:
            if select.select([self._receiving], [], [], 1.)[0]:
                number = os.read(self._receiving, 1)[0]
                if number in SIGNALS:
                    self._ask(signal.Signals(number).name, 128 + number)
            elif launcher.gone and not self.requested:
                self._ask('the end of its launcher', FAILURE_STATUS)

    def _ask(self, what, status):
        now = time.monotonic()
        if not self.patient:
            _end('stopped by {} before training; nothing to save'.format(what), PREEMPTED_STATUS)
        if not self.requested:
            self._at, self.requested = now, what
        elif now - self._at > ONE_REQUEST:
            _end('stopped at once by a second signal ({})'.format(what), status)


def _end(line, status):
    if int(os.environ.get('LOCAL_RANK', 0)) == 0:
        print(line, file=sys.stderr, flush=True)
    os._exit(status)
