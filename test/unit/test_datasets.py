"""The layouts that --data_path may have, and what is said where it has none of them."""
import os
import pickle
import shutil

import numpy as np
import pytest

from util import datasets, hang_detector
from util.cifar import CIFAR_10
from util.drawn_dataset import CLASSES
from util.errors import UserError
from util.images import UnreadableImage


@pytest.fixture(scope='session')
def cifar(tmp_path_factory):
    """A folder laid out as the official python batches, with 6 images each."""
    folder = tmp_path_factory.mktemp('cifar') / 'cifar-10-batches-py'
    folder.mkdir()
    rng = np.random.RandomState(0)
    for name in CIFAR_10.train + CIFAR_10.val:
        pixels = rng.randint(0, 256, (6, 3072)).astype(np.uint8)
        batch = {b'data': pixels, b'labels': list(range(6)), b'batch_label': b'x'}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = b'airplane automobile bird cat deer dog frog horse ship truck'.split()
    (folder / 'batches.meta').write_bytes(pickle.dumps({b'label_names': names}, protocol=2))
    return folder


def test_an_imagefolder_tree_gives_its_classes_in_order(images):
    train = datasets.labelled_set(str(images), 'train')
    assert train.classes == sorted(CLASSES) and len(train) == 32
    picture, label = train[0]
    assert (picture.width, picture.height, label) == (64, 64, 0)
    assert set(train.labels) == set(range(8))


def test_pretraining_takes_the_train_folder_alone(images):
    assert len(datasets.pretraining_set(str(images))) == 32


def test_pretraining_takes_a_flat_folder_and_nested_ones(images, tmp_path):
    for i, path in enumerate(sorted(images.glob('train/*/*.jpg'))[:5]):
        target = tmp_path / ('flat' if i < 3 else 'a/b/c')
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(path), str(target / '{}.JPG'.format(i)))
    (tmp_path / 'notes.txt').write_text('no image')
    assert len(datasets.pretraining_set(str(tmp_path))) == 5
    assert len(datasets.pretraining_set(str(tmp_path / 'flat'))) == 3


def test_each_folder_that_is_listed_counts_as_progress(images, monkeypatch):
    places = []
    monkeypatch.setattr(hang_detector, 'progress', places.append)
    datasets.labelled_set(str(images), 'val')
    assert places == ['the listing of {}'.format(images / 'val' / name).rstrip('/') for name in ['', *sorted(CLASSES)]]


@pytest.mark.parametrize('inside', [True, False])
def test_cifar_is_found_at_its_folder_and_at_the_one_around_it(cifar, inside):
    path = str(cifar if inside else cifar.parent)
    train, val = datasets.labelled_set(path, 'train'), datasets.labelled_set(path, 'val')
    assert (len(train), len(val), len(train.classes)) == (30, 6, 10)
    assert len(datasets.pretraining_set(path)) == 30
    picture, label = train[1]
    data = pickle.loads((cifar / 'data_batch_1').read_bytes())[b'data'][1]
    assert np.array_equal(picture.part(0, 0, 32, 32, (32, 32)), data.reshape(3, 32, 32).transpose(1, 2, 0))
    assert label == 1


@pytest.mark.parametrize('batch', [7, {}, {b'data': [[1, 2]], b'labels': [0]}, {b'data': None, b'labels': None},
                                   {b'data': [[0] * 3072], b'labels': [1, 2]}])
def test_a_cifar_batch_of_another_kind_is_refused_by_name(cifar, tmp_path, batch):
    shutil.copytree(str(cifar), str(tmp_path / 'c'))
    (tmp_path / 'c' / 'data_batch_1').write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(UserError, match='data_batch_1 is not a CIFAR-10 batch'):
        datasets.pretraining_set(str(tmp_path / 'c'))


def test_a_cifar_batch_that_would_run_code_is_refused(cifar, tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, ('raise SystemExit("ran")',))
    shutil.copytree(str(cifar), str(tmp_path / 'c'))
    (tmp_path / 'c' / 'data_batch_1').write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match='data_batch_1 is not a CIFAR-10 batch'):
        datasets.pretraining_set(str(tmp_path / 'c'))


@pytest.fixture
def cifar_100(tmp_path):
    """A folder laid out as CIFAR-100's python version, with 7 training images and 3 others."""
    folder = tmp_path / 'cifar-100-python'
    folder.mkdir()
    rng = np.random.RandomState(0)
    for name, count in (('train', 7), ('test', 3)):
        batch = {b'data': rng.randint(0, 256, (count, 3072)).astype(np.uint8), b'coarse_labels': [0] * count,
                 b'fine_labels': list(range(90, 90 + count)), b'filenames': [b'x.png'] * count, b'batch_label': b'x'}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = [b'fine %d' % i for i in range(100)]
    meta = {b'fine_label_names': names, b'coarse_label_names': [b'coarse']}
    (folder / 'meta').write_bytes(pickle.dumps(meta, protocol=2))
    return folder


@pytest.mark.parametrize('inside', [True, False])
def test_cifar_100_gives_its_fine_labels(cifar_100, inside):
    path = str(cifar_100 if inside else cifar_100.parent)
    train, val = datasets.labelled_set(path, 'train'), datasets.labelled_set(path, 'val')
    assert (len(train), len(val), len(datasets.pretraining_set(path))) == (7, 3, 7)
    assert train.classes[92] == 'fine 92' and [train[i][1] for i in range(7)] == list(range(90, 97))
    data = pickle.loads((cifar_100 / 'test').read_bytes())[b'data'][2]
    assert np.array_equal(val[2][0].part(0, 0, 32, 32, (32, 32)), data.reshape(3, 32, 32).transpose(1, 2, 0))


