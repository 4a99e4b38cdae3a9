"""One output folder, one run at a time; a run that died does not hold it."""
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import PRETRAIN, ROOT, launcher, pretrain

from util import run_lock
from util.errors import UserError
from util.run_lock import RunLock


def written(folder, **changes):
    """The lock of a run with other properties than this process."""
    lock = RunLock(str(folder))
    lock.release()
    (folder / run_lock.NAME).write_text(json.dumps({**lock._owner, **changes}))


def test_a_second_run_is_refused_with_the_name_of_the_first_and_may_begin_after_its_end(tmp_path):
    lock = RunLock(str(tmp_path))
    with pytest.raises(UserError, match=r'a run that began .* is at work there \(process {} on '.format(os.getpid())):
        RunLock(str(tmp_path))
    lock.release()
    RunLock(str(tmp_path)).release()
    assert not os.listdir(str(tmp_path))


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    child = subprocess.Popen([sys.executable, '-c', ''])
    child.wait()
    written(tmp_path, pid=child.pid)
    RunLock(str(tmp_path)).release()


def test_a_pid_that_was_given_to_another_process_is_not_taken_for_the_run(tmp_path):
    if not os.path.exists('/proc/self/stat'):
        pytest.skip('this system does not tell when a process began')
    written(tmp_path, start=1)
    RunLock(str(tmp_path)).release()


def test_a_lock_that_is_no_lock_does_not_hold_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, 'LOST', 1.)
    (tmp_path / run_lock.NAME).write_text('{"ho')
    RunLock(str(tmp_path)).release()


def test_a_run_on_another_host_counts_as_dead_when_it_gives_no_sign_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, 'LOST', 1.)
    written(tmp_path, host='elsewhere')
    RunLock(str(tmp_path)).release()


def test_a_run_on_another_host_that_gives_signs_of_life_is_respected(tmp_path):
    written(tmp_path, host='elsewhere')
    path, over = tmp_path / run_lock.NAME, threading.Event()

    def live():
        while not over.wait(.1):
            os.utime(str(path))
    other = threading.Thread(target=live)
    other.start()
    try:
        with pytest.raises(UserError, match='on elsewhere'):
            RunLock(str(tmp_path))
    finally:
        over.set()
        other.join()


def test_a_living_run_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, 'SIGN_OF_LIFE', .05)
    lock, path = RunLock(str(tmp_path)), str(tmp_path / run_lock.NAME)
    os.utime(path, (0, 0))
    deadline = time.monotonic() + 30
    while os.stat(path).st_mtime == 0:
        assert time.monotonic() < deadline
        time.sleep(.05)
    lock.release()


@pytest.mark.slow
def test_a_second_run_in_the_folder_of_a_running_one_is_one_line_and_disturbs_nothing(images, tmp_path):
    folder = tmp_path / 'o'
    flags = ['--data_path', str(images), '--output_dir', str(folder)]
    running = subprocess.Popen([sys.executable, str(ROOT / 'main_pretrain.py'), *PRETRAIN, *flags, '--epochs', '999'],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while not (folder / 'log.txt').exists():
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(.1)
        for run in (pretrain(*flags), launcher('pretrain_performance_1p', *flags, *PRETRAIN)):
            assert run.status == 2 and run.output.strip().split('\n')[-1].startswith(
                'error: --output_dir {}: a run that began '.format(folder)), run.output
        assert (folder / 'log.txt').exists() and running.poll() is None
    finally:
        running.send_signal(signal.SIGKILL)
        running.communicate()
    run = pretrain(*flags, '--epochs', 1)
    assert run.status == 0 and 'is no more' in run.output and 'earlier results kept in' in run.output, run.output
