"""Tar shards: labels, index, and rejected files."""
import io
import os
import tarfile

import pytest
from PIL import Image

from util.data import tar_dataset
from util.data.datasets import labelled_set, pretraining_set
from util.data.image_files import UnreadableImage
from util.errors import UserError


def jpeg(shade):
    file = io.BytesIO()
    Image.new('RGB', (8, 8), (shade,) * 3).save(file, 'JPEG')
    return file.getvalue()


def tar(path, members):
    """Write a tar file of {name: bytes, or a size in a header without data}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(str(path), 'w') as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = data if isinstance(data, int) else len(data)
            if isinstance(data, int):
                file.fileobj.write(info.tobuf(tarfile.GNU_FORMAT))
            else:
                file.addfile(info, io.BytesIO(data))
    return path


def shade(image):
    return int(image.resized_crop(0, 0, 8, 8, (8, 8))[0, 0, 0])


def labels(dataset):
    """{grey level of the image: class name}."""
    return {shade(image): dataset.classes[label] for image, label in (dataset[i] for i in range(len(dataset)))}


def test_labels_from_cls_files_and_class_names(tmp_path):
    tar(tmp_path / 'train' / 'a-000.tar',
        {'x/0.jpg': jpeg(10), 'x/0.cls': b'2', 'x/1.cls': b'0\n', 'x/1.jpg': jpeg(20)})
    tar(tmp_path / 'train' / 'a-001.tar', {'x/2.png.jpg': jpeg(30), 'x/2.cls': b'1', 'x/2.jpg.txt': b''})
    dataset = labelled_set(str(tmp_path), 'train')
    assert dataset.classes == ['0', '1', '2'] and labels(dataset) == {10: '2', 20: '0', 30: '1'}
    (tmp_path / 'train' / 'classes.txt').write_text('cat\ndog\nhorse, grey\n')
    assert labels(labelled_set(str(tmp_path), 'train')) == {10: 'horse, grey', 20: 'cat', 30: 'dog'}
    (tmp_path / 'train' / 'classes.txt').write_text('cat\ndog\n')
    with pytest.raises(UserError, match='classes.txt'):
        labelled_set(str(tmp_path), 'train')


def test_cls_files_may_hold_class_names_and_have_an_extension_of_their_own(tmp_path):
    tar(tmp_path / 'train' / 'a.tar', {'a.input.jpg': jpeg(10), 'a.target.cls': 'caf\u00e9'.encode(),
                                       'b.input.jpg': jpeg(20), 'b.target.cls': b'ant\n',
                                       'c.jpg': jpeg(30), 'c.cls': 'cafe\u0301'.encode()})
    train = labelled_set(str(tmp_path), 'train', val_fraction=0)
    assert train.classes == ['ant', 'caf\u00e9'] and labels(train) == {10: 'caf\u00e9', 20: 'ant', 30: 'caf\u00e9'}
    (tmp_path / 'train' / 'classes.txt').write_text('caf\u00e9\nbee\nant\n')
    assert labelled_set(str(tmp_path), 'train', val_fraction=0).classes == ['caf\u00e9', 'bee', 'ant']
    (tmp_path / 'train' / 'classes.txt').write_text('bee\nant\n')
    with pytest.raises(UserError, match='^--data_path: .*classes.txt'):
        labelled_set(str(tmp_path), 'train')


@pytest.mark.parametrize('names', [('in-train-0.tar', 'in-validation-0.tar'), ('shard_0.tar', 'a_VAL_0.tar')])
def test_shards_of_different_splits_in_one_folder_are_an_error(tmp_path, names):
    for name in names:
        tar(tmp_path / name, {'{}/x.jpg'.format(split): jpeg(10) for split in ('cat', 'dog')})
    for load in (lambda: pretraining_set(str(tmp_path)), lambda: labelled_set(str(tmp_path), 'train')):
        with pytest.raises(UserError, match='^--data_path: .*/val and .*/train'):
            load()


def test_hidden_members_are_skipped_and_others_counted(tmp_path, caplog):
    tar(tmp_path / 'a.tar', {'./cat/a.jpg': jpeg(10), 'cat/._a.jpg': b'x', '__MACOSX/cat/a.jpg': b'x',
                             'cat/a.json': b'', 'cat/b.GIF': jpeg(20), 'cat/.ipynb_checkpoints/a.jpg': b'x'})
    tar(tmp_path / '._a.tar', {})
    with caplog.at_level('INFO', 'mae'):
        assert len(pretraining_set(str(tmp_path))) == 2
    assert any(line.endswith('ignoring 3 hidden, 1 .json') for line in caplog.messages)


def test_without_cls_files_folders_are_classes(tmp_path):
    tar(tmp_path / 'train' / 'cats.tar', {'cat/0.jpg': jpeg(10), './dog/1.jpg': jpeg(20)})
    tar(tmp_path / 'val' / 'x.TAR', {'deep/dog/5.JPEG': jpeg(30)})
    train = labelled_set(str(tmp_path), 'train')
    assert labels(train) == {10: 'cat', 20: 'dog'}
    assert labels(labelled_set(str(tmp_path), 'val', classes=train.classes)) == {30: 'dog'}


def test_unreadable_image_is_named_by_tar_file_and_member(tmp_path):
    tar(tmp_path / 'a.tar', {'x/0.jpg': b'no picture', 'x/1.jpg': b''})
    dataset = pretraining_set(str(tmp_path))
    for gone in (False, True):
        if gone:
            (tmp_path / 'a.tar').unlink()
            tar_dataset._open_tar.cache_clear()
        for i in range(2):
            with pytest.raises(UnreadableImage) as caught:
                dataset[i]
            assert caught.value.path == dataset.name_of(i) == str(tmp_path / 'a.tar' / 'x' / '{}.jpg'.format(i))


@pytest.mark.compat
@pytest.mark.parametrize('members, named', [
    ({'a/0.jpg': b'x', '1.jpg': b'x', '1.cls': b'0'}, 'class'), ({'0.txt': b'x'}, 'images'),
    ({'0.jpg': b'x', '1.jpg': b'x', '0.cls': b'cat'}, r'x\.tar.*1\.jpg'),
    ({'0.jpg': b'x', '1.jpg': b'x', '0.cls': b'cat', '1.cls': b'7'}, r'x\.tar.*0\.jpg'),
    ({'0.jpg': b'x', '0.cls': b'x' * 300}, r'x\.tar.*0\.cls'), ({'0.jpg': b'x', '0.cls': b'-1'}, r'x\.tar.*0.*\.cls'),
    ({'0.jpg': b'x', '0.cls': b'1' * 12}, r'x\.tar.*0.*\.cls'), ({'0.cls': b'x', '0.jpg': 10 ** 12}, r'x\.tar')])
def test_invalid_tar_files_are_rejected(tmp_path, members, named):
    tar(tmp_path / 'train' / 'x.tar', members)
    with pytest.raises(UserError, match='^--data_path: .*' + named):
        labelled_set(str(tmp_path), 'train')


@pytest.mark.parametrize('damage', [lambda data: b'not a tar file' * 100, lambda data: data[:700], lambda data: b'',
                                    lambda data: data.replace(b'0.jpg\0', b'0.jpg\xff', 1), None])
def test_damaged_tar_file_is_named_and_pipes_do_not_block(tmp_path, damage):
    tar(tmp_path / 'a.tar', {'0.jpg': jpeg(1)})
    assert len(pretraining_set(str(tmp_path))) == 1
    if damage:
        path = tar(tmp_path / 'b.tar', {'0.jpg': jpeg(1)})
        path.write_bytes(damage(path.read_bytes()))
    else:
        os.mkfifo(str(tmp_path / 'b.tar'))
    with pytest.raises(UserError, match=r'^--data_path: .*b\.tar'):
        pretraining_set(str(tmp_path))


def test_more_tar_files_than_open_file_limit(tmp_path, monkeypatch):
    for number in range(tar_dataset._MAX_OPEN_FILES + 5):
        tar(tmp_path / '{:03d}.tar'.format(number), {'0.jpg': jpeg(number)})
    dataset, before = pretraining_set(str(tmp_path)), len(os.listdir('/proc/self/fd'))
    assert [abs(shade(dataset[i][0]) - i) <= 1 for i in range(len(dataset))] == [True] * len(dataset)
    assert len(os.listdir('/proc/self/fd')) <= before + tar_dataset._MAX_OPEN_FILES
