"""When a process dies or hangs the others end, soon, and one line names it; nobody is alarmed without a cause."""
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import PRETRAIN, ROOT, execute

# A process of a small run, without torch: argv is folder, rank, size, hang_timeout, host, and what it does.
SCRIPT = '''
import os, signal, sys, threading, time
from util import watchdog
from util.errors import UserError, run

folder, (rank, size), hang_timeout, host, act = sys.argv[1], map(int, sys.argv[2:4]), float(sys.argv[4]), *sys.argv[5:]
watchdog.BEAT, watchdog.GRACE, watchdog.SILENCE, watchdog.SLEPT, watchdog.EXPLAIN = .1, .5, 1., .5, 3.
address = os.path.join(folder, 'address')

def begin():
    if size == 1:
        watchdog.begin(watchdog.Watchdog(0, 1, hang_timeout, host))
    elif rank == 0:
        hub = watchdog.Hub(size, hang_timeout, host)
        watchdog.begin(hub)
        with open(address + '.new', 'w') as file:
            file.write(hub.address)
        os.rename(address + '.new', address)
        hub.meet(hang_timeout)
    else:
        until(lambda: os.path.exists(address))
        watchdog.begin(watchdog.Peer(rank, size, hang_timeout, '127.0.0.1', open(address).read(), host))

def until(true):
    while not true():
        time.sleep(.02)

def done(name):
    return os.path.exists(os.path.join(folder, name))

def say(name):
    open(os.path.join(folder, name), 'w').close()

def work(seconds, alone=False):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        watchdog.at('its work', alone)
        time.sleep(.02)

def wait_for_ever():
    threading.Event().wait()

def main():
    begin()
    watchdog.at('step 1')
    exec(act)
    watchdog.stop()

run(main)
'''


class Processes:
    """Processes that each run SCRIPT with their line of `acts`."""

    def __init__(self, folder, acts, hang_timeout=600., hosts=None):
        self.folder = folder
        script = folder / 'script.py'
        script.write_text(SCRIPT)
        hosts = hosts or ['here'] * len(acts)
        self.started = [subprocess.Popen(
            [sys.executable, str(script), str(folder), str(rank), str(len(acts)), str(hang_timeout), hosts[rank], act],
            stderr=subprocess.PIPE) for rank, act in enumerate(acts)]

    def name(self, rank, host='here'):
        return 'process {} of {} (host {}, pid {})'.format(rank, len(self.started), host, self.started[rank].pid)

    def wait_for(self, name):
        deadline = time.monotonic() + 60
        while not (self.folder / name).exists():
            assert time.monotonic() < deadline
            time.sleep(.02)

    def end(self, but=()):
        """(statuses, what they said), of all but a rank that stays stopped."""
        for rank in but:
            self.started[rank].poll()
        outputs = [process.communicate(timeout=60)[1].decode() for rank, process in enumerate(self.started)
                   if rank not in but]
        return [process.returncode for rank, process in enumerate(self.started) if rank not in but], ''.join(outputs)


@pytest.fixture
def processes(tmp_path):
    begun = []

    def start(*acts, **options):
        begun.append(Processes(tmp_path, acts, **options))
        return begun[-1]
    yield start
    for each in begun:
        for process in each.started:
            if process.poll() is None:
                process.kill()          # also where it is stopped
            process.communicate()


def stopped(process):
    """Wait until a process has stopped by a signal."""
    deadline = time.monotonic() + 60
    while True:
        with open('/proc/{}/stat'.format(process.pid)) as file:
            if file.read().rsplit(')', 1)[1].split()[0] == 'T':
                return
        assert time.monotonic() < deadline
        time.sleep(.02)


DIE = 'work(.5); os.kill(os.getpid(), signal.SIGKILL)'
FREEZE = 'work(.5); os.kill(os.getpid(), signal.SIGSTOP)'


@pytest.mark.parametrize('dead', [0, 1])
def test_a_killed_process_ends_the_others_even_where_they_wait_for_ever(processes, dead):
    acts = ['wait_for_ever()'] * 3
    acts[dead] = DIE
    run = processes(*acts)
    statuses, output = run.end()
    assert sorted(statuses) == [-9, 70, 70]
    assert output == 'error: {} is gone, last seen at its work; the others end too\n'.format(run.name(dead))


