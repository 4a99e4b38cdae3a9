"""Dataset layouts of --data_path."""
import os
import pickle
import pickletools
import shutil

import numpy as np
import pytest
from PIL import Image
from synthetic_dataset import CLASSES

from util.data import datasets, file_index
from util.data.cifar import CIFAR_10
from util.errors import UserError


def pickled(value):
    """Pickle like Python 2, which wrote the official files: bytes as str opcodes."""
    data = bytearray(pickle.dumps(value, protocol=3))
    for opcode, _, offset in pickletools.genops(bytes(data)):
        data[offset] = {'SHORT_BINBYTES': ord('U'), 'BINBYTES': ord('T')}.get(opcode.name, data[offset])
    return bytes(data)


def write_cifar(folder, files, meta):
    """Folder of batches {name: dict} with random pixels."""
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
    """CIFAR-10 folder with 6 images per batch."""
    names = b'airplane automobile bird cat deer dog frog horse ship truck'.split()
    return write_cifar(tmp_path_factory.mktemp('cifar') / 'cifar-10-batches-py', {
        name: {b'labels': list(range(6)), b'batch_label': b'x'} for name in CIFAR_10.train + CIFAR_10.val},
        {'batches.meta': {b'label_names': names}})


@pytest.fixture
def cifar_100(tmp_path):
    """CIFAR-100 folder with 7 training and 3 test images."""
    return write_cifar(tmp_path / 'cifar-100-python', {
        name: {b'fine_labels': list(range(90, 90 + count)), b'coarse_labels': [0] * count, b'filenames': [b'x'] * count}
        for name, count in (('train', 7), ('test', 3))}, {
        'meta': {b'fine_label_names': [b'fine %d' % i for i in range(100)], b'coarse_label_names': [b'coarse']}})


def test_class_folders_are_sorted_and_files_outside_of_them_ignored(images, tmp_path):
    shutil.copytree(str(images / 'train'), str(tmp_path / 'train'))
    shutil.copy(str(next(images.glob('val/*/*.jpg'))), str(tmp_path / 'train' / '0.jpg'))
    train = datasets.labelled_set(str(tmp_path), 'train', val_fraction=0)
    assert train.classes == sorted(CLASSES) and np.bincount(train.labels).tolist() == [4] * 8
    image, label = train[0]
    assert (image.width, image.height, label) == (64, 64, 0)
    assert all(train.classes[label] in path for path, label in zip(train.paths, train.labels))
    assert len(datasets.pretraining_set(str(tmp_path))) == 33
    (tmp_path / 'train' / 'zebra').mkdir()
    with pytest.raises(UserError, match='zebra'):
        datasets.labelled_set(str(tmp_path), 'train')


@pytest.mark.compat
def test_cifar_is_found_in_its_folder_or_the_parent_folder(cifar):
    for path in (str(cifar), str(cifar.parent)):
        train, val = datasets.labelled_set(path, 'train'), datasets.labelled_set(path, 'val')
        assert (len(train), len(val), len(train.classes)) == (30, 6, 10)
    image, label = train[1]
    data = pickle.loads((cifar / 'data_batch_1').read_bytes(), encoding='bytes')[b'data'][1]
    assert np.array_equal(image.resized_crop(0, 0, 32, 32, (32, 32)), data.reshape(3, 32, 32).transpose(1, 2, 0))
    assert label == 1


def test_cifar_100_has_fine_labels_and_is_ambiguous_next_to_cifar_10(cifar, cifar_100):
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
    {}, {b'data': np.zeros((1, 3072), np.uint8), b'labels': [1, 2]}, Evil(), b'\x80\x02]r\xff\xff\xff\x7f.',
    b'\x80\x03B\xff\xff\xff\xffx.'])
def test_invalid_cifar_batch_is_rejected_by_name(cifar, tmp_path, batch):
    """Includes a pickle that runs code, one whose memo would take 32 GB and one that claims 4 GB of bytes."""
    shutil.copytree(str(cifar), str(tmp_path / 'c'))
    data = batch if isinstance(batch, bytes) else pickled(batch)
    (tmp_path / 'c' / 'data_batch_1').write_bytes(data)
    with pytest.raises(UserError, match='data_batch_1 .*CIFAR-10 batch'):
        datasets.pretraining_set(str(tmp_path / 'c'))


