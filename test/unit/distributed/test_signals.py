"""A first signal stops a run after its step and saves; a second one stops it at once."""
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
from util.tools.launch import child_pids


def start(images, folder, *words):
    """An endless training run, once it logs; `words` precede the script."""
    process = subprocess.Popen([str(word) for word in (
        sys.executable, *words, ROOT / 'main_pretrain.py', *PRETRAIN, '--data_path', images, '--output_dir', folder,
        '--epochs', 100000, '--batch_size', 4)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for(folder / 'log.txt', process)
    return process


@pytest.mark.slow
@pytest.mark.compat
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(images, tmp_path):
    process = start(images, tmp_path, ROOT / 'util' / 'tools' / 'launch.py', '--nproc', 2)
    supervisor, = child_pids(process.pid)
    second, = [pid for pid in child_pids(supervisor) if b'RANK=1' in Path('/proc', str(pid), 'environ').read_bytes()
               .split(b'\0')]
    os.kill(second, signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75 and output.count(b'stopped by ') == 1, output


# Runs a main script whose checkpoints are never finished.
SLOW = """
import runpy, sys, time
import util
from util.checkpoints import pth_file
pth_file.save = lambda path, state: time.sleep(1000)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.mark.slow
@pytest.mark.compat
def test_a_second_signal_stops_at_once(images, tmp_path):
    script = tmp_path / 'slow.py'
    script.write_text(SLOW)
    process = start(images, tmp_path / 'o', script)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)             # as from a terminal and its launcher: one request
    time.sleep(signals.DUPLICATE_WINDOW + .5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM


SCRIPT = """
import os, signal, threading
from util.distributed.signals import SignalHandler
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])      # as a launcher starts its processes
os.kill(os.getpid(), signal.SIGUSR1)
with SignalHandler():
    threading.Event().wait()
"""


@pytest.mark.compat
def test_a_signal_before_training_ends_the_process_at_once_even_if_it_came_during_the_imports():
    run = execute([sys.executable, '-c', SCRIPT])
    assert run.status == 75 and 'SIGUSR1' in run.output and run.output.count('\n') == 1
