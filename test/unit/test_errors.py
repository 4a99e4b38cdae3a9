"""How a process ends: the statuses of a user's error and of a failure of the system."""
import errno
import os
import signal
import sys

import pytest
from conftest import ROOT, execute

from util import errors
from util.errors import SystemFailure, UserError, is_system_failure, status_of

pytestmark = pytest.mark.compat


def os_error(number):
    return OSError(number, os.strerror(number), '/some/file')


FAILURES = [
    *map(os_error, (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOLCK)),
    MemoryError(), RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB\nmore'),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError('unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)'),
    RuntimeError('unable to open shared memory object </torch_1_2> in read-write mode: Too many open files (24)'),
    RuntimeError('unable to write to file </torch_1_2>: No space left on device (28)'),
    RuntimeError('Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n'
                 'RuntimeError: unable to mmap 512 bytes from file </torch_1>: Cannot allocate memory (12)\n'),
    RuntimeError('received 0 items of ancdata'), RuntimeError("can't start new thread"), SystemFailure('rank 1 died')]


@pytest.mark.parametrize('error', FAILURES, ids=str)
def test_a_failure_of_the_system_is_one_line_and_status_70_also_as_the_cause_of_a_user_error(capsys, error):
    def fails(wrapped):
        if not wrapped:
            raise error
        raise UserError('--data_path /x: cannot be read') from error

    assert is_system_failure(error)
    for wrapped in (False, True):
        assert status_of(fails, wrapped) == 70
        line, = capsys.readouterr().err.splitlines()
        assert line.startswith('error: ') and ('--data_path' in line) == wrapped


@pytest.mark.parametrize('error', [
    *map(os_error, (errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EROFS)),
    OSError('decoder error -2 when reading image file'), RuntimeError('size mismatch'), ValueError('out of range'),
    None])
def test_what_the_user_can_fix_is_status_2(error):
    def fails():
        raise UserError('--data_path /x: cannot be read') from error

    assert not is_system_failure(error) and status_of(fails) == 2


def test_a_failing_device_is_a_failure_whose_traceback_stays():
    def fails():
        raise RuntimeError('CUDA error: an illegal memory access was encountered')

    with pytest.raises(RuntimeError) as raised:
        status_of(fails)
    assert is_system_failure(raised.value)


@pytest.mark.slow
def test_too_few_descriptors_for_the_loader_are_a_failure_with_advice(images, tmp_path):
    code = ('import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)); '
            'sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")')
    run = execute([sys.executable, '-c', code, ROOT / 'main_pretrain.py', '--model', 'mae_vit_nano_patch16',
                   '--input_size', 32, '--patch_size', 8, '--batch_size', 8, '--device', 'cpu', '--num_workers', 8,
                   '--data_path', images, '--output_dir', tmp_path, '--warmup_epochs', 0])
    assert run.status == 70 and 'Traceback' not in run.output and 'ulimit -n' in run.output, run.output


def test_an_error_with_a_local_rank_that_is_no_number_is_still_one_line(monkeypatch, capsys):
    monkeypatch.setenv('LOCAL_RANK', '0x')
    monkeypatch.setattr(errors, 'DELAY', 0.)
    handler = signal.getsignal(signal.SIGTERM)

    def fails():
        raise UserError('--epochs 0')
    assert status_of(fails) == 2 and capsys.readouterr().err == 'error: --epochs 0\n'
    signal.signal(signal.SIGTERM, handler)
