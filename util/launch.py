"""Start one process a device: python util/launch.py --devices 8 main_pretrain.py --data_path ...

torch.distributed.run does the work where it exists; older generations, whose launcher waits for rank 0 before it
looks at the others, are served by a small supervisor here. Either way the first failing process ends all, in one
line, and its status is the launcher's.
"""
import logging
import os
import signal
import socket
import subprocess
import sys
import time

if not __package__:     # run as a file: find the repository from any directory
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from util import device
from util.arguments import COUNT, INDEX, Parser
from util.errors import USER_ERROR_STATUS, UserError, run
from util.loader import default_workers


def parse(argv):
    """(flags of the launcher, the script with its own flags)."""
    parser = Parser(prog='launch.py', description='Start one process a device.')
    parser.add_argument('--devices', type=COUNT, default=1, help='processes on this node, one for each of its devices')
    parser.add_argument('--nproc', type=COUNT, help='processes on this node, whatever is there; several share a CPU')
    parser.add_argument('--nnodes', type=COUNT, default=1, help='number of nodes')
    parser.add_argument('--node_rank', type=INDEX, default=0, help='index of this node')
    parser.add_argument('--master_addr', default='127.0.0.1', help='address of node 0')
    parser.add_argument('--master_port', type=COUNT, help='port of node 0; default: a free one, on several nodes 29500')
    split = next((i for i, word in enumerate(argv) if word.endswith('.py')), len(argv))
    if split == len(argv):
        parser.error('name the script to start')
    return parser.parse_args(argv[:split]), argv[split:]


def main(argv):
    flags, command = parse(argv)
    if flags.nproc is None:
        check_devices(flags.devices, _value_of('--device', command) or 'auto')
    processes = flags.nproc or flags.devices
    port = flags.master_port or (free_port() if flags.nnodes == 1 else 29500)
    os.environ.setdefault('OMP_NUM_THREADS', str(default_workers(processes, most=sys.maxsize)))
    try:
        from torch.distributed.run import main as torchrun
    except ImportError:
        sys.exit(supervise(command, processes, flags.nnodes, flags.node_rank, flags.master_addr, port))
    sys.exit(_torchrun(torchrun, ['--nproc_per_node', processes, '--nnodes', flags.nnodes,
                                  '--node_rank', flags.node_rank, '--master_addr', flags.master_addr,
                                  '--master_port', port, '--monitor_interval', 1] + command))


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


def _torchrun(torchrun, arguments):
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    logging.disable(logging.ERROR)      # a failure is said here, in one line
    try:
        torchrun([str(argument) for argument in arguments])
        return 0
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _report(rank, failure.exitcode)
    except SignalException as error:
        return 128 + error.sigval


def supervise(command, processes, nnodes, node_rank, master_addr, master_port):
    """Start `processes` copies of a script, wait, and end all when one fails or a signal comes; returns the status."""
    ranks = {}
    for local_rank in range(processes):
        rank = node_rank * processes + local_rank
        environ = dict(os.environ, RANK=str(rank), LOCAL_RANK=str(local_rank), WORLD_SIZE=str(nnodes * processes),
                       LOCAL_WORLD_SIZE=str(processes), MASTER_ADDR=master_addr, MASTER_PORT=str(master_port))
        ranks[rank] = subprocess.Popen([sys.executable, '-u'] + command, env=environ)
    try:
        signal.signal(signal.SIGTERM, _raise_exit)
        while ranks:
            for rank, process in list(ranks.items()):
                if process.poll() is not None:
                    del ranks[rank]
                    if process.returncode:
                        return _report(rank, process.returncode)
            time.sleep(.2)
        return 0
    finally:
        for process in ranks.values():
            process.terminate()
        for process in ranks.values():
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def _raise_exit(signum, frame):
    sys.exit(128 + signum)


def _report(rank, status):
    """Say who failed, unless it said so itself; returns the exit status, 128 + n for signal n as shells do."""
    status = 128 - status if status < 0 else status
    if status != USER_ERROR_STATUS:
        print('error: process {} ended with status {}; the others were stopped'.format(rank, status), file=sys.stderr)
    return status


def _value_of(flag, command):
    for i, word in enumerate(command):
        if word == flag and i + 1 < len(command):
            return command[i + 1]
        if word.startswith(flag + '='):
            return word.split('=', 1)[1]
    return None


if __name__ == '__main__':
    run(main, sys.argv[1:])
