"""One output folder, one run at a time; a run that died does not hold it."""
import errno
import fcntl
import os
import signal
import threading

import pytest
from conftest import pretrain

from util import file_lock
from util.file_lock import RunLock

pytestmark = pytest.mark.compat


def test_a_lock_that_another_process_holds_a_little_longer_is_waited_for(tmp_path):
    held = os.open(str(tmp_path / '.lock'), os.O_CREAT | os.O_RDWR)     # as a loader process whose run was killed
    fcntl.flock(held, fcntl.LOCK_EX)
    threading.Timer(.3, os.close, (held,)).start()
    RunLock(str(tmp_path)).release()


def test_where_the_file_system_has_no_locks_runs_go_on_with_a_warning(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOTSUP, 'Operation not supported')
    monkeypatch.setattr(fcntl, 'flock', flock)
    for _ in range(2):
        lock = RunLock(str(tmp_path))
    assert len(caplog.records) == 2 and str(tmp_path) in caplog.records[0].getMessage()
    lock.release()


def test_a_folder_in_use_is_left_alone_and_a_run_that_is_killed_holds_nothing(images, tmp_path, monkeypatch):
    (tmp_path / 'log.txt').write_text('of the run')
    ours, theirs = os.pipe()
    running = os.fork()
    if running == 0:
        lock = RunLock(str(tmp_path))
        os.write(theirs, b'x')
        signal.pause()
        lock.release()
    os.read(ours, 1)
    monkeypatch.setattr(file_lock, 'LOCK_TIMEOUT', .1)
    run = pretrain('--data_path', images, '--output_dir', tmp_path)
    assert run.status == 2 and 'process {} on '.format(running) in run.output
    assert (tmp_path / 'log.txt').read_text() == 'of the run'
    os.kill(running, signal.SIGKILL)
    os.waitpid(running, 0)
    RunLock(str(tmp_path)).release()
    assert not (tmp_path / 'run.lock').exists()
