"""A first signal stops a run after its step and saves; a second one stops it at once."""
import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PRETRAIN, ROOT, execute
from test_launchers import wait_for

from util.distributed import signals
from util.distributed.signals import StopRequests
from util.errors import FORWARDED, LAUNCHER_EXITED, signal_name


def start(images, folder):
    """An endless training by two processes."""
    return subprocess.Popen([str(word) for word in (
        sys.executable, ROOT / 'util' / 'tools' / 'launch.py', '--nproc', 2, ROOT / 'main_pretrain.py', *PRETRAIN,
        '--data_path', images, '--output_dir', folder, '--epochs', 100000, '--batch_size', 4)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for_worker(launcher, rank):
    """Pid of the process of `rank` that util/tools/launch.py has started."""
    while launcher.poll() is None:
        for pid in Path('/proc/{0}/task/{0}/children'.format(launcher.pid)).read_text().split():
            if 'RANK={}'.format(rank).encode() in Path('/proc', pid, 'environ').read_bytes().split(b'\0'):
                return int(pid)
        time.sleep(.05)


@pytest.mark.slow
@pytest.mark.compat
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(images, tmp_path):
    process = start(images, tmp_path)
    wait_for(tmp_path / 'log.txt', process)
    os.kill(wait_for_worker(process, 1), signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75 and output.count(b'stopped by ') == 1, output


@pytest.mark.compat
@pytest.mark.parametrize('numbers, requests, seconds', [
    ([15, FORWARDED + 15], 1, 0.), ([FORWARDED + 2, 2], 1, 0.), ([15, FORWARDED + 15, 15, FORWARDED + 15], 2, 0.),
    ([FORWARDED + 10, FORWARDED + 15], 2, 0.), ([2, LAUNCHER_EXITED], 1, 0.), ([LAUNCHER_EXITED, 15], 1, 0.),
    ([2, 2], 1, 60.)])          # torchrun repeats it
def test_a_signal_and_its_copies_are_one_request(monkeypatch, numbers, requests, seconds):
    """A forwarded one however much time lies between them."""
    monkeypatch.setattr(signals, 'REPEATED', seconds)
    counted = StopRequests()
    for number in numbers:
        counted.add(number)
    assert len(counted.numbers) == requests and counted.numbers[0] == numbers[0]


# As a launcher starts its processes: signals are blocked.
SCRIPT = """
import os, signal, threading, time
from util import errors
from util.distributed.signals import SignalHandler
signal.pthread_sigmask(signal.SIG_BLOCK, errors.STOP_SIGNALS)
os.kill(os.getpid(), {})
{}
threading.Event().wait()
"""


@pytest.mark.compat
@pytest.mark.parametrize('number', [signal.SIGUSR1, signal.SIGINT, FORWARDED + signal.SIGTERM])
@pytest.mark.parametrize('handle', ['SignalHandler().__enter__()', 'errors.begin("__main__")'])
def test_a_signal_before_training_ends_the_process_with_one_line(number, handle):
    run = execute([sys.executable, '-c', SCRIPT.format(int(number), handle)])
    assert run.status == 75 and signal_name(number) in run.output and run.output.count('\n') == 1


@pytest.mark.parametrize('script', ['main_pretrain', 'main_finetune', 'main_linprobe', 'main_predict'])
def test_signals_are_handled_before_anything_else_is_imported(script):
    first, second, *_ = ast.parse((ROOT / (script + '.py')).read_text()).body[1:]
    assert isinstance(first, ast.ImportFrom) and ast.dump(second) == ast.dump(
        ast.parse('errors.begin(__name__)').body[0])


@pytest.mark.compat
def test_a_second_signal_stops_at_once():
    code = """handler = SignalHandler().__enter__()
handler.graceful = True
for number in (errors.FORWARDED + 15, 15, errors.FORWARDED + 2):
    time.sleep(.5)
    print(handler.requested, flush=True)
    os.kill(os.getpid(), number)"""
    run = execute([sys.executable, '-c', SCRIPT.format(0, code)])
    assert run.status == 128 + signal.SIGINT and run.output.startswith('\nSIGTERM\nSIGTERM\nstopped at once'), run


@pytest.mark.slow
@pytest.mark.compat
@pytest.mark.parametrize('rank', [0, 1])
def test_a_signal_to_one_of_two_processes_before_training_stops_both(images, tmp_path, rank):
    process = start(images, tmp_path)
    os.kill(wait_for_worker(process, rank), signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75 and output.count(b'\n') == 1 and b'stopped by SIG' in output, output
