"""The output folder: earlier results move when training starts, not before; one run at a time; TensorBoard files."""
import errno
import fcntl
import os
import re
import resource
import shutil
import signal
import sys
import threading
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from conftest import PRETRAIN, launcher, pretrain, write_file
from test_launchers import LOGS

import main_pretrain
from util import file_lock
from util.config.train_flags import parse_pretrain
from util.errors import UserError
from util.file_lock import RunLock
from util.reporting import output_dir
from util.reporting.run_logger import RunLogger
from util.training.session import enter_output_folder

pytestmark = pytest.mark.compat

RUN = {'log.txt', 'summary.json', 'checkpoint-0.pth', 'checkpoint-0-16.pth', 'checkpoint-best.pth', 'config.yaml',
       'eval.json', 'events.out.tfevents.1.host', 'prof/trace.json', 'prof/h_ascend_pt', 'report.html',
       *LOGS.values(), '910B_16p_finetune_full_large_node1.log'}
USER = {'notes.txt', 'my.json', 'my.log', 'sub/checkpoint-1.pth', 'checkpoint-0.20240131-142530.pth',
        '910A_1p_pretrain.20240131-142530-2.log', '910A_1p_pretrain.log.starting'}


def fill(folder, names):
    for name in names:
        write_file(folder / name, name)
        os.utime(str(folder / name), (1e9, 1e9))
    return folder


