"""A signal stops a run after its step, saved; a second one stops it at once."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PRETRAIN, ROOT, pretrain

from util import stops

LONG = ['--epochs', '100000', '--warmup_epochs', '1']


def start(images, folder, *flags, words=(), until='log.txt'):
    """A training that would take for ever, once the file `until` is there."""
    process = subprocess.Popen([str(word) for word in (
        sys.executable, *words, ROOT / 'main_pretrain.py', *PRETRAIN, '--data_path', images, '--output_dir', folder,
        *LONG, *flags)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 90
    while not (folder / until).exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0].decode()
        time.sleep(.05)
    return process


def children_of(pid):
    """Pids of the processes that a process has started."""
    return {int(stat.parent.name) for stat in Path('/proc').glob('[0-9]*/stat')
            if int(stat.read_text().rsplit(')', 1)[1].split()[1]) == pid}


def end(process):
    """(status, output)"""
    output = process.communicate(timeout=60)[0].decode()
    return process.returncode, output


@pytest.mark.slow
@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT', 'SIGUSR1'])
def test_a_signal_stops_the_run_after_its_step_and_the_run_goes_on_from_there(images, tmp_path, name):
    process = start(images, tmp_path, '--num_workers', 1)
    process.send_signal(getattr(signal, name))
    status, output = end(process)
    assert status == 75 and 'Traceback' not in output, output
    match = re.search(r'^stopped by {} in epoch (\d+) after \d of 4 iterations; (\S+) is saved'.format(name), output,
                      re.M)
    assert match and (tmp_path / match.group(2)).exists(), output
    assert not (tmp_path / 'run.lock').exists()
    epoch = int(match.group(1))
    if name == 'SIGUSR1':
        run = pretrain('--data_path', images, '--output_dir', tmp_path, '--resume', 'auto', '--epochs', epoch + 1)
        assert run.status == 0 and 'loaded the weights of {}'.format(tmp_path / match.group(2)) in run.output
        assert len((tmp_path / 'log.txt').read_text().splitlines()) == epoch + 1


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(images, tmp_path):
    process = start(images, tmp_path, '--batch_size', 4, words=[ROOT / 'util' / 'launch.py', '--nproc', 2])
    first = json.loads((tmp_path / 'run.lock').read_text())['pid']
    os.kill((children_of(process.pid) - {first}).pop(), signal.SIGTERM)
    status, output = end(process)
    assert status == 75, output
    assert re.search(r'^stopped by a signal to another process in epoch \d+ after \d of 4', output, re.M), output


# A main script whose checkpoints take for ever to be written.
SLOW = """
import runpy, sys, time
sys.path.insert(0, {!r})
import util
from util import checkpoint_file
checkpoint_file.save = lambda path, state: time.sleep(1000)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.mark.slow
def test_a_second_signal_stops_at_once(images, tmp_path):
    script = tmp_path / 'slow.py'
    script.write_text(SLOW.format(str(ROOT)))
    process = start(images, tmp_path / 'o', words=[script])
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)             # as from a terminal and its launcher: one request
    time.sleep(stops.ONE_REQUEST + .5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    status, output = end(process)
    assert status == 128 + signal.SIGTERM, output
    assert output.strip().endswith('stopped at once by a second signal (SIGTERM)')


SCRIPT = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from util.stops import Stops
Stops()
os.kill(os.getpid(), signal.SIGUSR1)
signal.pause()
signal.pause()
"""


def test_a_signal_before_training_ends_the_process_at_once_and_says_so():
    run = subprocess.run([sys.executable, '-c', SCRIPT, str(ROOT)], stderr=subprocess.PIPE, timeout=60)
    assert (run.returncode, run.stderr.decode()) == (75, 'stopped by SIGUSR1 before training; nothing to save\n')