def test_test_folder_substitutes_missing_val(images, tmp_path):
    for name in ('test', 'val'):
        shutil.copytree(str(images / 'val'), str(tmp_path / name))
    assert '/val/' in datasets.labelled_set(str(tmp_path), 'val').name_of(0)
    shutil.rmtree(str(tmp_path / 'val'))
    assert '/test/' in datasets.labelled_set(str(tmp_path), 'val').name_of(0)


def test_val_uses_the_labels_of_train_and_rejects_other_classes(images, tmp_path):
    shutil.copytree(str(images / 'val' / 'star_stripes'), str(tmp_path / 'val' / 'star_stripes'))
    val = datasets.labelled_set(str(tmp_path), 'val', classes=sorted(CLASSES))
    assert set(val.labels) == {sorted(CLASSES).index('star_stripes')}
    (tmp_path / 'val' / 'star_stripes').rename(tmp_path / 'val' / 'unicorn')
    with pytest.raises(UserError, match='unicorn'):
        datasets.labelled_set(str(tmp_path), 'val', classes=sorted(CLASSES))


@pytest.mark.parametrize('content, expected', [
    (b'cat\n a dog \n', ['cat', ' a dog ']), (b'\xef\xbb\xbfcat\r\ndog\r\n\r\n', ['cat', 'dog']),
    ('cafe\u0301\ncrane\ncrane'.encode(), ['caf\u00e9', 'crane', 'crane'])])
def test_class_names_are_one_a_line_in_utf_8(tmp_path, content, expected):
    (tmp_path / 'names.txt').write_bytes(content)
    assert file_index.read_class_names(str(tmp_path / 'names.txt')) == expected


@pytest.mark.parametrize('make', [
    os.mkfifo, os.mkdir, lambda path: path.write_bytes(b'caf\xe9\n'), lambda path: path.write_bytes(b'cat\n\ndog\n')])
def test_class_names_that_cannot_be_read_are_one_line(tmp_path, make):
    make(tmp_path / 'names.txt')
    with pytest.raises(UserError, match='^--class_names .*names.txt: '):
        file_index.read_class_names(str(tmp_path / 'names.txt'))


def class_folders(root, names):
    """Folders with an image each, of a grey level that is the position of the name times 10."""
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 10 * i, np.uint8)).save(str(root / name / 'x.png'))
    return str(root.parent)


@pytest.mark.parametrize('names, warned', [(['00', '01', '10'], False), (['a1', 'a10', 'a2'], True)])
def test_classes_that_are_not_in_the_order_of_their_numbers_are_shown(tmp_path, caplog, names, warned):
    root = class_folders(tmp_path / 'train', names)
    with caplog.at_level('INFO', 'mae'):
        assert datasets.labelled_set(root, 'train', val_fraction=0).classes == names
        assert any(', '.join(names) in line for line in caplog.messages) == warned
        caplog.clear()
        given = datasets.labelled_set(root, 'train', classes=names[::-1], val_fraction=0)
        assert not any('--class_names' in line for line in caplog.messages)
    assert given.classes == names[::-1] and given.labels.tolist() == list(range(len(names)))[::-1]


def test_class_that_is_named_twice_is_an_error_where_it_occurs(tmp_path):
    root = class_folders(tmp_path / 'val', ['cat', 'dog'])
    assert datasets.labelled_set(root, 'val', classes=['cow', 'dog', 'cat', 'cow']).labels.tolist() == [2, 1]
    with pytest.raises(UserError, match="'dog'.* twice"):
        datasets.labelled_set(root, 'val', classes=['cat', 'dog', 'dog'])


def test_spellings_of_a_class_in_nfc_and_nfd_are_the_same_class(tmp_path):
    composed, decomposed = 'caf\u00e9', 'cafe\u0301'
    root = class_folders(tmp_path / 'train', [composed, decomposed, 'tea'])
    class_folders(tmp_path / 'val', [decomposed])
    train = datasets.labelled_set(root, 'train')
    assert train.classes == [composed, 'tea'] and train.labels.tolist() == [0, 0, 1]
    for classes in ([composed, 'tea'], [decomposed, 'tea']):
        assert datasets.labelled_set(root, 'val', classes=classes).labels.tolist() == [0]


