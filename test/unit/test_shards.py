"""Tar shards: what training reads from them, and what is said where it cannot."""
import io
import os
import tarfile

import pytest
from conftest import finetune, pretrain
from PIL import Image

from util import remember, shards
from util.datasets import labelled_set, pretraining_set
from util.device import Cpu
from util.distributed import World
from util.errors import UserError
from util.images import UnreadableImage
from util.loader import training_loader
from util.transforms import pretraining_transform


def jpeg(shade):
    file = io.BytesIO()
    Image.new('RGB', (8, 8), (shade,) * 3).save(file, 'JPEG')
    return file.getvalue()


def tar(path, members):
    """A tar file of {name: bytes}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(str(path), 'w') as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def shade(picture):
    return int(picture.part(0, 0, 8, 8, (8, 8))[0, 0, 0])


def labels(dataset):
    """{shade of the picture: class name}."""
    return {shade(picture): dataset.classes[label] for picture, label in (dataset[i] for i in range(len(dataset)))}


def test_labels_are_read_from_the_files_beside_the_images(tmp_path):
    tar(tmp_path / 'train' / 'a-000.tar',
        {'x/0.jpg': jpeg(10), 'x/0.cls': b'2', 'x/1.cls': b'0\n', 'x/1.jpg': jpeg(20)})
    tar(tmp_path / 'train' / 'a-001.tar', {'x/2.png.jpg': jpeg(30), 'x/2.cls': b'1', 'x/2.json': b'{}'})
    dataset = labelled_set(str(tmp_path), 'train')
    assert dataset.classes == ['0', '1', '2'] and labels(dataset) == {10: '2', 20: '0', 30: '1'}
    (tmp_path / 'train' / 'classes.txt').write_text('cat\ndog\nhorse, grey\n')
    assert labels(labelled_set(str(tmp_path), 'train')) == {10: 'horse, grey', 20: 'cat', 30: 'dog'}


def test_without_such_files_the_folder_of_an_image_is_its_class(tmp_path):
    tar(tmp_path / 'train' / 'cats.tar', {'cat/0.jpg': jpeg(10), './dog/1.jpg': jpeg(20)})
    tar(tmp_path / 'val' / 'x.tar', {'deep/dog/5.JPEG': jpeg(30)})
    train = labelled_set(str(tmp_path), 'train')
    assert labels(train) == {10: 'cat', 20: 'dog'}
    assert labels(labelled_set(str(tmp_path), 'val', classes=train.classes)) == {30: 'dog'}


def test_pretraining_takes_all_images_of_all_tar_files_and_asks_for_no_labels(tmp_path):
    tar(tmp_path / 'a.tar', {'0.jpg': jpeg(10), 'notes.txt': b'no image'})
    tar(tmp_path / 'b.TAR', {'{}.jpg'.format(i): jpeg(20 + i) for i in range(5)})
    dataset = pretraining_set(str(tmp_path))
    assert sorted(shade(dataset[i][0]) for i in range(len(dataset))) == [10, 20, 21, 22, 23, 24]


@pytest.mark.parametrize('workers', [0, 2])
def test_each_image_is_seen_once_an_epoch_by_all_processes_together(tmp_path, workers):
    for number in range(3):
        tar(tmp_path / '{}.tar'.format(number), {'{}.jpg'.format(i): jpeg(30 * number + 3 * i) for i in range(8)})
    dataset = pretraining_set(str(tmp_path), pretraining_transform(8))
    seen = []
    for rank in range(2):
        for images, _ in training_loader(dataset, 4, World(rank, 2), 0, workers, False, Cpu()):
            seen += images[:, 0, 0, 0].tolist()
    assert sorted(seen) == sorted(shade(pretraining_set(str(tmp_path))[i][0]) for i in range(24))


def test_an_image_that_cannot_be_read_is_named_by_tar_file_and_member(tmp_path):
    tar(tmp_path / 'a.tar', {'x/0.jpg': b'no picture', 'x/1.jpg': b''})
    dataset = pretraining_set(str(tmp_path))
    assert dataset.name_of(0) == str(tmp_path / 'a.tar' / 'x' / '0.jpg')
    with pytest.raises(UnreadableImage, match=r'a\.tar/x/0\.jpg: cannot be read \(damaged or no image\)'):
        dataset[0]
    with pytest.raises(UnreadableImage, match=r'a\.tar/x/1\.jpg: cannot be read \(an empty file\)'):
        dataset[1]
    (tmp_path / 'a.tar').unlink()
    shards._opened.cache_clear()
    with pytest.raises(UnreadableImage, match='No such file'):
        dataset[0]


@pytest.mark.parametrize('members, words', [
    ({'0.jpg': b'x'}, 'hold images without a class'), ({'0.jpg': b'x', '0.cls': b'cat'}, 'is no tar file of images'),
    ({'0.txt': b'x'}, 'hold no images'), ({'a/0.jpg': b'x', '1.jpg': b'x', '1.cls': b'0'}, 'without a class')])
def test_tar_files_that_cannot_be_trained_on_are_refused_in_words(tmp_path, members, words):
    tar(tmp_path / 'train' / 'x.tar', members)
    with pytest.raises(UserError, match='^--data_path: .*' + words):
        labelled_set(str(tmp_path), 'train')


@pytest.mark.parametrize('damage', [lambda data: b'no tar file' * 100, lambda data: data[:700], lambda data: b''])
def test_a_damaged_tar_file_is_named(tmp_path, damage):
    tar(tmp_path / 'a.tar', {'0.jpg': jpeg(1)})
    path = tar(tmp_path / 'b.tar', {'0.jpg': jpeg(1)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r'b\.tar is no tar file of images'):
        pretraining_set(str(tmp_path))


def test_classes_that_train_has_not_are_named(tmp_path):
    tar(tmp_path / 'val' / 'x.tar', {'unicorn/0.jpg': jpeg(1)})
    with pytest.raises(UserError, match="has the class 'unicorn', which the training data have not"):
        labelled_set(str(tmp_path), 'val', classes=['cat'])


def test_a_label_beyond_the_named_classes_is_refused(tmp_path):
    tar(tmp_path / 'train' / 'x.tar', {'0.jpg': jpeg(1), '0.cls': b'2'})
    (tmp_path / 'train' / 'classes.txt').write_text('cat\ndog\n')
    with pytest.raises(UserError, match=r'classes\.txt has 2 lines, but there is an image of class 2'):
        labelled_set(str(tmp_path), 'train')


def test_the_index_is_remembered_until_a_tar_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(remember, 'SLOW', -1.)
    path = tar(tmp_path / 'x' / 'a.tar', {'0.jpg': jpeg(10)})
    os.utime(str(path), (1e9, 1e9))
    assert len(pretraining_set(str(tmp_path / 'x'))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, 'open', None)
        assert shade(pretraining_set(str(tmp_path / 'x'))[0][0]) == 10
    tar(path, {'0.jpg': jpeg(10), '1.jpg': jpeg(20)})
    assert len(pretraining_set(str(tmp_path / 'x'))) == 2
    tar(tmp_path / 'x' / 'b.tar', {'0.jpg': jpeg(10)})
    assert len(pretraining_set(str(tmp_path / 'x'))) == 3


def test_more_tar_files_than_may_be_open_are_read(tmp_path, monkeypatch):
    for number in range(shards._MOST_OPEN + 5):
        tar(tmp_path / '{:03d}.tar'.format(number), {'0.jpg': jpeg(number)})
    dataset, before = pretraining_set(str(tmp_path)), len(os.listdir('/proc/self/fd'))
    assert [abs(shade(dataset[i][0]) - i) <= 1 for i in range(len(dataset))] == [True] * len(dataset)
    assert len(os.listdir('/proc/self/fd')) <= before + shards._MOST_OPEN


@pytest.mark.slow
def test_training_on_tar_files_goes_through(images, tmp_path):
    for split in ('train', 'val'):
        paths = sorted(images.glob(split + '/*/*.jpg'))
        tar(tmp_path / 'data' / split / 'x.tar', {'/'.join(path.parts[-2:]): path.read_bytes() for path in paths})
    flags = ['--data_path', tmp_path / 'data', '--epochs', 1, '--num_workers', 2]
    assert pretrain(*flags, '--output_dir', tmp_path / 'pre').status == 0
    tarred = finetune(*flags, '--output_dir', tmp_path / 'fine', '--finetune', tmp_path / 'pre' / 'checkpoint-0.pth')
    folder = finetune('--data_path', images, '--epochs', 1, '--output_dir', tmp_path / 'again', '--finetune',
                      tmp_path / 'pre' / 'checkpoint-0.pth')
    lines = [run.output[run.output.index('* Acc@1'):].split('\n')[0] for run in (tarred, folder)]
    assert lines[0] == lines[1]


def test_a_name_in_a_tar_file_is_an_image_by_its_ending_alone(tmp_path):
    tar(tmp_path / 'x.tar', {'a.JPG': jpeg(1), 'b.cls': b'1', 'c.jpg.txt': b'', 'd.png': b'x'})
    dataset = pretraining_set(str(tmp_path))
    assert [os.path.basename(dataset.name_of(i)) for i in range(len(dataset))] == ['a.JPG', 'd.png']
