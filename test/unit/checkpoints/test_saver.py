"""Saving beside training; disks that are full, read-only or forbidden: the old checkpoint stays, the user reads why."""
import errno
import os
import subprocess
import threading

import pytest
import torch
from conftest import pretrain
from test_end_to_end import same

from util.checkpoints import checkpointer, pth_file
from util.checkpoints.checkpointer import Saver
from util.file_lock import RunLock
from util.reporting.run_logger import RunLogger


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a megabyte and a half."""
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


def test_saving_goes_on_beside_the_caller_with_the_state_of_that_moment(tmp_path, monkeypatch):
    gate, save = threading.Event(), pth_file.save
    monkeypatch.setattr(checkpointer, 'save', lambda path, content: (gate.wait(30), save(path, content)))
    saver, weights = Saver(str(tmp_path), 1e-9, 3), state(1)
    saver.failed = True                     # the save before
    saver.save(weights, ['checkpoint-0.pth'])
    weights['model']['w'] += 1              # the next step, while the thread has not written yet
    assert not list(tmp_path.iterdir()) and not saver.due
    gate.set()
    assert saver.wait() and saver.due
    assert same(pth_file.load(str(tmp_path / 'checkpoint-0.pth')), state(1))


def test_only_the_newest_checkpoints_stay_beside_the_best_and_all_where_0_are_to_be_kept_last(tmp_path):
    for keep_last, left in ((0, {0, 1, 2, 3}), (2, {2, 3})):
        saver = Saver(str(tmp_path), 0, keep_last)
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
    assert caught.value.errno == errno.ENOSPC       # PyTorch 1.8 and 1.11 abort where a write fails in their hands
    assert (small_disk / 'checkpoint-0.pth').read_bytes() == before
    assert sorted(os.listdir(str(small_disk))) == ['checkpoint-0.pth', 'filler']


@pytest.mark.slow
def test_training_goes_on_without_room_and_its_status_says_that_the_end_is_not_saved(images, small_disk):
    run = pretrain('--data_path', images, '--output_dir', small_disk / 'o', '--epochs', 2, '--save_every', 1)
    assert run.status == 74 and 'Traceback' not in run.output, run.output
    assert '{}: '.format(small_disk / 'o' / 'checkpoint-0.pth') in run.output
    assert len((small_disk / 'o' / 'log.txt').read_text().splitlines()) == 2


def fill(folder):
    """Take all the room that is left."""
    handle = os.open(str(folder / 'filler'), os.O_CREAT | os.O_WRONLY)
    try:
        while os.write(handle, b'x' * 4096):
            pass
    except OSError as error:
        assert error.errno == errno.ENOSPC
    os.close(handle)


def test_a_log_on_a_full_disk_keeps_its_lines_and_writes_them_when_there_is_room(small_disk):
    run_logger = RunLogger(str(small_disk), None, RunLock(str(small_disk)))
    run_logger.log_epoch({'epoch': 0})
    fill(small_disk)
    for epoch in (1, 2):
        run_logger.log_scalars(epoch, {'loss': 1.})
        run_logger.log_epoch({'epoch': epoch})
    assert (small_disk / 'log.txt').read_text() == '{"epoch": 0}\n'
    run_logger.write_result('summary', {'task': 'Training', 'duration_sec': 1})
    (small_disk / 'filler').unlink()
    run_logger.log_epoch({'epoch': 3})
    assert (small_disk / 'log.txt').read_text() == ''.join('{{"epoch": {}}}\n'.format(i) for i in range(4))
    run_logger.close()


@pytest.mark.slow
def test_a_disk_that_is_full_from_the_start_is_one_line(images, small_disk):
    (small_disk / 'o').mkdir()
    fill(small_disk)
    run = pretrain('--data_path', images, '--output_dir', small_disk / 'o', '--epochs', 1)
    assert run.status == 2 and 'error: --output_dir {}: '.format(small_disk / 'o') in run.output, run.output
    assert os.listdir(str(small_disk / 'o')) == ['.lock']
