"""Start one process a device: python util/launch.py --devices 8 main_pretrain.py --data_path ...

torch.distributed.run does the work where it exists; older generations, whose launcher waits for rank 0 before it
looks at the others, are served by a small supervisor here. Either way the first failing process ends all, in one
line, and its status is the launcher's; signals are passed on; and a run that a fault has ended is started again from
its last checkpoint, as often as --max_restarts says.
"""
import glob
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time

if not __package__:     # run as a file: find the repository from any directory
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from util import config, device
from util.checkpoint import numbered
from util.errors import FAULT_STATUS, STOPPED_STATUS, UNSAVED_STATUS, USER_ERROR_STATUS, UserError, run
from util.loader import default_workers
from util.parser import COUNT, INDEX, Parser
from util.stops import Launcher

SAID = (USER_ERROR_STATUS, FAULT_STATUS, UNSAVED_STATUS, STOPPED_STATUS)    # statuses that a process explains itself
LONGEST_PAUSE = 30          # seconds between a failure and the restart


def parse(argv):
    """(flags of the launcher, the script with its own flags)."""
    parser = Parser(prog='launch.py', description='Start one process a device.')
    parser.add_argument('--devices', type=COUNT, default=1, help='processes on this node, one for each of its devices')
    parser.add_argument('--nproc', type=COUNT, help='processes on this node, whatever is there; several share a CPU')
    parser.add_argument('--nnodes', type=COUNT, default=1, help='number of nodes')
    parser.add_argument('--node_rank', type=INDEX, default=0, help='index of this node')
    parser.add_argument('--master_addr', default='127.0.0.1', help='address of node 0')
    parser.add_argument('--master_port', type=COUNT, help='port of node 0, the next one for each restart on several '
                             'nodes; default: a free one, on several nodes 29500')
    parser.add_argument('--max_restarts', type=INDEX, default=0,
                        help='how often a run that a fault has ended is started again from its last checkpoint')
    parser.add_argument('--stop_timeout', type=COUNT, default=300,
                        help='seconds that processes may take to save and end after a signal, until they are killed')
    split = next((i for i, word in enumerate(argv) if word.endswith('.py')), len(argv))
    if split == len(argv):
        parser.error('name the script to start')
    return parser.parse_args(argv[:split]), argv[split:]


def main(argv):
    flags, command = parse(argv)
    if flags.nproc is None:
        check_devices(flags.devices, config.value_of('--device', command) or 'auto')
    processes = flags.nproc or flags.devices
    if flags.max_restarts and config.value_of('--start_epoch', _without_start_epoch(command)):
        raise UserError('--max_restarts: give --start_epoch on the command line, not in the file of --config, where a '
                        'restart, which goes on from the last checkpoint, cannot leave it out')
    os.environ.setdefault('OMP_NUM_THREADS', str(default_workers(processes, most=sys.maxsize)))
    signals, status = Signals(flags.stop_timeout), STOPPED_STATUS
    threading.Thread(target=stop_without, args=(Launcher(),), daemon=True).start()
    os.environ['MAE_LAUNCHER'] = str(os.getpid())
    for attempt in range(flags.max_restarts + 1):
        if attempt:
            command = going_on(command)
            os.environ['MAE_RESTART'] = str(attempt)
            print('restart {} of {}{}'.format(attempt, flags.max_restarts,
                                              ' with --resume auto' if command[-1:] == ['auto'] else ''), flush=True)
            signals.pause(min(2 ** (attempt - 1), LONGEST_PAUSE))
        if signals.received:
            break
        status = run_once(flags, command, processes, port_of(flags, attempt), signals)
        # torchrun's own restarts would also repeat what a user must mend, and a stop that was asked for.
        if status in (0, USER_ERROR_STATUS, UNSAVED_STATUS, STOPPED_STATUS) or signals.received:
            break
    sys.exit(status)


def port_of(flags, attempt):
    """Where the processes meet. Nodes count up with every restart, so that one which is ahead does not meet what the
    attempt before has left."""
    if flags.nnodes > 1:
        return (flags.master_port or 29500) + attempt
    return flags.master_port or free_port()


def run_once(flags, command, processes, port, signals):
    """Start the processes and wait for their end; returns the status."""
    try:
        from torch.distributed.run import main as torchrun
    except ImportError:
        return supervise(command, processes, flags.nnodes, flags.node_rank, flags.master_addr, port, signals)
    return _torchrun(torchrun, ['--nproc_per_node', processes, '--nnodes', flags.nnodes,
                                '--node_rank', flags.node_rank, '--master_addr', flags.master_addr,
                                '--master_port', port, '--monitor_interval', 1] + command, signals)


def going_on(command):
    """The command that continues a failed run: from its newest checkpoint where it has one, else as it was."""
    resumes = command[-2:] == ['--resume', 'auto'] or _evaluates(command)
    if resumes or not numbered(config.value_of('--output_dir', command) or './output_dir'):
        return command
    return _without_start_epoch(command) + ['--resume', 'auto']


def _without_start_epoch(command):
    return [word for i, word in enumerate(command) if not word.startswith('--start_epoch')
            and (i == 0 or command[i - 1] != '--start_epoch')]


