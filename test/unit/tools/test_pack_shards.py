"""Packing of image folders into tar shards."""
import os
import shutil
import tarfile

import pytest
from PIL import Image

from util.data.datasets import labelled_set
from util.data.file_index import PathArray, encode_names
from util.data.image_files import decode
from util.errors import UserError
from util.tools import pack_shards


def pack(source, target, *flags):
    """Pack in this process; returns the number of unreadable images."""
    args = pack_shards.parse_flags([str(source), str(target), '--num_workers', '0', *map(str, flags)])
    return pack_shards.pack(args, pack_shards.load_splits(args.source, args.short_side))


def contents(folder):
    """{member: bytes} of the tar files of a folder."""
    found = {}
    for path in sorted(folder.glob('*.tar')):
        with tarfile.open(str(path)) as tar:
            for member in tar:
                assert member.name not in found
                found[member.name] = tar.extractfile(member).read()
    return found


def test_shards_hold_every_file_unchanged_with_its_label(images, tmp_path):
    packed = tmp_path / 'x'
    assert pack(images, packed, '--images_per_shard', 10, '--num_workers', 2) == 0
    for split, count in (('train', 4), ('val', 2)):
        found, classes = contents(packed / split), sorted(path.name for path in (images / 'train').iterdir())
        expected = {}
        for path in (images / split).glob('*/*.jpg'):
            name, label = '{}/{}'.format(path.parent.name, path.stem), classes.index(path.parent.name)
            expected.update({name + '.jpg': path.read_bytes(), name + '.cls': str(label).encode()})
        assert found == expected and len(list((packed / split).glob('*.tar'))) == count
        ours, theirs = labelled_set(str(packed), split), labelled_set(str(images), split)
        assert ours.classes == theirs.classes and sorted(ours.labels) == sorted(theirs.labels)


def test_large_images_are_downscaled_small_ones_unchanged_and_unreadable_ones_listed(tmp_path):
    source = tmp_path / 'source'
    source.mkdir()
    for name, size in (('large.png', (400, 300)), ('small.jpg', (64, 50)), ('tall.jpg', (90, 200))):
        Image.effect_mandelbrot(size, (-2, -1, 1, 1), 50).convert('RGB').save(str(source / name))
    os.mkfifo(str(source / 'pipe.jpg'))
    assert pack(source, tmp_path / 'x', '--short_side', 60, '--quality', 80) == 1
    found = contents(tmp_path / 'x')
    assert sorted(found) == ['large.jpg', 'small.jpg', 'tall.jpg']
    assert found['small.jpg'] == (source / 'small.jpg').read_bytes()
    assert (tmp_path / 'x' / 'unreadable.txt').read_text().startswith('{}\t'.format(source / 'pipe.jpg'))
    assert decode(found['large.jpg'])[0].shape == (60, 80, 3) and decode(found['tall.jpg'])[0].shape == (133, 60, 3)


def test_member_names_have_one_dot_and_are_unique():
    paths = PathArray('', encode_names(['a/x.y.jpg', '../a/x_y.jpg', 'a/x_y.png', 'b.jpg']))
    assert pack_shards.member_names(paths) == ['a/x_y.jpg', 'a/x_y_2.jpg', 'a/x_y_3.png', 'b.jpg']


def test_a_full_disk_is_one_line_and_leaves_nothing(images, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(tarfile.TarFile, 'addfile', full)
    with pytest.raises(UserError, match='No space left'):
        pack(images, tmp_path / 'x')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('make, named', [
    (lambda path: None, '/source '),
    (lambda path: [path.mkdir(), tarfile.open(str(path / 'x.tar'), 'w').close()], 'images')])
def test_an_empty_or_packed_source_is_refused(tmp_path, make, named):
    make(tmp_path / 'source')
    with pytest.raises(UserError, match=named):
        pack(tmp_path / 'source', tmp_path / 'x')
    assert not (tmp_path / 'x').exists()


def test_a_non_empty_target_is_refused_and_an_empty_one_accepted(images, tmp_path):
    (tmp_path / 'x').mkdir()
    assert pack(images / 'val', str(tmp_path / 'x') + '/') == 0
    with pytest.raises(UserError, match='/x: '):
        pack(images, tmp_path / 'x')


def test_csv_files_are_packed_with_their_classes(images, tmp_path):
    (tmp_path / 'lists').mkdir()
    for split in ('train', 'test'):         # test goes to val
        paths = sorted(images.glob('{}/*/*.jpg'.format('val' if split == 'test' else split)))
        (tmp_path / 'lists' / (split + '.csv')).write_text(''.join(
            '{},{}\n'.format(os.path.relpath(str(path), str(tmp_path / 'lists')), path.parent.name) for path in paths))
    pack(tmp_path / 'lists', tmp_path / 'x')
    for split in ('train', 'val'):
        ours, theirs = labelled_set(str(tmp_path / 'x'), split), labelled_set(str(images), split)
        assert ours.classes == theirs.classes and sorted(ours.labels) == sorted(theirs.labels)
        assert all(os.pardir not in ours.name_of(i) and ours.classes[ours.labels[i]] in ours.name_of(i)
                   for i in range(len(ours)))


def test_without_val_all_images_are_packed(images, tmp_path):
    shutil.copytree(str(images / 'train'), str(tmp_path / 'train'))
    assert [(split, len(found)) for split, found in pack_shards.load_splits(str(tmp_path))] == [('train', 32)]
