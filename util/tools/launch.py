"""Start one process a device: python util/tools/launch.py --devices 8 main_pretrain.py --data_path ...

A child of this process supervises the workers: torch.distributed.run where it exists, else a small loop. The first
worker that fails ends the others on this node, and its status is the launcher's. Signals go from this process to the
workers, never through the supervisor.
"""
import glob
import logging
import math
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress

if not __package__:     # run as a file: find the repository from any directory
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), '..', '..'))

from util.config.parser import Parser, non_negative_int, positive_int, value_of
from util.devices import accelerator as device
from util.devices.host import default_workers
from util.distributed.signals import Launcher
from util.distributed.world import DEFAULT_PORT, HANG_TIMEOUT, meeting_seconds
from util.errors import FAILURE_STATUS, PREEMPTED_STATUS, SAVE_FAILED_STATUS, USER_ERROR_STATUS, UserError, run
from util.text import first_line

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
FINAL = (0, USER_ERROR_STATUS, SAVE_FAILED_STATUS, PREEMPTED_STATUS)      # statuses that a restart cannot change


def parse(argv):
    """(flags of the launcher, the script with its own flags)."""
    parser = Parser(prog='launch.py', description='Start one process a device.')
    add = parser.add_argument
    add('--devices', type=positive_int, default=1, help='processes on this node, one for each of its devices')
    add('--nproc', type=positive_int, help='processes on this node, whatever is there; several share a CPU')
    add('--nnodes', type=positive_int, default=1, help='number of nodes')
    add('--node_rank', type=non_negative_int, default=0, help='index of this node')
    add('--master_addr', default='127.0.0.1', help='address of node 0')
    add('--master_port', type=positive_int, help='port of node 0, the next one for each restart on several nodes; '
        'default: a free one, on several nodes 29500')
    add('--max_restarts', type=non_negative_int, default=0,
        help='how often a run that a fault has ended is started again from its last checkpoint')
    add('--stop_timeout', type=positive_int, default=300,
        help='seconds that processes may take to save and end after a signal, until they are killed')
    split = next((i for i, word in enumerate(argv) if word.endswith('.py')), len(argv))
    flags = parser.parse_args(argv[:split])
    if split == len(argv):
        parser.error('name the script to start')
    return flags, argv[split:]


def main(argv):
    flags, command = parse(argv)
    processes = flags.nproc or flags.devices
    if flags.nproc is None:
        accelerator = device.select(value_of('--device', command) or 'auto')
        if accelerator.count() < processes:
            raise UserError('{} devices asked, {} {} found; pass --nproc={}{}'.format(
                processes, accelerator.count(), accelerator.type, accelerator.count(),
                '' if accelerator.is_accelerator else ', or more to share the CPU ({})'.format(accelerator.reason)))
    os.environ.setdefault('OMP_NUM_THREADS', str(default_workers(processes, most=sys.maxsize)))
    # The run writes to this file when it enters its output folder: before, a restart has nothing to resume there.
    file, os.environ['MAE_ENTERED'] = tempfile.mkstemp(prefix='mae-entered-')
    os.close(file)
    try:
        status = _attempts(flags, command, processes)
    finally:
        with suppress(OSError):
            os.remove(os.environ['MAE_ENTERED'])
    sys.exit(status)


def _attempts(flags, command, processes):
    """Start the workers, again after faults if --max_restarts allows; returns the exit status."""
    signals, status = Signals(flags.stop_timeout), PREEMPTED_STATUS
    for attempt in range(flags.max_restarts + 1):
        if attempt:
            os.environ['MAE_RESTART'] = str(attempt)
            print('restart {} of {}'.format(attempt, flags.max_restarts), flush=True)
            signals.pause(min(2 ** (attempt - 1), 30))
        if signals.received:
            break
        # Nodes count up, so that one which is ahead does not meet what the attempt before has left.
        port = (flags.master_port or DEFAULT_PORT) + attempt if flags.nnodes > 1 else flags.master_port or free_port()
        status = run_once(flags, command, processes, port, signals)
        if status in FINAL or signals.received:
            break
    return status


def run_once(flags, command, processes, port, signals):
    """Start the workers below a supervisor of their own, wait for their end and say which one failed, unless it did.

    Returns:
        the exit status, 128 + n for signal n as shells do.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    # A process of its own, since PyTorch 1.11 holds Python's lock while it waits for other nodes; forked, since the
    # import of PyTorch takes seconds.
    supervisor = multiprocessing.get_context('fork').Process(
        target=_supervisor, args=(os.getpid(), flags, command, processes, port, sender))
    supervisor.start()
    sender.close()
    started = False
    while supervisor.is_alive():
        # One look at all processes of the machine takes milliseconds: not in each round of a long run.
        started = started or bool(children(supervisor.pid))
        if signals.received and not started:        # it may wait for other nodes
            supervisor.kill()
        signals.pass_on(supervisor)
        supervisor.join(.2)
    try:
        rank, status = receiver.recv()
    except EOFError:                                # it was killed
        rank, status = 'of the supervisor', supervisor.exitcode
    if not started and signals.received:
        print('stopped before training; nothing to save', file=sys.stderr)
        return PREEMPTED_STATUS
    if status not in (*FINAL, FAILURE_STATUS) and not signals.received:
        what = 'ended with status {}'.format(status) if status > 0 else 'was killed by ' + signal.Signals(-status).name
        what += ' (out of memory?)' * (status == -signal.SIGKILL)
        print('error: process {} {}; the others were stopped'.format(rank, what), file=sys.stderr, flush=True)
    return status if status >= 0 else 128 - status


def _supervisor(launcher, flags, command, processes, port, sender):
    """The child's part: sends (rank, exit status) of the first worker that failed, (None, status) where there is none.

    Signals stay blocked here and, until SignalHandler, in the workers: what all processes of a job get would make
    torch.distributed.run give the workers 30 seconds, and end those that are still at their imports unsaved.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    os.environ['MAE_LAUNCHER'] = str(os.getpid())       # whose end the workers notice
    threading.Thread(target=_end_with, args=(launcher,), daemon=True).start()
    try:
        from torch.distributed.run import main as torchrun
    except ImportError:
        outcome = supervise(command, processes, flags, port)
    else:
        outcome = _torchrun(torchrun, command, processes, flags, port)
    sender.send(outcome)


