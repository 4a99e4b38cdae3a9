"""The list of image files: right, compact, and remembered where it takes long, until a folder changes."""
import os
import pickle
import shutil
import time

import numpy as np
import pytest

from util import remember
from util.datasets import EXTENSIONS, labelled_set
from util.listing import Listing, Strings


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache directory where everything is remembered that has settled."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(remember, 'SLOW', -1.)
    return tmp_path / 'cache' / 'mae'


@pytest.fixture
def tree(tmp_path):
    """A folder of files, some of them images, that was last changed an hour ago."""
    for name in ('b/2.JPG', 'b/1.png', 'a/x/3.jpg', 'a/notes.txt', '0.jpg', 'c/.keep'):
        path = tmp_path / 'tree' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'x')
    for folder, _, _ in os.walk(str(tmp_path / 'tree')):
        os.utime(folder, (time.time() - 3600,) * 2)
    return tmp_path / 'tree'


def names(root, **options):
    return [os.path.relpath(path, str(root)) for path in Listing(str(root), EXTENSIONS, **options)]


def files(cache):
    return sorted(path.name for path in cache.glob('*.npz'))


def test_strings_are_what_was_put_in_even_where_they_are_no_text():
    words = ['', 'a', 'ß/ü.jpg', os.fsdecode(b'\xff\xfe'), 'x' * 1000]
    strings = Strings.of(words)
    assert list(strings) == words and list(strings.without_first(2)) == words[2:] and list(Strings.of([])) == []
    with pytest.raises(IndexError):
        strings[5]


def test_images_are_listed_in_a_fixed_order_below_all_folders(tree):
    assert names(tree) == ['0.jpg', 'a/x/3.jpg', 'b/1.png', 'b/2.JPG']
    assert names(tree, own_files=False) == ['a/x/3.jpg', 'b/1.png', 'b/2.JPG']


def test_a_list_that_is_made_quickly_is_not_kept(tree, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    names(tree)
    assert files(tmp_path / 'cache' / 'mae') == []


def test_a_list_that_takes_long_is_kept_and_used_again(tree, cache, monkeypatch):
    first = names(tree)
    assert len(files(cache)) == 1
    monkeypatch.setattr(os, 'walk', None)
    assert names(tree) == first


@pytest.mark.parametrize('change', [
    lambda tree: (tree / 'a' / 'x' / 'new.jpg').write_bytes(b'x'), lambda tree: (tree / 'b' / '1.png').unlink(),
    lambda tree: (tree / 'b').rename(tree / 'd'), lambda tree: (tree / 'c' / 'y').mkdir()],
    ids=['a new file', 'a file gone', 'a folder renamed', 'a new folder'])
def test_a_folder_that_changes_is_listed_anew(tree, cache, change):
    names(tree)
    change(tree)
    expected = sorted(str(path.relative_to(tree)) for path in tree.rglob('*') if path.suffix.lower() in EXTENSIONS)
    assert sorted(names(tree)) == expected


def test_a_folder_that_has_just_changed_is_not_remembered(tree, cache):
    (tree / 'b' / 'new.jpg').write_bytes(b'x')
    names(tree)
    assert files(cache) == []


@pytest.mark.parametrize('damage', [lambda data: b'', lambda data: data[:len(data) // 2], lambda data: b'no arrays',
                                    lambda data: data.replace(b'names_text', b'nomes_text')])
def test_a_damaged_memory_is_made_anew(tree, cache, damage):
    first = names(tree)
    path = cache / files(cache)[0]
    path.write_bytes(damage(path.read_bytes()))
    assert names(tree) == first
    assert np.load(str(path))['names_text'].size


def test_a_memory_that_would_run_code_is_not_run(tree, cache):
    class Evil:
        def __reduce__(self):
            return (exec, ('raise SystemExit("ran")',))
    first = names(tree)
    path = cache / files(cache)[0]
    path.write_bytes(pickle.dumps(Evil()))
    assert names(tree) == first


def test_other_endings_are_another_list(tree, cache):
    names(tree)
    assert [os.path.basename(path) for path in Listing(str(tree), ('.png',))] == ['1.png']


def test_without_a_place_to_remember_the_list_is_made_each_time(tree, tmp_path, monkeypatch, cache):
    (tmp_path / 'file').write_text('no folder')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    assert len(names(tree)) == 4 and len(names(tree)) == 4


def test_processes_that_need_the_same_list_make_it_once(tree, cache, monkeypatch):
    """The second waits for the first, then reads what that has kept."""
    made, walk = [], os.walk

    def slow_walk(folder, *args, **options):
        if folder == str(tree):         # in older Pythons it calls itself for each subfolder
            made.append(folder)
            time.sleep(.3)
        return walk(folder, *args, **options)
    monkeypatch.setattr(os, 'walk', slow_walk)
    other = os.fork()
    if other == 0:
        try:
            names(tree)
        finally:
            os._exit(len(made))
    time.sleep(.1)
    names(tree)
    assert len(made) + os.WEXITSTATUS(os.waitpid(other, 0)[1]) == 1


def test_files_outside_of_class_folders_have_no_class_and_are_left_out(images, tmp_path):
    shutil.copytree(str(images / 'val'), str(tmp_path / 'val'))
    shutil.copy(str(next(images.glob('val/*/*.jpg'))), str(tmp_path / 'val' / 'stray.jpg'))
    before, after = labelled_set(str(images), 'val'), labelled_set(str(tmp_path), 'val')
    assert list(after.labels) == list(before.labels) and len(after.paths) == len(after.labels) == 19
    assert not any('stray' in path for path in after.paths)


def test_loader_processes_get_the_list_as_arrays(images):
    """Python objects would be copied by every process that counts references to them."""
    paths = labelled_set(str(images), 'train').paths
    assert isinstance(paths._names.text, np.ndarray) and isinstance(paths.folder_of, np.ndarray)