def test_images_folder_without_classes_points_to_a_csv_file(tmp_path):
    """As val/images of tiny-imagenet."""
    root = class_folders(tmp_path / 'train', ['cat', 'dog'])
    class_folders(tmp_path / 'val', ['images'])
    with pytest.raises(UserError, match=r'^--data_path: .*/val has no class folders.*/val\.csv'):
        datasets.labelled_set(root, 'val', classes=['cat', 'dog'])
    (tmp_path / 'val.csv').write_text('val/images/x.png,dog\n')
    assert datasets.labelled_set(root, 'val', classes=['cat', 'dog']).labels.tolist() == [1]


def test_pretraining_logs_ignored_siblings_of_train_and_splits_of_other_names(tmp_path, caplog):
    class_folders(tmp_path / 'a', ['train2017', 'val2017'])
    class_folders(tmp_path / 'b', ['train/deep/deeper', 'val', 'other'])
    with caplog.at_level('INFO', 'mae'):
        assert [len(datasets.pretraining_set(str(tmp_path / name))) for name in 'ab'] == [2, 1]
    assert 'val2017' in caplog.text and ': other\n' in caplog.text


def range_line(caplog, function, *args, **options):
    """(result of a function, its log line of the value range, whether it warned of constant images)."""
    caplog.clear()
    with caplog.at_level('INFO', 'mae'):
        result = function(*args, **options)
    return (result, [line for line in caplog.messages if line.startswith('value range: ')],
            any('nearly constant' in line for line in caplog.messages))


def test_range_of_integers_is_that_of_the_dataset_and_logged(tmp_path, caplog):
    """12 bits in 16-bit files; a dark image stays dark."""
    for i, white in enumerate((4000, 500, 3000)):
        pixels = np.linspace(0, white, 64).reshape(8, 8).astype(np.uint16)
        Image.fromarray(pixels).save(str(tmp_path / '{}.png'.format(i)))
    for function in (datasets.pretraining_set, lambda path: datasets.InputImages([path], None).datasets[0],
                     lambda path: datasets.InputImages(sorted(map(str, tmp_path.glob('*.png'))), None).datasets[0]):
        found, lines, constant = range_line(caplog, function, str(tmp_path))
        brightest = [int(found[i][0].resized_crop(0, 0, 8, 8, (8, 8)).max()) for i in range(3)]
        assert brightest == [round(255 * white / 4095) for white in (4000, 500, 3000)]
        assert len(lines) == 1 and '4095' in lines[0] and not constant


@pytest.mark.parametrize('kind, low, high', [(np.int32, -1000, 65535), (np.float32, -1, 1)])
def test_range_of_images_with_other_values_is_their_own_and_logged(tmp_path, caplog, kind, low, high):
    Image.fromarray(np.linspace(low, high, 64).reshape(8, 8).astype(kind)).save(str(tmp_path / 'x.tif'))
    found, lines, constant = range_line(caplog, datasets.pretraining_set, str(tmp_path))
    pixels = found[0][0].resized_crop(0, 0, 8, 8, (8, 8))
    assert (int(pixels.min()), int(pixels.max()), len(lines), constant) == (0, 255, 1, False) and found.white == 0


def test_range_of_validation_images_is_that_of_the_training_images(tmp_path):
    for split, white in (('train', 4000), ('val', 900)):
        (tmp_path / split / 'cat').mkdir(parents=True)
        pixels = np.linspace(0, white, 64).reshape(8, 8).astype(np.uint16)
        Image.fromarray(pixels).save(str(tmp_path / split / 'cat' / 'x.png'))
    assert [datasets.labelled_set(str(tmp_path), split).white for split in ('train', 'val')] == [4095, 4095]
    (tmp_path / 'train').rename(tmp_path / 'other')
    assert datasets.labelled_set(str(tmp_path), 'val').white == 1023


@pytest.mark.parametrize('kind, level, constant', [(np.uint8, 15, True), (np.uint8, 99, False), (np.int32, 255, False)])
def test_nearly_constant_images_are_warned_of(tmp_path, caplog, kind, level, constant):
    for i in range(3):
        pixels = np.linspace(0, level, 64).reshape(8, 8).astype(kind)
        Image.fromarray(pixels).save(str(tmp_path / '{}.tif'.format(i)))
    assert range_line(caplog, datasets.pretraining_set, str(tmp_path))[2] == constant