def _end_with(launcher):
    while os.getppid() == launcher:
        time.sleep(1.)
    os._exit(FAILURE_STATUS)


class Signals:
    """Receives the stop signals of this process from its creation on, and the death of the bash that started it.

    Args:
        stop_timeout: seconds from the first signal until what is left is killed.
    """

    def __init__(self, stop_timeout):
        self._stop_timeout, self._launcher = stop_timeout, Launcher()
        self._received, self._deadline, self._sent = [], None, {}
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:       # as under nohup
                signal.signal(number, self._note)

    def _note(self, number, frame):
        """Takes no lock: it may run in the midst of what holds one."""
        self._received.append(signal.SIGTERM if number == signal.SIGHUP else number)

    @property
    def received(self):
        """Whether this process shall stop."""
        if not self._received and self._launcher.gone:
            self._received.append(signal.SIGTERM)
        return bool(self._received)

    def pass_on(self, supervisor):
        """Send what has been received to the workers, also to those that started later; kill them after the timeout."""
        if not self.received:
            return
        if self._deadline is None:
            self._deadline = time.monotonic() + self._stop_timeout
        workers, late = children(supervisor.pid), time.monotonic() > self._deadline
        if late and workers:
            print('error: still running {} s after the signal, killed: processes {}; see --stop_timeout'
                  .format(self._stop_timeout, ', '.join(map(str, workers))), file=sys.stderr)
            self._deadline = math.inf
        for pid in workers or [supervisor.pid] * late:
            unsent = [signal.SIGKILL] if late else self._received[self._sent.get(pid, 0):]
            self._sent[pid] = self._sent.get(pid, 0) + len(unsent)
            for number in unsent:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def pause(self, seconds):
        """Wait, but not longer than until a signal."""
        end = time.monotonic() + seconds
        while not self.received and time.monotonic() < end:
            time.sleep(.1)


def children(parent):
    """Pids of the processes that a process has started and that have not ended."""
    found = []
    for path in glob.glob('/proc/[0-9]*/stat'):
        try:
            with open(path, 'rb') as file:
                state, its_parent = file.read().rsplit(b')', 1)[1].split()[:2]
        except OSError:
            continue                    # it has just ended
        if int(its_parent) == parent and state not in (b'Z', b'X'):
            found.append(int(path.split('/')[2]))
    return found


def free_port():
    """A TCP port that nobody uses now, so that two runs share a host."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def _torchrun(torchrun, command, processes, flags, port):
    """Run the workers under torch.distributed.run; returns (rank, exit status)."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    logging.disable(logging.ERROR)      # a failure is said by the launcher, in one line
    hang_timeout = HANG_TIMEOUT
    with suppress(ValueError):          # which the workers explain
        hang_timeout = float(value_of('--hang_timeout', command) or HANG_TIMEOUT)
    seconds = math.ceil(meeting_seconds(hang_timeout))
    # Its own restarts would also repeat what a user must mend, and a stop that was asked for.
    arguments = ['--max_restarts', 0, '--monitor_interval', 1, '--nproc_per_node', processes,
                 '--nnodes', flags.nnodes, '--node_rank', flags.node_rank, '--master_addr', flags.master_addr,
                 '--master_port', port, '--rdzv_conf', 'timeout={}'.format(seconds), *command]
    try:
        torchrun([str(argument) for argument in arguments])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return rank, failure.exitcode
    except (RuntimeError, OSError) as error:        # PyTorch 1.11 raises TimeoutError
        print('error: node {} cannot meet the others at {}, port {}, within {} s ({})'.format(
            flags.node_rank, flags.master_addr, port, seconds, first_line(error)), file=sys.stderr, flush=True)
        return None, FAILURE_STATUS
    return None, 0


def supervise(command, processes, flags, port):
    """Do the part of torch.distributed.run where that does not exist; returns (rank, exit status).

    PyTorch's launcher of that time waits for rank 0 before it looks at the others.
    """
    ranks = {}
    for local_rank in range(processes):
        rank = flags.node_rank * processes + local_rank
        environ = dict(os.environ, RANK=str(rank), LOCAL_RANK=str(local_rank),
                       WORLD_SIZE=str(flags.nnodes * processes), LOCAL_WORLD_SIZE=str(processes),
                       MASTER_ADDR=flags.master_addr, MASTER_PORT=str(port))
        ranks[rank] = subprocess.Popen([sys.executable, '-u'] + command, env=environ)
    try:
        while ranks:
            time.sleep(.2)
            for rank, process in list(ranks.items()):
                if process.poll() is not None:
                    del ranks[rank]
                    if process.returncode:
                        return rank, process.returncode
        return None, 0
    finally:
        for process in ranks.values():
            process.terminate()
        deadline = time.monotonic() + 10        # they have nothing to save when one of them has failed
        while time.monotonic() < deadline and any(process.poll() is None for process in ranks.values()):
            time.sleep(.1)
        for process in ranks.values():
            process.kill()
            process.wait()


if __name__ == '__main__':
    run(main, sys.argv[1:])
