"""A process without progress ends with status 70, one line and all stacks; nobody is alarmed without a cause."""
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import execute

from util.devices.accelerator import Cpu
from util.distributed.world import World
from util.errors import SystemFailure
from util.tools.launch import free_port

pytestmark = pytest.mark.compat

# A process that is watched, without torch: argv is what it does.
SCRIPT = """
import ctypes, signal, sys, threading, time
from util.distributed import hang_detector

hang_detector.TICK, hang_detector.SUSPENDED, hang_detector.SAVING = .1, 1., 3.

def wait_for_ever():
    threading.Event().wait()

def write_checkpoint():
    time.sleep(2.)
    print('written', flush=True)

hang_detector.start(1., 1, 2)
hang_detector.progress('step 1')
exec(sys.argv[1])
hang_detector.stop()
"""


def end(act):
    """(status, output) of a process that is watched."""
    return execute([sys.executable, '-c', SCRIPT, act])


def test_a_process_without_progress_says_who_and_where_it_is_shows_its_stacks_and_ends():
    status, output = end('list(hang_detector.watched(iter(wait_for_ever, 0), "epoch 3", 120))')
    line, *stacks = output.splitlines()
    assert status == 70 and re.match(r'error: process 1 of 2 \(host \S+, pid \d+\): no progress for \d+ s at epoch 3, '
                                     r'iteration 120: waiting for data; see --hang_timeout', line), output
    assert ' in wait_for_ever' in '\n'.join(stacks)


def test_batches_count_as_progress_and_who_has_stopped_is_watched_no_longer():
    act = 'for i, _ in hang_detector.watched(range(20), "epoch 0"): time.sleep(.1)\nhang_detector.stop(); time.sleep(3)'
    assert end(act) == (0, '')


def test_a_checkpoint_that_is_being_written_is_finished_first():
    status, output = end('threading.Thread(target=write_checkpoint).start(); wait_for_ever()')
    assert status == 70 and output.startswith('written\nerror: ')


def test_a_machine_that_was_suspended_is_not_taken_for_a_hang():
    process = subprocess.Popen([sys.executable, '-c', SCRIPT, 'print("ready", flush=True); time.sleep(.8)'],
                               stdout=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=60) == 0


def test_a_process_whose_threads_cannot_run_ends_with_its_stacks():
    """PyDLL keeps Python's lock, as an extension does that hangs."""
    status, output = end('time.sleep(.5); ctypes.PyDLL(None).sleep(100)')
    assert status == 1 and 'most recent call first' in output, output


@pytest.mark.parametrize('rank, missing', [(0, 'process 1 of 2'), (1, 'cannot meet the others')])
def test_a_process_whose_peer_never_comes_says_so(rank, missing):
    with pytest.raises(SystemFailure, match=missing):
        World(rank, 2).join(Cpu(), 'tcp://127.0.0.1:{}'.format(free_port()), hang_timeout=1.)
