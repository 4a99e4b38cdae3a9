"""Packing a folder into tar files: all of it, checked, and nothing lost when it is stopped."""
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zlib

import pytest
from conftest import ROOT, execute
from PIL import Image

from util import pack_shards, remember
from util.datasets import labelled_set, pretraining_set
from util.errors import UserError
from util.images import read_image


def pack(*words, **environ):
    return execute([sys.executable, '-m', 'util.pack_shards', *words], **environ)


def contents(folder):
    """{member: bytes} of the tar files of a folder."""
    found = {}
    for path in sorted(folder.glob('*.tar')):
        with tarfile.open(str(path)) as tar:
            for member in tar:
                assert member.name not in found
                found[member.name] = tar.extractfile(member).read()
    return found


@pytest.fixture(scope='module')
def packed(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp('packed') / 'x'
    run = pack(images, folder, '--images_per_shard', 10, '--num_workers', 2)
    assert run.status == 0, run.output
    assert 'train-000003.tar: 32 of 32 images' in run.output
    assert 'train with --data_path {}'.format(folder) in run.output
    return folder


@pytest.mark.parametrize('split', ['train', 'val'])
def test_the_tar_files_hold_every_file_as_it_is_and_its_label(images, packed, split):
    found, classes = contents(packed / split), sorted(path.name for path in (images / 'train').iterdir())
    expected = {}
    for path in (images / split).glob('*/*.jpg'):
        name, label = '{}/{}'.format(path.parent.name, path.stem), classes.index(path.parent.name)
        expected.update({name + '.jpg': path.read_bytes(), name + '.cls': str(label).encode()})
    assert found == expected


def test_training_finds_in_them_what_the_folder_holds(images, packed):
    for split in ('train', 'val'):
        ours, theirs = labelled_set(str(packed), split), labelled_set(str(images), split)
        assert ours.classes == theirs.classes
        assert sorted(ours.labels) == sorted(theirs.labels)


def test_the_index_is_made_by_the_packing(packed, monkeypatch):
    monkeypatch.setattr(tarfile, 'open', None)
    assert len(pretraining_set(str(packed))) == 32


def test_the_same_packing_again_does_nothing_and_another_one_is_refused(images, packed):
    before = {path: path.stat().st_mtime_ns for path in packed.glob('*/*.tar')}
    assert pack(images, packed, '--images_per_shard', 10).status == 0
    assert before == {path: path.stat().st_mtime_ns for path in packed.glob('*/*.tar')}
    for run in (pack(images, packed), pack(images / 'train', packed, '--images_per_shard', 10)):
        assert run.status == 2 and run.output.count('\n') == 1 and run.output.startswith('error: TARGET: '), run.output


def test_large_images_are_shrunk_and_small_ones_stay_as_they_are(tmp_path):
    source = tmp_path / 'source'
    source.mkdir()
    for name, size in (('large.png', (400, 300)), ('small.jpg', (64, 50)), ('tall.jpg', (90, 200))):
        Image.effect_mandelbrot(size, (-2, -1, 1, 1), 50).convert('RGB').save(str(source / name))
    assert pack(source, tmp_path / 'x', '--short_side', 60, '--quality', 80).status == 0
    found = contents(tmp_path / 'x')
    assert sorted(found) == ['large.jpg', 'small.jpg', 'tall.jpg']
    assert found['small.jpg'] == (source / 'small.jpg').read_bytes()
    assert read_image('', found['large.jpg']).size == (80, 60) and read_image('', found['tall.jpg']).size == (60, 133)


def test_names_are_made_fit_and_different(tmp_path):
    source = tmp_path / 'source'
    (source / 'a').mkdir(parents=True)
    for i, name in enumerate(('a/x.y.jpg', 'a/x_y.jpg', 'a/x_y.png', 'b.jpg')):
        Image.new('RGB', (8, 8), (i,) * 3).save(str(source / name))
    assert pack(source, tmp_path / 'x').status == 0
    assert sorted(contents(tmp_path / 'x')) == ['a/x_y.jpg', 'a/x_y_2.jpg', 'a/x_y_3.png', 'b.jpg']


@pytest.mark.parametrize('flags', [[], ['--short_side', 16]])
def test_images_that_cannot_be_read_are_left_out_and_listed(images, tmp_path, flags):
    shutil.copytree(str(images), str(tmp_path / 'source'))
    victim = sorted((tmp_path / 'source' / 'train').glob('*/*.jpg'))[0]
    victim.unlink()
    if flags:
        victim.write_bytes(b'no picture')
    else:
        os.mkfifo(str(victim))
    run = pack(tmp_path / 'source', tmp_path / 'x', *flags)
    assert run.status == 0 and '1 image could not be read and is left out' in run.output, run.output
    assert (tmp_path / 'x' / 'unreadable.txt').read_text().startswith('{}\t'.format(victim))
    assert len(pretraining_set(str(tmp_path / 'x'))) == 31


def test_a_packing_that_is_stopped_goes_on_where_it_was(images, tmp_path):
    source = tmp_path / 'many'
    source.mkdir()
    for i in range(300):
        shutil.copy(str(next(images.glob('train/*/*.jpg'))), str(source / '{}.jpg'.format(i)))
    words = [sys.executable, '-m', 'util.pack_shards', str(source), str(tmp_path / 'x'), '--images_per_shard', '1']
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=str(ROOT))
    while not list((tmp_path / 'x').glob('*.tar')):
        time.sleep(.01)
    child.send_signal(signal.SIGTERM)
    output = child.communicate()[0].decode()
    assert child.returncode == 130 and 'Traceback' not in output, output
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / 'x').glob('*.tar')}
    assert len(done) < 300
    assert execute(words).status == 0
    assert all(path.stat().st_mtime_ns == changed for path, changed in done.items())
    assert not list((tmp_path / 'x').glob('*.part')) and len(pretraining_set(str(tmp_path / 'x'))) == 300


