"""Launcher, one process per device: python util/tools/launch.py --devices 8 main_pretrain.py --data_path ...

The first worker that fails ends the others on this node, and the launcher exits with its status. It forwards signals.
"""
import argparse
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import List, Sequence, Tuple

if not __package__:     # run as a file: import from the repository in any directory
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), '..', '..'))

from util import errors

errors.begin(__name__)

from util.config.parser import Parser, non_negative_int, port, positive_int, value_of
from util.devices import accelerator as devices
from util.devices.host import default_workers
from util.distributed.signals import StopRequests, watch_launcher
from util.distributed.world import DEFAULT_PORT
from util.errors import FAILURE_STATUS, FORWARDED, PREEMPTED_STATUS, STOP_SIGNALS, UserError, run
from util.text import first_line

SIGNALS = [*STOP_SIGNALS, signal.SIGHUP]
GRACE = 30.         # seconds from a failure until the other workers are killed
FINAL_STATUSES = (0, errors.USER_ERROR_STATUS, errors.SAVE_FAILED_STATUS, PREEMPTED_STATUS)      # not restarted


def parse(argv: Sequence[str]) -> Tuple[argparse.Namespace, List[str]]:
    """(flags of the launcher, the script with its own flags)."""
    parser = Parser(prog='launch.py', description='Start one process per device.')
    add = parser.add_argument
    add('--devices', type=positive_int, default=1, help='number of processes on this node, one per device')
    add('--nproc', type=positive_int, help='the same without a check for enough devices; processes can share a CPU')
    add('--nnodes', type=positive_int, default=1, help='number of nodes')
    add('--node_rank', type=non_negative_int, default=0, help='index of this node')
    add('--master_addr', default='127.0.0.1', help='address of node 0')
    add('--master_port', type=port, help='port of node 0, incremented at each restart if there are several '
        'nodes; default: a free port, 29500 on several nodes')
    add('--max_restarts', type=non_negative_int, default=0,
        help='maximum number of restarts from the last checkpoint after a failure')
    add('--stop_timeout', type=positive_int, default=300,
        help='seconds from a stop signal until processes that are still running are killed')
    split = next((i for i, word in enumerate(argv) if word.endswith('.py')), len(argv))
    flags = parser.parse_args(argv[:split])
    if split == len(argv):
        parser.error('the script to start is missing')
    if flags.node_rank >= flags.nnodes:
        parser.error('--node_rank {}: there are {} nodes, counted from 0; see --nnodes'.format(
            flags.node_rank, flags.nnodes))
    return flags, argv[split:]


def main(argv: Sequence[str]) -> None:
    flags, command = parse(argv)
    processes = flags.nproc or flags.devices
    if flags.nproc is None:
        accelerator = devices.select(value_of('--device', command) or 'auto')
        if accelerator.count() < processes:
            raise UserError('{} devices requested, {} {} found; pass --nproc={}{}'.format(
                processes, accelerator.count(), accelerator.type, accelerator.count(),
                '' if accelerator.is_accelerator else ', or more to share the CPU ({})'.format(accelerator.reason)))
    os.environ.setdefault('OMP_NUM_THREADS', str(default_workers(processes, most=sys.maxsize)))
    # The run writes to this file when it enters its output folder: before, a restart has nothing to resume there.
    try:
        file, os.environ['MAE_ENTERED'] = tempfile.mkstemp(prefix='mae-entered-')
    except OSError as error:
        raise UserError('TMPDIR: no folder for temporary files ({})'.format(first_line(error))) from error
    os.close(file)
    node = 'node {} of {}'.format(flags.node_rank, flags.nnodes)
    if flags.node_rank:
        first = flags.node_rank * processes
        print('{}: starting ranks {} to {}; rank 0 logs the run, on node 0 ({})'.format(
            node, first, first + processes - 1, flags.master_addr), flush=True)
    try:
        status = _attempts(flags, command, processes)
        if flags.node_rank:
            print('{}: ended with status {}'.format(node, status), flush=True)
    finally:
        with suppress(OSError):
            os.remove(os.environ['MAE_ENTERED'])
    sys.exit(status)


