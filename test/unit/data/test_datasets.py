"""The layouts that --data_path may have, and what is refused."""
import pickle
import pickletools
import shutil

import numpy as np
import pytest

from util.data import datasets
from util.data.cifar import CIFAR_10
from util.distributed import hang_detector
from util.errors import UserError
from util.tools.synthetic_dataset import CLASSES


def pickled(value):
    """As Python 2 has pickled the official files, where bytes are strings."""
    data = bytearray(pickle.dumps(value, protocol=3))
    for opcode, _, place in pickletools.genops(bytes(data)):
        data[place] = {'SHORT_BINBYTES': ord('U'), 'BINBYTES': ord('T')}.get(opcode.name, data[place])
    return bytes(data)


def write_cifar(folder, files, meta):
    """A folder of batches {name: dict} whose data are random."""
    folder.mkdir()
    for name, batch in files.items():
        count = len(batch[b'labels' if b'labels' in batch else b'fine_labels'])
        pixels = np.random.RandomState(0).randint(0, 256, (count, 3072)).astype(np.uint8)
        (folder / name).write_bytes(pickled({b'data': pixels, **batch}))
    for name, content in meta.items():
        (folder / name).write_bytes(pickled(content))
    return folder


@pytest.fixture(scope='session')
def cifar(tmp_path_factory):
    """A folder laid out as the official python batches, with 6 images each."""
    names = b'airplane automobile bird cat deer dog frog horse ship truck'.split()
    return write_cifar(tmp_path_factory.mktemp('cifar') / 'cifar-10-batches-py', {
        name: {b'labels': list(range(6)), b'batch_label': b'x'} for name in CIFAR_10.train + CIFAR_10.val},
        {'batches.meta': {b'label_names': names}})


@pytest.fixture
def cifar_100(tmp_path):
    """A folder laid out as CIFAR-100's python version, with 7 training images and 3 others."""
    return write_cifar(tmp_path / 'cifar-100-python', {
        name: {b'fine_labels': list(range(90, 90 + count)), b'coarse_labels': [0] * count, b'filenames': [b'x'] * count}
        for name, count in (('train', 7), ('test', 3))}, {
        'meta': {b'fine_label_names': [b'fine %d' % i for i in range(100)], b'coarse_label_names': [b'coarse']}})


def test_an_imagefolder_tree_gives_its_classes_in_order_and_files_outside_of_them_are_left_out(images, tmp_path):
    shutil.copytree(str(images / 'train'), str(tmp_path / 'train'))
    shutil.copy(str(next(images.glob('val/*/*.jpg'))), str(tmp_path / 'train' / '0.jpg'))
    train = datasets.labelled_set(str(tmp_path), 'train', val_fraction=0)
    assert train.classes == sorted(CLASSES) and np.bincount(train.labels).tolist() == [4] * 8
    picture, label = train[0]
    assert (picture.width, picture.height, label) == (64, 64, 0)
    assert all(train.classes[label] in path for path, label in zip(train.paths, train.labels))
    assert len(datasets.pretraining_set(str(tmp_path))) == 33
    (tmp_path / 'train' / 'zebra').mkdir()
    with pytest.raises(UserError, match='zebra'):
        datasets.labelled_set(str(tmp_path), 'train')


def test_each_folder_that_is_listed_counts_as_progress(images, monkeypatch):
    places = []
    monkeypatch.setattr(hang_detector, 'heartbeat', places.append)
    datasets.labelled_set(str(images), 'val')
    assert places == ['listing {}'.format(images / 'val' / name).rstrip('/') for name in ['', *sorted(CLASSES)]]


@pytest.mark.compat
def test_cifar_is_found_at_its_folder_and_at_the_one_around_it(cifar):
    for path in (str(cifar), str(cifar.parent)):
        train, val = datasets.labelled_set(path, 'train'), datasets.labelled_set(path, 'val')
        assert (len(train), len(val), len(train.classes)) == (30, 6, 10)
    picture, label = train[1]
    data = pickle.loads((cifar / 'data_batch_1').read_bytes(), encoding='bytes')[b'data'][1]
    assert np.array_equal(picture.part(0, 0, 32, 32, (32, 32)), data.reshape(3, 32, 32).transpose(1, 2, 0))
    assert label == 1