def test_a_loader_process_that_outlives_its_killed_process_does_not_hide_the_death(processes):
    run = processes('wait_for_ever()', 'os.fork() or (os.close(2), time.sleep(20), os._exit(0)); ' + DIE)
    begun = time.monotonic()
    statuses = [process.wait(timeout=60) for process in run.started]
    assert statuses == [70, -9] and time.monotonic() - begun < 15


@pytest.mark.parametrize('frozen', [0, 1])
def test_a_stopped_process_is_named_when_nobody_has_made_progress_for_so_long(processes, frozen):
    acts = ['wait_for_ever()'] * 3
    acts[frozen] = FREEZE
    run = processes(*acts, hang_timeout=3)
    statuses, output = run.end(but=[frozen])
    assert statuses == [70, 70] and output.count('\n') == 1
    assert re.match(r'error: no progress for [3-9] s: {} hangs at its work; see --hang_timeout\n'.format(
        re.escape(run.name(frozen))), output), output


@pytest.mark.parametrize('stuck', [0, 1])
def test_a_process_that_stays_behind_is_named_when_all_hang(processes, stuck):
    acts = ['watchdog.at("step 2"); wait_for_ever()'] * 3
    acts[stuck] = 'wait_for_ever()'
    run = processes(*acts, hang_timeout=2)
    statuses, output = run.end()
    assert statuses == [70, 70, 70] and output == \
        'error: no progress for 2 s: {} hangs at step 1; see --hang_timeout\n'.format(run.name(stuck))


def test_all_are_named_where_none_is_behind(processes):
    run = processes('watchdog.at("evaluation", alone=True); wait_for_ever()', 'wait_for_ever()', hang_timeout=2)
    statuses, output = run.end()
    assert statuses == [70, 70] and output == 'error: no progress for 2 s: {} hangs at evaluation, {} hangs at ' \
        'step 1; see --hang_timeout\n'.format(run.name(0), run.name(1))


def test_a_process_that_is_alone_is_watched_too(processes):
    run = processes('wait_for_ever()', hang_timeout=1)
    assert run.end() == ([70], 'error: no progress for 1 s: {} hangs at step 1; see --hang_timeout\n'.format(
        run.name(0)))


def test_progress_of_one_process_is_progress_of_all(processes):
    wait = 'until(lambda: done("over"))'
    assert processes('work(5, alone=True); say("over")', wait, wait, hang_timeout=2.5).end() == ([0, 0, 0], '')


def test_processes_may_part_one_after_the_other(processes):
    assert processes('pass', 'work(2)', 'pass').end() == ([0, 0, 0], '')


def test_who_has_waited_for_the_first_process_may_part_after_it(processes):
    assert processes('work(4, alone=True)', 'time.sleep(5)', hang_timeout=2.5).end() == ([0, 0], '')


def test_who_hangs_after_the_first_process_has_parted_ends_by_itself(processes):
    run = processes('pass', 'wait_for_ever()', hang_timeout=2)
    statuses, output = run.end()
    assert statuses == [0, 70] and '{} hangs at step 1'.format(run.name(1)) in output


def test_a_mistake_of_one_process_is_said_by_it_alone_and_its_status_is_that_of_all(processes):
    assert processes('wait_for_ever()', 'raise UserError("its own")', 'wait_for_ever()').end() == (
        [2, 2, 2], 'error: its own\n')


def test_a_mistake_of_the_first_process_ends_the_others_too(processes):
    assert processes('raise UserError("its own")', 'wait_for_ever()').end() == ([2, 2], 'error: its own\n')


def test_a_stopped_process_that_goes_on_in_time_alarms_nobody(processes):
    wait = 'until(lambda: done("over"))'
    run = processes(wait, wait.replace('until', 'say("ready"); until'))
    run.wait_for('ready')
    run.started[1].send_signal(signal.SIGSTOP)
    time.sleep(3)                                   # longer than SILENCE, which is for other hosts
    run.started[1].send_signal(signal.SIGCONT)
    (run.folder / 'over').write_text('')
    assert run.end() == ([0, 0], '')