def _attempts(flags, command, processes):
    """Start the workers, again after faults if --max_restarts allows; returns the exit status."""
    signals, status = SignalForwarder(flags.stop_timeout), PREEMPTED_STATUS
    for attempt in range(flags.max_restarts + 1):
        if attempt:
            os.environ['MAE_RESTART'] = str(attempt)
            print('restart {} of {}'.format(attempt, flags.max_restarts), flush=True)
            end = time.monotonic() + min(2 ** (attempt - 1), 30)
            while not signals.received and time.monotonic() < end:
                time.sleep(.1)
        if signals.received:
            break
        # A new port for each attempt: no connection to leftovers of the previous one on other nodes.
        port = (flags.master_port or DEFAULT_PORT) + attempt if flags.nnodes > 1 else flags.master_port or free_port()
        status = run_once(flags, command, processes, port, signals)
        if status in FINAL_STATUSES or signals.received:
            break
    return status


def run_once(flags: argparse.Namespace, command: list, processes: int, port: int, signals: 'SignalForwarder') -> int:
    """Run the workers until one fails or all have ended, and report which one failed, unless it reports that itself.

    Returns the exit status; 128 + n for signal n, as in a shell.
    """
    workers = {}
    try:
        # Blocked in the workers until they handle them, see errors.begin: a signal to all processes of a job would end
        # them without a line.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        for local_rank in range(processes):
            rank = flags.node_rank * processes + local_rank
            environ = dict(os.environ, RANK=str(rank), LOCAL_RANK=str(local_rank), LOCAL_WORLD_SIZE=str(processes),
                           WORLD_SIZE=str(flags.nnodes * processes), MASTER_ADDR=flags.master_addr,
                           MASTER_PORT=str(port), MAE_LAUNCHER=str(os.getpid()))
            workers[rank] = subprocess.Popen([sys.executable, '-u'] + command, env=environ)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        status = _wait(workers, signals)
    finally:
        for worker in workers.values():
            worker.terminate()
        deadline = time.monotonic() + GRACE
        for worker in workers.values():
            with suppress(subprocess.TimeoutExpired):
                worker.wait(max(0, deadline - time.monotonic()))
            worker.kill()
            worker.wait()
    return status if status >= 0 else 128 - status


def _wait(workers, signals):
    """Wait until all workers, {rank: Popen}, have ended or one fails; returns its status, which may be negative."""
    running = dict(workers)
    while running:
        time.sleep(.2)
        signals.forward(list(running.values()))
        for rank, worker in list(running.items()):
            status = worker.poll()
            if status is not None:
                del running[rank]
            if status and status not in (*FINAL_STATUSES, FAILURE_STATUS) and not signals.received:
                what = 'exited with status {}'.format(status) if status > 0 else \
                    'was killed by ' + signal.Signals(-status).name
                what += ' (out of memory?)' * (status == -signal.SIGKILL)
                print('error: rank {} {}; the others were stopped'.format(rank, what), file=sys.stderr, flush=True)
            if status:
                return status
    return 0


class SignalForwarder:
    """Receives stop signals, and the exit of the bash launcher, from its creation on, and forwards them to the workers.

    `stop_timeout` seconds after the first signal, the remaining workers are killed.
    """

    def __init__(self, stop_timeout: float):
        self._stop_timeout, self._requests = stop_timeout, StopRequests()
        self._deadline, self._sent = None, 0
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:       # ignored under nohup
                signal.signal(number, lambda number, frame: self._requests.add(number))
        watch_launcher()

    @property
    def received(self) -> bool:
        """Whether a stop has been requested."""
        return bool(self._requests.numbers)

    def forward(self, workers: Sequence[subprocess.Popen]) -> None:
        """Send received signals to the running workers, also later ones; kill them after the timeout."""
        if not self.received:
            return
        if self._deadline is None:
            self._deadline = time.monotonic() + self._stop_timeout
        late, unsent = time.monotonic() > self._deadline, self._requests.numbers[self._sent:]
        self._sent += len(unsent)
        if late:
            print('error: still running {} s after the signal, killed: processes {}; see --stop_timeout'.format(
                self._stop_timeout, ', '.join(str(worker.pid) for worker in workers)), file=sys.stderr)
            self._deadline = math.inf
            unsent = [signal.SIGKILL]
        for number in unsent:
            number = signal.SIGTERM if number == signal.SIGHUP else number
            for worker in workers:
                worker.send_signal(number if late or number > FORWARDED else FORWARDED + number)


def free_port() -> int:
    """A TCP port that is currently unused, so that two runs can share a host."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


if __name__ == '__main__':
    run(main, sys.argv[1:])
