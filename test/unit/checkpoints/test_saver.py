"""Background saving; on a full or read-only disk the old checkpoint stays and the reason is logged."""
import errno
import os
import subprocess
import threading

import pytest
import torch
from conftest import pretrain
from test_end_to_end import same

from util.checkpoints import checkpointer, pth_file
from util.checkpoints.checkpointer import Checkpointer
from util.file_lock import RunLock
from util.reporting.run_logger import RunLogger


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1.5 MB."""
    folder = tmp_path / 'small disk'
    folder.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1500k', 'tmpfs', str(folder)],
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if mounted.returncode:
        pytest.skip('a small disk takes the right to mount: ' + mounted.stdout.decode().strip())
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)


def state(value, size=1000):
    return {'model': {'w': torch.full((size,), float(value))}, 'epoch': value}


def test_a_background_save_writes_the_state_at_the_time_of_the_call(tmp_path, monkeypatch):
    gate, save = threading.Event(), pth_file.save
    monkeypatch.setattr(checkpointer, 'save', lambda path, content: (gate.wait(30), save(path, content)))
    saver, weights = Checkpointer(str(tmp_path), every_minutes=1e-9), state(1)
    saver.failed = True                     # the previous save
    saver.save(weights, ['checkpoint-0.pth'])
    weights['model']['w'] += 1              # the next step, while the thread has not written yet
    assert not list(tmp_path.iterdir()) and not saver.due
    gate.set()
    assert saver.wait() and saver.due
    assert same(pth_file.load(str(tmp_path / 'checkpoint-0.pth')), state(1))


def test_the_newest_and_the_best_checkpoints_are_kept_and_keep_last_0_keeps_all(tmp_path):
    for keep_last, left in ((0, {0, 1, 2, 3}), (2, {2, 3})):
        saver = Checkpointer(str(tmp_path), keep_last=keep_last)
        for epoch in range(4):
            saver.save(state(epoch), [checkpointer.name_after(epoch), checkpointer.BEST])
        names = {checkpointer.BEST, *map(checkpointer.name_after, left)}
        assert saver.wait() and set(os.listdir(str(tmp_path))) == names


@pytest.mark.compat
@pytest.mark.parametrize('room', range(0, 1500, 450))
def test_a_disk_that_fills_up_at_any_stage_of_a_save_leaves_the_old_checkpoint(small_disk, room):
    path = str(small_disk / 'checkpoint-0.pth')
    pth_file.save(path, state(0))
    before = (small_disk / 'checkpoint-0.pth').read_bytes()
    (small_disk / 'filler').write_bytes(b'x' * 1024 * (1400 - room))
    with pytest.raises(OSError) as caught:
        pth_file.save(path, state(1, 400000))
    assert caught.value.errno == errno.ENOSPC       # PyTorch 1.8 and 1.11 abort if a write of theirs fails
    assert (small_disk / 'checkpoint-0.pth').read_bytes() == before
    assert sorted(os.listdir(str(small_disk))) == ['checkpoint-0.pth', 'filler']


@pytest.mark.slow
def test_training_continues_on_a_full_disk_and_exits_with_74(images, small_disk):
    run = pretrain('--data_path', images, '--output_dir', small_disk / 'o', '--epochs', 2, '--save_every', 1)
    assert run.status == 74 and 'Traceback' not in run.output, run.output
    assert '{}: '.format(small_disk / 'o' / 'checkpoint-0.pth') in run.output
    assert len((small_disk / 'o' / 'log.txt').read_text().splitlines()) == 2


def test_log_lines_on_a_full_disk_are_kept_and_written_when_there_is_room(small_disk):
    run_logger = RunLogger(str(small_disk), None, RunLock(str(small_disk)))
    run_logger.log_epoch({'epoch': 0})
    with open(str(small_disk / 'filler'), 'wb', buffering=0) as file, pytest.raises(OSError, match='No space left'):
        while file.write(b'x' * 4096):
            pass
    for epoch in (1, 2):
        run_logger.log_scalars(epoch, {'loss': 1.})
        run_logger.log_epoch({'epoch': epoch})
    assert (small_disk / 'log.txt').read_text() == '{"epoch": 0}\n'
    run_logger.write_result('summary', {'task': 'Training', 'duration_sec': 1})
    (small_disk / 'filler').unlink()
    run_logger.log_epoch({'epoch': 3})
    assert (small_disk / 'log.txt').read_text() == ''.join('{{"epoch": {}}}\n'.format(i) for i in range(4))
    run_logger.close()
