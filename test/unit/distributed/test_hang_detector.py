"""A hang ends the process with status 70, one line and all stack traces; there are no false alarms."""
import re
import sys

import pytest
from conftest import execute

from util.devices.accelerator import Cpu
from util.distributed.world import World
from util.errors import SystemFailure
from util.tools.launch import free_port

pytestmark = pytest.mark.compat

# A monitored process, without torch; argv is the code it runs.
SCRIPT = """
import ctypes, signal, sys, threading, time
from types import SimpleNamespace
from util.distributed import hang_detector

hang_detector.TICK, hang_detector.SAVING = .1, 3.

def wait_for_ever():
    threading.Event().wait()

def write_checkpoint():
    time.sleep(2.)
    print('written', flush=True)

hang_detector.start(1., 1, 2, SimpleNamespace(first_iteration=0.))
hang_detector.heartbeat('testing')
exec(sys.argv[1])
hang_detector.stop()
"""


def monitored(code):
    """(status, output) of a monitored process."""
    return execute([sys.executable, '-c', SCRIPT, code])


def test_a_hang_is_reported_with_rank_phase_and_stack_traces():
    status, output = monitored('list(hang_detector.monitored(iter(wait_for_ever, 0), "epoch 3", 120))')
    line, *stacks = output.splitlines()
    assert status == 70 and re.match(
        r'error: rank 1 of 2 \(host \S+, pid \d+\): no progress for \d+ s while waiting for data \(epoch 3, iteration '
        r'120\); see --hang_timeout', line), output
    assert ' in wait_for_ever' in '\n'.join(stacks)


def test_batches_are_heartbeats_and_a_stopped_detector_ends_nothing():
    code = 'for i, _ in hang_detector.monitored(range(20), "epoch 0"): time.sleep(.1)'
    assert monitored(code + '\nhang_detector.stop(); time.sleep(3)') == (0, '')


FIRST = """
hang_detector.stop()
synchronize = lambda: time.sleep(queue.pop() if queue else 0)
hang_detector.start(1., 0, 1, SimpleNamespace(first_iteration=4., synchronize=synchronize))
queue = []
for loop, slow in {}:
    for i, _ in hang_detector.monitored(range(2), loop):
        queue += [1.5] * (i == slow)        # of the device, which the second iteration waits for
        time.sleep(sum(queue) * i)
"""


@pytest.mark.parametrize('loops, status', [
    ([('epoch 0', 0), ('evaluation', 0)], 0), ([('epoch 0', 1)], 70), ([('epoch 0', 2), ('epoch 1', 0)], 70)])
def test_only_the_first_iteration_of_a_kind_of_loop_may_take_longer_with_what_it_has_queued(loops, status):
    assert monitored(FIRST.format(loops)).status == status


def test_a_checkpoint_is_written_to_the_end_first():
    status, output = monitored('threading.Thread(target=write_checkpoint).start(); wait_for_ever()')
    assert status == 70 and output.startswith('written\nerror: ')


def test_a_hang_that_holds_the_gil_ends_with_stack_traces():
    """PyDLL keeps the GIL, as a hanging extension may."""
    status, output = monitored('time.sleep(.5); ctypes.PyDLL(None).sleep(100)')
    assert status == 1 and 'most recent call first' in output, output


@pytest.mark.parametrize('rank, missing', [(0, 'rank 1 of 2'), (1, 'rank 1 of 2 cannot connect')])
def test_a_missing_peer_is_reported(rank, missing):
    with pytest.raises(SystemFailure, match=missing):
        World(rank, 2).join(Cpu(), 'tcp://127.0.0.1:{}'.format(free_port()), hang_timeout=1.)


FROZEN = """
import os, signal, sys
import util, torch
from util.devices.accelerator import Cpu
from util.distributed.signals import signal_on_exit_of_parent
from util.distributed.world import World
first, rank = os.getpid(), int(os.fork() == 0)
if rank:
    signal_on_exit_of_parent(signal.SIGKILL, first)
world = World(rank, 2)
world.join(Cpu(), sys.argv[1], hang_timeout=5.)
if rank:
    os.kill(os.getpid(), signal.SIGSTOP)
world.all_reduce(torch.zeros(1))
"""


@pytest.mark.slow
def test_a_process_that_waits_for_a_frozen_one_is_reported():
    status, output = execute([sys.executable, '-c', FROZEN, 'tcp://127.0.0.1:{}'.format(free_port())])
    assert status == 70 and 'rank 0 of 2' in output and 'in all_reduce' in output, output