def test_a_silent_process_on_another_host_counts_as_dead_before_the_hang_timeout(processes):
    run = processes('wait_for_ever()', FREEZE, 'wait_for_ever()', hosts=['here', 'there', 'elsewhere'])
    statuses, output = run.end(but=[1])
    lines = output.splitlines()
    assert statuses == [70, 70] and len(lines) == 2 and lines[0] == lines[1]        # one for the log of each host
    assert re.match(r'error: {} gives no sign of life for \d s, last seen at its work; the others end too$'.format(
        re.escape(run.name(1, 'there'))), lines[0]), output


def test_a_machine_that_was_suspended_is_not_taken_for_a_hang(processes):
    act = 'say("ready-{}".format(rank)); until(lambda: done("over"))'
    run = processes(act, act, hang_timeout=3)
    for rank in (0, 1):
        run.wait_for('ready-{}'.format(rank))
    for process in run.started:
        process.send_signal(signal.SIGSTOP)
    for process in run.started:
        stopped(process)
    time.sleep(4)
    (run.folder / 'over').write_text('')
    for process in run.started:
        process.send_signal(signal.SIGCONT)
    assert run.end() == ([0, 0], '')


def test_a_process_that_never_comes_is_named(processes):
    run = processes('pass', 'os._exit(0)', hang_timeout=3)
    run.started[1].kill()
    assert run.end() == ([70, -9], 'error: no sign of process 1 of 2 within 3 s; start all of them, each with the same '
                         'master address and port; see --hang_timeout\n')


@pytest.mark.parametrize('words', [b'', b'GET / HTTP/1.0\n\n', b'[1]\n',
                                   b'{"rank": 1, "token": "guessed", "status": 2}\n'])
def test_a_stranger_who_connects_changes_nothing(processes, words):
    wait = 'until(lambda: done("over"))'
    run = processes(wait, 'say("ready"); ' + wait)
    run.wait_for('ready')
    port = int((run.folder / 'address').read_text().split()[0])
    with socket.create_connection(('127.0.0.1', port), 10) as stranger:
        stranger.sendall(words)
        if words:
            assert stranger.recv(1) == b''              # shown the door
    (run.folder / 'over').write_text('')
    assert run.end() == ([0, 0], '')


def test_an_operation_that_fails_as_a_process_has_died_is_one_line(processes):
    run = processes('until(lambda: done("dead")); raise RuntimeError("Connection closed by peer")',
                    'say("dead"); ' + DIE)
    statuses, output = run.end()
    assert statuses == [70, -9] and output.startswith('error: ' + run.name(1)) and output.count('\n') == 1, output


def test_an_operation_that_fails_by_a_bug_shows_its_traceback(processes):
    statuses, output = processes('raise RuntimeError("shapes differ")', 'until(lambda: done("never"))').end()
    assert statuses[0] == 1 and 'Traceback' in output and 'RuntimeError: shapes differ' in output, output


def test_a_checkpoint_that_is_being_written_is_finished_first(processes):
    save = 'threading.Thread(target=lambda: (until(lambda: done("dead")), time.sleep(2), say("saved"))).start()'
    run = processes(save + '; wait_for_ever()', 'say("dead"); ' + DIE)
    assert run.end()[0] == [70, -9] and (run.folder / 'saved').exists()


# Kills one process of a training while the other waits for its gradients.
KILLED = '''
import os, runpy, signal, sys, time
from util.updates import WeightUpdates

if os.environ['RANK'] == '1':
    # Its place is known to the others by then.
    WeightUpdates.backward = lambda self, loss: (time.sleep(3), os.kill(os.getpid(), signal.SIGKILL))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
'''


@pytest.mark.slow
def test_a_training_whose_second_process_is_killed_ends_with_a_line_that_names_it(images, tmp_path):
    script = tmp_path / 'killed.py'
    script.write_text(KILLED)
    begun = time.monotonic()
    run = execute([sys.executable, ROOT / 'util' / 'launch.py', '--nproc', 2, script, ROOT / 'main_pretrain.py',
                   *PRETRAIN, '--data_path', images, '--output_dir', tmp_path / 'o', '--batch_size', 4])
    assert run.status not in (0, 2) and 'Traceback' not in run.output, run.output
    assert len(re.findall(r'^error: process 1 of 2 \(host \S+, pid \d+\) is gone, last seen at epoch 0, iteration 0: '
                          r'at work; the others end too$', run.output, re.M)) == 1, run.output
    assert time.monotonic() - begun < 120