def content(folder):
    """{name: bytes} of all files but the locks."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*')
            if path.is_file() and path.name not in ('.lock', 'run.lock')}


def entered(folder, **options):
    """Where earlier results went when a new training entered the folder."""
    lock, places = output_dir.enter(str(folder), True, **options)
    lock.release()
    return places


def test_a_second_run_moves_the_files_of_the_first_and_no_others_into_a_dated_subfolder(tmp_path):
    folder = fill(tmp_path / 'o', RUN | USER | {'tb/events.out.tfevents.2.host'})
    place, = entered(folder, log_dir=str(folder / 'tb'))
    assert re.match(re.escape(str(folder)) + r'/earlier\.2001\d{4}-\d{6}$', place)
    assert set(content(tmp_path / place)) == RUN | {'tb/events.out.tfevents.2.host'}
    assert entered(folder) == []
    shutil.move(place, str(tmp_path))
    assert set(content(folder)) == USER


def test_files_of_a_user_mark_no_folder_as_that_of_a_run(tmp_path):
    before = content(fill(tmp_path / 'o', ['my.json', 'config.yaml', 'data.csv']))
    assert entered(tmp_path / 'o') == [] and content(tmp_path / 'o') == before


def test_where_nothing_can_be_moved_the_run_ends_with_one_line_and_the_folder_free(tmp_path, monkeypatch):
    folder = fill(tmp_path / 'o', ['log.txt'])
    monkeypatch.setattr(os, 'mkdir', lambda *_: os.rmdir('/'))
    for _ in range(2):
        with pytest.raises(UserError, match='^--output_dir {}: '.format(folder)):
            entered(folder)
    assert set(content(folder)) == {'log.txt'}


def test_a_training_continues_where_it_resumes_from_a_checkpoint_of_its_folder_or_is_a_restart(tmp_path, monkeypatch):
    os.symlink(str(tmp_path), str(tmp_path / 'link'))
    monkeypatch.chdir(str(tmp_path))
    for folder, checkpoint, expected in (
            (tmp_path, None, False), (tmp_path, '', False), (tmp_path, tmp_path / 'checkpoint-1.pth', True),
            ('.', 'checkpoint-1.pth', True), (tmp_path / 'link', tmp_path / 'x.pth', True),
            (tmp_path, tmp_path / 'earlier.20240131-142530' / 'x.pth', False), (tmp_path / 'o', 'x.pth', False)):
        assert output_dir.continues(str(folder), checkpoint and str(checkpoint)) == expected
    marker = fill(tmp_path, ['marker']) / 'marker'
    monkeypatch.setenv('MAE_ENTERED', str(marker))
    assert not output_dir.continues('o', None)
    monkeypatch.setenv('MAE_RESTART', '1')
    assert output_dir.continues('o', None)
    marker.write_text('')                   # the first attempt ended before it entered the folder
    assert not output_dir.continues('o', None)
    marker.unlink()                         # by whoever cleans /tmp: a run of weeks must not lose its place
    assert output_dir.continues('o', None)


def test_resume_auto_without_checkpoint_is_one_line_that_names_the_earlier_results(tmp_path, caplog):
    fill(tmp_path, ['o/earlier.20240131-142530/checkpoint-9.pth', 'o/earlier.20240201-000000/log.txt', 'o/log.txt',
                    'o[1]/log.txt'])
    for name in ('o', 'o[1]'):
        output_dir.report_no_checkpoint(str(tmp_path / name))
    within, without = caplog.messages
    assert 'o/earlier.20240131-142530/checkpoint-9.pth' in within
    assert '--resume auto' in without and 'checkpoint-' not in without


def test_each_start_has_a_log_of_its_own_and_a_restart_keeps_it(tmp_path, monkeypatch):
    log, marker = tmp_path / 'x.log', tmp_path / 'marker'
    monkeypatch.setenv('MAE_LOG_FILE', str(log))
    monkeypatch.setenv('MAE_ENTERED', str(marker))
    marker.write_text('')
    for text in ('first', 'second'):
        (tmp_path / 'x.log.starting').write_text(text)
        output_dir.take_log()
        assert log.read_text() == text
    assert marker.read_text() and [path.read_text() for path in tmp_path.glob('x.2*.log')] == ['first']
    monkeypatch.setenv('MAE_RESTART', '1')
    (tmp_path / 'x.log.starting').write_text('of another start, which this run refused')
    output_dir.take_log()
    assert log.read_text() == 'second'


def test_another_node_names_its_log_after_the_main_process_has_moved_what_was_there(tmp_path, monkeypatch):
    monkeypatch.setenv('MAE_LOG_FILE', str(tmp_path / 'x_node1.log'))
    starting = fill(tmp_path, ['x_node1.log.starting']) / 'x_node1.log.starting'
    for local_rank in (1, 0):
        assert starting.exists()
        world = SimpleNamespace(is_main=False, local_rank=local_rank)
        enter_output_folder(None, SimpleNamespace(world=world, all_reduce=lambda _: starting.exists() or pytest.fail()))
    assert (tmp_path / 'x_node1.log').exists() and not starting.exists()


def test_a_failed_start_leaves_the_folder_and_its_log_as_they_were(images, pretrained, tmp_path):
    folder, log = tmp_path / 'o', LOGS['pretrain_performance_1p']
    shutil.copytree(str(pretrained), str(folder))
    before = content(fill(folder, [log]))
    run = launcher('pretrain_performance_1p', '--data_path', images, '--output_dir', folder, *PRETRAIN,
                   '--batch_size=33')
    after = content(folder)
    assert run.status == 2 and '--batch_size' in run.output, run.output
    assert after.pop(log + '.starting').decode() == run.output and after == before
    assert os.listdir(str(tmp_path)) == ['o']


def test_a_first_step_without_enough_memory_leaves_the_folder_as_it_was(images, pretrained, tmp_path, monkeypatch):
    shutil.copytree(str(pretrained), str(tmp_path / 'o'))
    before = content(tmp_path / 'o')
    monkeypatch.setattr(torch.optim.AdamW, 'step', mock.Mock(side_effect=RuntimeError('out of memory')))
    with pytest.raises(RuntimeError, match='out of memory'):
        main_pretrain.main(parse_pretrain(['--data_path', str(images), '--output_dir', str(tmp_path / 'o'), *PRETRAIN]))
    assert content(tmp_path / 'o') == before and os.listdir(str(tmp_path)) == ['o']


# Leftovers, and names that hold something else

def test_leftovers_of_dead_runs_go_and_those_of_tools_and_running_processes_stay(tmp_path):
    dead, running = 'tmp-999999999-1f', 'tmp-{}-1f'.format(os.getpid())
    fill(tmp_path, ['checkpoint-3.pth.' + dead, 'log.txt.' + dead, 'log.txt.' + running, 'x.jsonl.' + dead,
                    'model.onnx.{}/x'.format(dead), 'report.html.{}/x'.format(dead)])
    entered(tmp_path)
    assert set(content(tmp_path)) == {'log.txt.' + running, 'x.jsonl.' + dead, 'model.onnx.{}/x'.format(dead),
                                      'report.html.{}/x'.format(dead)}


def other(path, kind):
    """Something else than a text file."""
    if kind == 'FIFO':
        os.mkfifo(str(path))
    elif kind == 'folder':
        path.mkdir()
    elif kind == 'loop':
        os.symlink(path.name, str(path))
    else:
        path.write_bytes(b'\xff\xfe')


@pytest.mark.parametrize('kind', ['FIFO', 'folder', 'loop', 'bytes'])
@pytest.mark.parametrize('name', ['run.lock', '.lock', 'log.txt', 'config.yaml'])
def test_a_name_that_holds_something_else_is_one_line_and_no_hang(tmp_path, caplog, name, kind):
    other(tmp_path / name, kind)
    args = parse_pretrain(['--data_path', str(tmp_path), '--output_dir', str(tmp_path)])
    try:
        lock, _ = output_dir.enter(str(tmp_path))
        lock.release()
        output_dir.save_flags(args, 1)
        asides = output_dir.set_log_aside(str(tmp_path), [])
        assert asides == [] and (name != 'log.txt' or kind == 'bytes') and len(caplog.messages) <= 1
    except UserError as error:
        assert str(tmp_path) in str(error) and name in ('run.lock', '.lock', 'log.txt')


@pytest.mark.parametrize('kind', ['FIFO', 'folder', 'loop', 'bytes'])
def test_a_new_training_moves_away_whatever_has_the_name_of_a_log_or_checkpoint(tmp_path, kind):
    for name in ('log.txt', 'checkpoint-7.pth'):
        other(tmp_path / name, kind)
    place, = entered(tmp_path)
    assert set(os.listdir(place)) == {'log.txt', 'checkpoint-7.pth'}
    output_dir.report_no_checkpoint(str(tmp_path))


def test_a_log_of_another_program_is_one_line_and_stays(pretrained, images, tmp_path):
    torch.save({'model': torch.load(str(pretrained / 'checkpoint-0.pth'))['model']}, str(tmp_path / 'weights.pth'))
    (tmp_path / 'log.txt').write_text('hello\n')
    run = pretrain('--data_path', images, '--output_dir', tmp_path, '--resume', tmp_path / 'weights.pth')
    assert run.status == 2 and run.output.count(str(tmp_path / 'log.txt')) == 1, run.output
    assert (tmp_path / 'log.txt').read_text() == 'hello\n'


# One run at a time; a run that died does not hold the folder

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


# TensorBoard files: what SummaryWriter would write, and what happens when they cannot be written

@pytest.fixture
def run_logger(tmp_path):
    """A function that makes the logger of a folder."""
    made = []

    def make(**options):
        made.append(RunLogger(str(tmp_path), None, RunLock(str(tmp_path)), **options))
        return made[-1]
    yield make
    for one in made:
        one.close()


def test_tensorboard_reads_scalars_and_drops_what_a_resumed_run_repeats(run_logger, tmp_path):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    first = run_logger()
    for epoch in (1, 2, 3):
        first.log_scalars(epoch, {'loss': epoch})
    first.close()
    resumed = run_logger(begin=2.)
    resumed.log_scalars(2, {'loss': 20.})
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars('loss')] == [(1000, 1.), (2000, 20.)]


def test_a_full_disk_is_one_line_and_no_thread_prints_a_traceback(run_logger, capfd, caplog):
    logger = run_logger()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        for epoch in range(3):
            logger.log_scalars(epoch, {'loss': 1.})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    logger.close()
    assert len(caplog.messages) == 1 and 'TensorBoard' in caplog.messages[0]
    assert 'Traceback' not in capfd.readouterr().err


@pytest.mark.parametrize('error', ['TypeError', 'AttributeError', 'ImportError'])
def test_a_tensorboard_that_does_not_load_is_one_line(run_logger, tmp_path, monkeypatch, caplog, error):
    for name in [name for name in sys.modules if name.split('.')[0] == 'tensorboard' or 'utils.tensorboard' in name]:
        monkeypatch.delitem(sys.modules, name)
    write_file(tmp_path / 'tensorboard' / '__init__.py', 'raise {}("no descriptors")'.format(error))
    monkeypatch.syspath_prepend(str(tmp_path))
    logger = run_logger()
    logger.log_scalars(1, {'loss': 1.})
    assert len(caplog.messages) == 1 and 'no descriptors' in caplog.messages[0]
