"""Outputs of the tools: complete files, nothing lost, and devices that stay devices."""
import errno
import os
import stat
import tempfile
import threading

import pytest
from conftest import write_file

from util.errors import UserError
from util.tools.outputs import open_output, output_path

pytestmark = pytest.mark.compat


def write(path, content=b'new'):
    """By open_output, and as a file that another library writes."""
    with open_output(str(path)) as file:
        file.write(content)


def write_by_name(path, content=b'new'):
    with output_path(str(path)) as new, open(new, 'wb') as file:
        file.write(content)


both = pytest.mark.parametrize('write', [write, write_by_name])


@both
def test_an_earlier_file_is_renamed_when_the_new_one_is_complete(tmp_path, write):
    (tmp_path / 'x.png').write_text('earlier')
    with pytest.raises(TypeError):
        write(tmp_path / 'x.png', 'no bytes')
    assert os.listdir(str(tmp_path)) == ['x.png'] and (tmp_path / 'x.png').read_text() == 'earlier'
    write(tmp_path / 'x.png')
    kept, = tmp_path.glob('x.*-*.png')
    assert kept.read_text() == 'earlier' and (tmp_path / 'x.png').read_bytes() == b'new'
    assert len(os.listdir(str(tmp_path))) == 2


@both
def test_a_device_gets_the_content_and_stays(write):
    write('/dev/null')
    assert stat.S_ISCHR(os.stat('/dev/null').st_mode)
    with pytest.raises(UserError, match='^/dev/full: .*No space left'):
        write('/dev/full')


@both
def test_a_fifo_gets_the_content_and_stays(tmp_path, write):
    fifo, read = tmp_path / 'fifo', []
    os.mkfifo(str(fifo))
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    write(fifo)
    reader.join()
    assert read == [b'new'] and fifo.is_fifo() and os.listdir(str(tmp_path)) == ['fifo']


@both
def test_a_redirected_standard_output_keeps_what_it_holds(tmp_path, write):
    with open(str(tmp_path / 'log'), 'w') as file:
        file.write('before\n')
        file.flush()
        write('/dev/fd/{}'.format(file.fileno()))           # as /dev/stdout
    assert (tmp_path / 'log').read_text() == 'before\nnew' and os.listdir(str(tmp_path)) == ['log']


@both
def test_standard_output_in_a_file_goes_on_after_what_is_written(tmp_path, write):
    stdout = os.dup(1)
    with open(str(tmp_path / 'log'), 'wb') as file:
        os.dup2(file.fileno(), 1)
        try:
            os.write(1, b'before\n')
            write('/dev/stdout')
            os.write(1, b'\nafter')
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
    assert (tmp_path / 'log').read_bytes() == b'before\nnew\nafter'


def test_a_reader_that_closes_the_pipe_has_enough():
    reading, writing = os.pipe()
    os.close(reading)
    write('/dev/fd/{}'.format(writing))                     # as `| head`
    os.close(writing)


@both
def test_a_link_stays(tmp_path, write):
    os.symlink('target', str(tmp_path / 'link'))
    write(tmp_path / 'link')
    assert (tmp_path / 'link').is_symlink() and (tmp_path / 'target').read_bytes() == b'new'


def test_a_folder_with_files_is_refused_at_once(tmp_path):
    write_file(tmp_path / 'f' / 'thesis.tex')
    for opened in (open_output, output_path):
        with pytest.raises(UserError, match='/f: '), opened(str(tmp_path / 'f')):
            pytest.fail()


@both
def test_what_a_killed_tool_has_left_stops_nobody(tmp_path, monkeypatch, write):
    monkeypatch.setattr(os, 'getpid', lambda: 1)        # the number of every process of a container
    for name in ('x.tmp-1', 'x.tmp-1-'):
        (tmp_path / name).mkdir()
    write(tmp_path / 'x')
    assert (tmp_path / 'x').read_bytes() == b'new' and len(os.listdir(str(tmp_path))) == 3


@both
def test_a_system_without_open_files_is_no_fault_of_the_output(tmp_path, monkeypatch, write):
    def refused(*args, **options):
        raise OSError(errno.EMFILE, 'Too many open files')
    monkeypatch.setattr(tempfile, 'TemporaryDirectory', refused)
    with pytest.raises(OSError, match='Too many open files'):
        write(tmp_path / 'x')
