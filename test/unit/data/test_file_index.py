"""File index of a folder, and its cache, which a change of a folder invalidates."""
import errno
import os
import pickle
import shutil
import time

import pytest
from conftest import write_file
from test_datasets import Evil

from util.data import array_cache
from util.data.datasets import pretraining_set
from util.data.file_index import FileIndex, PathArray, encode_names
from util.errors import SystemFailure, UserError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Cache directory, without a minimum build time."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(array_cache, 'MIN_BUILD_SECONDS', -1.)
    return tmp_path / 'cache' / 'mae'


@pytest.fixture
def tree(tmp_path):
    """Folder of images and other files, last changed an hour ago."""
    for name in ('b/2.JPG', 'b/1.png', 'a/x/3.jpg', 'a/notes.txt', '0.jpg', 'c/.keep'):
        write_file(tmp_path / 'tree' / name)
    for folder, _, _ in os.walk(str(tmp_path / 'tree')):
        os.utime(folder, (time.time() - 3600,) * 2)
    return tmp_path / 'tree'


def names(root, **options):
    found = FileIndex(str(root), **options)
    assert [found.relative(i) for i in range(len(found))] == [os.path.relpath(path, str(root)) for path in found]
    return [found.relative(i) for i in range(len(found))]


def test_images_are_listed_recursively_in_a_fixed_order(tree):
    assert names(tree) == ['0.jpg', 'a/x/3.jpg', 'b/1.png', 'b/2.JPG']
    assert names(tree, root_files=False) == ['a/x/3.jpg', 'b/1.png', 'b/2.JPG']


@pytest.mark.parametrize('root', ['', 'data', '/data', '../data'])
def test_relative_paths_are_normalized(root, tmp_path, monkeypatch):
    monkeypatch.chdir(str(tmp_path))
    inside = ['x.jpg', './x.jpg', 'a/../x.jpg', os.path.join(os.path.abspath(root), 'x.jpg')]
    paths = PathArray(root, encode_names([*inside, 'a//b/x.jpg', '../x.jpg', b'\xff\xfe.jpg']))
    assert [paths.relative(i) for i in range(len(paths))] == ['x.jpg'] * 4 + [
        'a/b/x.jpg', '../x.jpg', os.fsdecode(b'\xff\xfe.jpg')]


def test_slow_index_is_cached_until_a_folder_changes(tree, cache, monkeypatch):
    first = names(tree)
    assert len(list(cache.glob('*.npz'))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(os, 'walk', None)
        assert names(tree) == first
    (tree / 'b').rename(tree / 'd')
    (tree / 'a' / 'x' / 'new.jpg').write_bytes(b'x')
    assert names(tree) == ['0.jpg', 'a/x/3.jpg', 'a/x/new.jpg', 'd/1.png', 'd/2.JPG']


def test_recent_index_is_not_cached_and_a_missing_cache_directory_tolerated(tree, cache, monkeypatch):
    (tree / 'b' / 'new.jpg').write_bytes(b'x')
    names(tree)
    assert not list(cache.glob('*.npz'))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tree / '0.jpg'))
    assert len(names(tree / 'a')) == 1


@pytest.mark.parametrize('damage', [lambda data: data[:len(data) // 2], lambda data: data.replace(b'state', b'stale'),
                                    lambda data: pickle.dumps(Evil())])
def test_damaged_cache_is_rebuilt(tree, cache, damage):
    first = names(tree)
    path, = cache.glob('*.npz')
    good = path.read_bytes()
    path.write_bytes(damage(good))
    assert names(tree) == first and len(path.read_bytes()) == len(good)


def test_link_to_a_parent_folder_is_not_followed(images, tmp_path):
    shutil.copytree(str(images / 'val' / 'star_checks'), str(tmp_path / 'a' / 'b'))
    for folder in ('a', 'a/b'):
        os.symlink(str(tmp_path), str(tmp_path / folder / 'loop'))
    os.symlink(str(images / 'val' / 'disc_checks'), str(tmp_path / 'a' / 'elsewhere'))
    count = len(os.listdir(str(images / 'val' / 'star_checks'))) + len(os.listdir(str(images / 'val' / 'disc_checks')))
    assert len(pretraining_set(str(tmp_path))) == count


def test_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(20):             # deeper than Linux's longest path, even for root
        os.mkdir('d' * 250)
        os.chdir('d' * 250)
    with pytest.raises(UserError, match=r'^--data_path: .*/ddd.* \(File name too long\)$'):
        pretraining_set(str(tmp_path))


def test_all_that_pillow_reads_counts_and_the_rest_is_counted_by_extension(tmp_path, caplog):
    kept = ['a/1.jpg', 'a/2.JFIF', 'a/3.gif', 'a/4.jp2', 'b/5.Png']
    ignored = ['a/notes.txt', 'a/more.TXT', 'a/README', 'b/page.pdf', 'b/video.mpg', 'b/mask.npy', 'a/._1.jpg',
               'b/.ipynb_checkpoints/5-checkpoint.png', '__MACOSX/a/1.jpg', 'b/Thumbs.db']
    for name in kept + ignored:
        write_file(tmp_path / name)
    assert names(tmp_path) == kept
    line, = caplog.messages
    assert {'2 .txt', '1 without extension', '1 .pdf', '1 .mpg', '1 .npy', '4 hidden'} == set(
        line.split('ignoring ')[1].split(', '))
    caplog.clear()
    (tmp_path / '0.jpg').write_bytes(b'x')
    assert names(tmp_path, root_files=False) == kept
    assert '1 images outside of class folders' in caplog.text


def test_too_many_open_files_are_no_fault_of_the_dataset(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError(errno.EMFILE, 'Too many open files')
    monkeypatch.setattr(os, 'walk', fail)
    with pytest.raises(SystemFailure, match='ulimit -n'):
        pretraining_set(str(tmp_path))