def test_a_disk_that_gives_back_something_else_is_noticed(tmp_path, monkeypatch):
    sums = iter(range(100))
    monkeypatch.setattr(zlib, 'crc32', lambda data: next(sums))
    with pytest.raises(UserError, match='holds something else than was written'):
        pack_shards.write(str(tmp_path / 'x.tar'), [('a.jpg', b'0', ('a.jpg', b'x', None, None))])


@pytest.mark.parametrize('make, words', [
    (lambda path: None, 'SOURCE: .* is no folder and no CSV file'), (lambda path: path.mkdir(), 'holds no images'),
    (lambda path: [path.mkdir(), tarfile.open(str(path / 'x.tar'), 'w').close()], 'no images|packed already')])
def test_a_source_without_images_is_refused(tmp_path, make, words):
    make(tmp_path / 'source')
    with pytest.raises(UserError, match=words):
        pack_shards.split_sets(str(tmp_path / 'source'))


def test_a_target_that_holds_something_else_stays_as_it_is(images, tmp_path):
    (tmp_path / 'mine.txt').write_text('mine')
    run = pack(images, tmp_path)
    assert run.status == 2 and 'is not empty; name a new folder' in run.output
    assert os.listdir(str(tmp_path)) == ['mine.txt'] and remember.SLOW


def test_a_class_folder_whose_name_breaks_the_line_is_named(tmp_path):
    with pytest.raises(UserError, match='line break in its name'):
        pack_shards.write_classes(str(tmp_path / 'classes.txt'), ['a\nb'])


def test_csv_files_are_packed_with_their_classes_wherever_the_images_are(images, tmp_path):
    lists = tmp_path / 'lists'
    lists.mkdir()
    for split in ('train', 'test'):
        paths = sorted(images.glob('{}/*/*.jpg'.format('val' if split == 'test' else split)))
        (lists / (split + '.csv')).write_text('path,label\n' + ''.join(
            '{},{}\n'.format(os.path.relpath(str(path), str(lists)), path.parent.name) for path in paths))
    run = pack(lists, tmp_path / 'x', '--num_workers', 0)
    assert run.status == 0, run.output
    for split in ('train', 'val'):
        ours, theirs = labelled_set(str(tmp_path / 'x'), split), labelled_set(str(images), split)
        assert ours.classes == theirs.classes and sorted(ours.labels) == sorted(theirs.labels)
        assert all(os.pardir not in ours.name_of(i) and ours.classes[ours.labels[i]] in ours.name_of(i)
                   for i in range(len(ours)))


def test_all_images_are_packed_where_there_is_no_val_and_test_goes_to_val(images, tmp_path):
    shutil.copytree(str(images / 'train'), str(tmp_path / 'train'))
    assert [(split, len(found)) for split, found in pack_shards.split_sets(str(tmp_path))] == [('train', 32)]
    shutil.copytree(str(images / 'val'), str(tmp_path / 'test'))
    assert [(split, len(found)) for split, found in pack_shards.split_sets(str(tmp_path))] == [('train', 32),
                                                                                              ('val', 19)]