def test_a_cifar_100_batch_with_a_class_without_a_name_is_refused(cifar_100):
    (cifar_100 / 'meta').write_bytes(pickle.dumps({b'fine_label_names': [b'cat']}, protocol=2))
    with pytest.raises(UserError, match='meta names 1 classes, but there are images of others'):
        datasets.labelled_set(str(cifar_100), 'train')


def test_cifar_10_beside_cifar_100_must_be_named(cifar, cifar_100):
    shutil.copytree(str(cifar), str(cifar_100.parent / cifar.name))
    with pytest.raises(UserError, match='holds CIFAR-10 and CIFAR-100; name the folder of one'):
        datasets.pretraining_set(str(cifar_100.parent))
    assert len(datasets.pretraining_set(str(cifar_100))) == 7


def test_val_is_missed_only_where_it_is_asked_for_and_nothing_is_held_out(images, tmp_path):
    shutil.copytree(str(images / 'train'), str(tmp_path / 'train'))
    assert len(datasets.pretraining_set(str(tmp_path))) == 32
    assert len(datasets.labelled_set(str(tmp_path), 'train', val_fraction=0)) == 32
    with pytest.raises(UserError, match=r'val is missing'):
        datasets.labelled_set(str(tmp_path), 'val', val_fraction=0)


def test_a_line_names_the_folders_beside_train_that_pretraining_leaves_out(images, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(datasets.logger, 'propagate', True)
    shutil.copytree(str(images / 'train' / 'star_checks'), str(tmp_path / 'train' / 'deep' / 'deeper'))
    for name in ('val', 'b', 'a'):
        (tmp_path / name).mkdir()
    with caplog.at_level('INFO', 'mae'):
        assert len(datasets.pretraining_set(str(tmp_path))) == 4
    assert caplog.messages == ['--data_path: {}/train alone is used; left out beside it: a, b'.format(tmp_path)]


def test_a_link_back_to_a_folder_around_it_is_not_followed(images, tmp_path):
    shutil.copytree(str(images / 'val' / 'star_checks'), str(tmp_path / 'a' / 'b'))
    for place in ('a', 'a/b'):
        os.symlink(str(tmp_path), str(tmp_path / place / 'loop'))
    os.symlink(str(images / 'val' / 'disc_checks'), str(tmp_path / 'a' / 'elsewhere'))
    count = len(os.listdir(str(images / 'val' / 'star_checks'))) + len(os.listdir(str(images / 'val' / 'disc_checks')))
    assert len(datasets.pretraining_set(str(tmp_path))) == count


def test_test_takes_the_place_of_a_val_that_is_missing_and_a_line_says_so(images, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(datasets.logger, 'propagate', True)
    for place in ('test', 'val'):
        shutil.copytree(str(images / 'val'), str(tmp_path / place))
        (tmp_path / place / CLASSES[0] / '{}.jpg'.format(place)).write_bytes(b'')
    with caplog.at_level('INFO', 'mae'):
        assert any(path.endswith('/val.jpg') for path in datasets.labelled_set(str(tmp_path), 'val').paths)
        assert not caplog.messages
        shutil.rmtree(str(tmp_path / 'val'))
        assert any(path.endswith('/test.jpg') for path in datasets.labelled_set(str(tmp_path), 'val').paths)
    assert caplog.messages == ['--data_path: {0}/val is missing; {0}/test takes its place'.format(tmp_path)]


def test_val_with_fewer_classes_keeps_the_labels_of_train(images, tmp_path):
    shutil.copytree(str(images / 'val' / 'star_stripes'), str(tmp_path / 'val' / 'star_stripes'))
    val = datasets.labelled_set(str(tmp_path), 'val', classes=sorted(CLASSES))
    assert set(val.labels) == {sorted(CLASSES).index('star_stripes')}


def test_a_class_that_train_does_not_know_is_named(images, tmp_path):
    shutil.copytree(str(images / 'val' / 'disc_checks'), str(tmp_path / 'val' / 'unicorn'))
    with pytest.raises(UserError, match="'unicorn'"):
        datasets.labelled_set(str(tmp_path), 'val', classes=sorted(CLASSES))


def test_an_empty_class_folder_is_named(images, tmp_path):
    shutil.copytree(str(images / 'train'), str(tmp_path / 'train'))
    (tmp_path / 'train' / 'zebra').mkdir()
    with pytest.raises(UserError, match='zebra holds no images'):
        datasets.labelled_set(str(tmp_path), 'train')


def test_a_folder_that_cannot_be_listed_is_named_not_left_out(images, tmp_path, monkeypatch):
    shutil.copytree(str(images / 'train' / 'cross_checks'), str(tmp_path / 'data'))
    monkeypatch.chdir(tmp_path / 'data')
    for _ in range(20):             # deeper than the longest path that Linux takes, whoever asks
        os.mkdir('d' * 250)
        os.chdir('d' * 250)
    with pytest.raises(UserError, match=r'^--data_path: .* cannot be listed \(File name too long\)$'):
        datasets.pretraining_set(str(tmp_path / 'data'))


def test_a_damaged_image_is_named(images, tmp_path):
    shutil.copytree(str(images / 'train'), str(tmp_path / 'train'))
    data = datasets.labelled_set(str(tmp_path), 'train')
    path = data.name_of(3)
    with open(path, 'wb') as file:
        file.write(b'no picture')
    with pytest.raises(UnreadableImage, match=r'\.jpg: cannot be read \(damaged or no image\); repair or remove'):
        data[3]
    assert data[2][1] == 0
