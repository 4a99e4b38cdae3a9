"""The list of image files: right, compact, and remembered where it takes long, until a folder changes."""
import os
import pickle
import shutil
import time

import numpy as np
import pytest

from util import remember
from util.datasets import EXTENSIONS, labelled_set, pretraining_set
from util.errors import UserError
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


def test_images_are_listed_in_a_fixed_order_below_all_folders(tree):
    assert names(tree) == ['0.jpg', 'a/x/3.jpg', 'b/1.png', 'b/2.JPG']
    assert names(tree, own_files=False) == ['a/x/3.jpg', 'b/1.png', 'b/2.JPG']


def test_a_list_that_takes_long_is_kept_and_used_again(tree, cache, monkeypatch):
    first = names(tree)
    assert len(files(cache)) == 1
    assert [os.path.basename(path) for path in Listing(str(tree), ('.png',))] == ['1.png']      # it is another list
    names(tree)
    monkeypatch.setattr(os, 'walk', None)
    assert names(tree) == first


def test_a_list_that_is_made_quickly_or_of_what_has_just_changed_is_not_kept(tree, cache, monkeypatch):
    (tree / 'b' / 'new.jpg').write_bytes(b'x')
    names(tree)
    monkeypatch.setattr(remember, 'SLOW', 10.)
    names(tree / 'a')
    assert files(cache) == []


@pytest.mark.parametrize('change', [
    lambda tree: (tree / 'a' / 'x' / 'new.jpg').write_bytes(b'x'), lambda tree: (tree / 'b').rename(tree / 'd')],
    ids=['a new file', 'a folder renamed'])
def test_a_folder_that_changes_is_listed_anew(tree, cache, change):
    names(tree)
    change(tree)
    expected = sorted(str(path.relative_to(tree)) for path in tree.rglob('*') if path.suffix.lower() in EXTENSIONS)
    assert sorted(names(tree)) == expected


class Evil:
    def __reduce__(self):
        return (exec, ('raise SystemExit("ran")',))


@pytest.mark.parametrize('damage', [lambda data: b'', lambda data: data[:len(data) // 2],
                                    lambda data: data.replace(b'names_text', b'nomes_text'),
                                    lambda data: data.replace(b'|u1', b'<f4'), lambda data: pickle.dumps(Evil())])
def test_a_damaged_memory_is_made_anew(tree, cache, damage):
    first = names(tree)
    path = cache / files(cache)[0]
    path.write_bytes(damage(path.read_bytes()))
    assert names(tree) == first
    assert np.load(str(path))['names_text'].size


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
    assert list(after.labels) == list(before.labels) and not any('stray' in path for path in after.paths)


def test_a_link_back_to_a_folder_around_it_is_not_followed(images, tmp_path):
    shutil.copytree(str(images / 'val' / 'star_checks'), str(tmp_path / 'a' / 'b'))
    for place in ('a', 'a/b'):
        os.symlink(str(tmp_path), str(tmp_path / place / 'loop'))
    os.symlink(str(images / 'val' / 'disc_checks'), str(tmp_path / 'a' / 'elsewhere'))
    count = len(os.listdir(str(images / 'val' / 'star_checks'))) + len(os.listdir(str(images / 'val' / 'disc_checks')))
    assert len(pretraining_set(str(tmp_path))) == count


def test_a_folder_that_cannot_be_listed_is_named_not_left_out(images, tmp_path, monkeypatch):
    shutil.copytree(str(images / 'train' / 'cross_checks'), str(tmp_path / 'data'))
    monkeypatch.chdir(tmp_path / 'data')
    for _ in range(20):             # deeper than the longest path that Linux takes, whoever asks
        os.mkdir('d' * 250)
        os.chdir('d' * 250)
    with pytest.raises(UserError, match=r'^--data_path: .*/ddd.* \(File name too long\)$'):
        pretraining_set(str(tmp_path / 'data'))