def _evaluates(command):
    return '--eval' in command or config.switched(config.value_of('--eval', command))


class Signals:
    """Passes stop signals on to the processes that this one has started, from its making on.

    Args:
        stop_timeout: seconds from the first signal until what is left is killed.
    """

    def __init__(self, stop_timeout):
        self.received, self._stop_timeout, self._deadline = False, stop_timeout, math.inf
        threading.Thread(target=self._kill_late, daemon=True).start()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:       # as under nohup
                signal.signal(number, self._pass_on)

    def _pass_on(self, number, frame):
        """Takes no lock, so starts no thread: it may come in the midst of what holds one, and would wait for itself."""
        if not self.received:
            self._deadline = time.monotonic() + self._stop_timeout
        self.received = True
        send(signal.SIGTERM if number == signal.SIGHUP else number, children())

    def _kill_late(self):
        while time.monotonic() < self._deadline:
            time.sleep(.2)
        left = children()
        if left:
            print('error: still running {} s after the signal, killed: processes {}; see --stop_timeout'
                  .format(self._stop_timeout, ', '.join(map(str, left))), file=sys.stderr)
        send(signal.SIGKILL, left)

    def pause(self, seconds):
        """Wait, but not longer than until a signal."""
        end = time.monotonic() + seconds
        while not self.received and time.monotonic() < end:
            time.sleep(.1)


def stop_without(launcher):
    """Take the end of the bash that has started this process, in whatever way, for a wish to stop."""
    while not launcher.gone:
        time.sleep(1.)
    os.kill(os.getpid(), signal.SIGTERM)


def send(number, pids):
    """Send a signal to processes, some of which may have ended."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def children():
    """Pids of the processes that this one has started and that have not ended."""
    found = []
    for path in glob.glob('/proc/[0-9]*/stat'):
        try:
            with open(path, 'rb') as file:
                state, parent = file.read().rsplit(b')', 1)[1].split()[:2]
        except OSError:
            continue                    # it has just ended
        if int(parent) == os.getpid() and state not in (b'Z', b'X'):
            found.append(int(path.split('/')[2]))
    return found


def check_devices(wanted, requested):
    """Raise UserError, naming --nproc, where this node has fewer devices than `wanted`."""
    accelerator = device.select(requested)
    found = accelerator.count()
    if found < wanted and not accelerator.is_accelerator:
        raise UserError('{} devices asked, but this runs on the CPU ({}); pass --nproc=N for N processes on the CPU'
                        .format(wanted, accelerator.reason))
    if found < wanted:
        raise UserError('{} devices asked, {} {} found; pass --nproc={}'.format(wanted, found, accelerator.type, found))


def free_port():
    """A TCP port that nobody uses now, so that two runs share a host."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


class _OurHandlers:
    """The signal module for torchrun's use: it would replace our handlers by some that give the processes 30 seconds,
    and that do not know SIGUSR1."""

    def __getattr__(self, name):
        return getattr(signal, name)

    @staticmethod
    def signal(number, handler):
        """Leave the handler that is there."""


def _torchrun(torchrun, arguments, signals):
    from torch.distributed.elastic.multiprocessing import api
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    api.signal = _OurHandlers()
    logging.disable(logging.ERROR)      # a failure is said here, in one line
    try:
        torchrun([str(argument) for argument in arguments])
        return 0
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _report(rank, failure.exitcode, signals)


def supervise(command, processes, nnodes, node_rank, master_addr, master_port, signals):
    """Start `processes` copies of a script, wait, and end all when one fails; returns the status."""
    ranks = {}
    for local_rank in range(processes):
        rank = node_rank * processes + local_rank
        environ = dict(os.environ, RANK=str(rank), LOCAL_RANK=str(local_rank), WORLD_SIZE=str(nnodes * processes),
                       LOCAL_WORLD_SIZE=str(processes), MASTER_ADDR=master_addr, MASTER_PORT=str(master_port))
        ranks[rank] = subprocess.Popen([sys.executable, '-u'] + command, env=environ)
    try:
        while ranks:
            for rank, process in list(ranks.items()):
                if process.poll() is not None:
                    del ranks[rank]
                    if process.returncode:
                        return _report(rank, process.returncode, signals)
            time.sleep(.2)
        return 0
    finally:
        for process in ranks.values():
            process.terminate()
        for process in ranks.values():
            try:
                process.wait(timeout=10)        # they have nothing to save when one of them has failed
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _report(rank, status, signals):
    """Say who failed, unless it said so itself; returns the exit status, 128 + n for signal n as shells do."""
    if status < 0:
        what, status = 'was killed by {}'.format(signal.Signals(-status).name), 128 - status
        what += ' (out of memory?)' if status == 128 + signal.SIGKILL else ''
    else:
        what = 'ended with status {}'.format(status)
    if status not in SAID and not signals.received:
        print('error: process {} {}; the others were stopped'.format(rank, what), file=sys.stderr, flush=True)
    return status


if __name__ == '__main__':
    run(main, sys.argv[1:])