def test_cifar_100_gives_its_fine_labels_and_beside_cifar_10_must_be_named(cifar, cifar_100):
    train, val = (datasets.labelled_set(str(cifar_100.parent), split) for split in ('train', 'val'))
    assert (len(val), len(datasets.pretraining_set(str(cifar_100)))) == (3, 7)
    assert train.classes[92] == 'fine 92' and [train[i][1] for i in range(7)] == list(range(90, 97))
    shutil.copytree(str(cifar), str(cifar_100.parent / cifar.name))
    with pytest.raises(UserError, match='CIFAR-10 and CIFAR-100'):
        datasets.pretraining_set(str(cifar_100.parent))
    (cifar_100 / 'meta').write_bytes(pickled({b'fine_label_names': [b'cat']}))
    with pytest.raises(UserError, match='meta'):
        datasets.labelled_set(str(cifar_100), 'train')


class Evil:
    def __reduce__(self):
        return (exec, ('raise SystemExit("ran")',))


@pytest.mark.compat
@pytest.mark.parametrize('batch', [
    {}, {b'data': np.zeros((1, 3072), np.uint8), b'labels': [1, 2]},
    {b'data': np.zeros((1, 3072), 'f4'), b'labels': [1]}, Evil(),
    b'\x80\x02]r\xff\xff\xff\x7f.', b'\x80\x03B\xff\xff\xff\xffx.',
    b'\x80\x02c_codecs\nencode\n(U\x01xU\x03zipt' + b'R.'])
def test_a_cifar_batch_of_another_kind_is_refused_by_name(cifar, tmp_path, batch):
    """Among them a pickle that runs code, one whose memo would take 32 GB and one that claims 4 GB of bytes."""
    shutil.copytree(str(cifar), str(tmp_path / 'c'))
    data = batch if isinstance(batch, bytes) else pickled(batch)
    (tmp_path / 'c' / 'data_batch_1').write_bytes(data)
    with pytest.raises(UserError, match='data_batch_1 .*CIFAR-10 batch'):
        datasets.pretraining_set(str(tmp_path / 'c'))


def test_a_line_names_the_folders_beside_train_that_pretraining_leaves_out(images, tmp_path, caplog):
    shutil.copytree(str(images / 'train' / 'star_checks'), str(tmp_path / 'train' / 'deep' / 'deeper'))
    for name in ('val', 'b', 'a'):
        (tmp_path / name).mkdir()
    with caplog.at_level('INFO', 'mae'):
        assert len(datasets.pretraining_set(str(tmp_path))) == 4
    line, = caplog.messages
    assert line.endswith(': a, b')


def test_test_takes_the_place_of_a_val_that_is_missing(images, tmp_path):
    for place in ('test', 'val'):
        shutil.copytree(str(images / 'val'), str(tmp_path / place))
    assert '/val/' in datasets.labelled_set(str(tmp_path), 'val').name_of(0)
    shutil.rmtree(str(tmp_path / 'val'))
    assert '/test/' in datasets.labelled_set(str(tmp_path), 'val').name_of(0)


def test_val_keeps_the_labels_of_train_and_may_have_no_other_class(images, tmp_path):
    shutil.copytree(str(images / 'val' / 'star_stripes'), str(tmp_path / 'val' / 'star_stripes'))
    val = datasets.labelled_set(str(tmp_path), 'val', classes=sorted(CLASSES))
    assert set(val.labels) == {sorted(CLASSES).index('star_stripes')}
    (tmp_path / 'val' / 'star_stripes').rename(tmp_path / 'val' / 'unicorn')
    with pytest.raises(UserError, match='unicorn'):
        datasets.labelled_set(str(tmp_path), 'val', classes=sorted(CLASSES))
