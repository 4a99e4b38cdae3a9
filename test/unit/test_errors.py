"""How a process ends: the statuses of a user's error and of a failure of the system."""
import errno
import os

import pytest

from util.errors import SystemFailure, UserError, is_system_failure, status_of

pytestmark = pytest.mark.compat


def os_error(number):
    return OSError(number, os.strerror(number), '/some/file')


FAILURES = [
    *map(os_error, (errno.EMFILE, errno.ENOMEM, errno.ENOSPC, errno.EIO)),
    MemoryError(), RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB\nmore'),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to"),
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
    os_error(errno.ENOENT), os_error(errno.ELOOP), OSError('decoder error -2 when reading image file'),
    RuntimeError('size mismatch'), None])
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
