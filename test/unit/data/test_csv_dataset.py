"""CSV files of path,label: accepted syntax and rejected rows."""
import os

import pytest

from util.data.datasets import labelled_set, pretraining_set
from util.errors import UserError

FILES = ['a.jpg', 'b.jpg', 'sub/c, d.jpg', 'sub/\u6c49.jpg']


@pytest.fixture
def folder(images, tmp_path):
    """A folder with FILES."""
    image = next(images.glob('train/*/*.jpg')).read_bytes()
    (tmp_path / 'sub').mkdir()
    for name in FILES:
        (tmp_path / name).write_bytes(image)
    return tmp_path


def write(folder, text, name='x.csv'):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder / name)


def pairs(path):
    """[(path relative to the folder, class name)] of a CSV file, without a validation split."""
    found = labelled_set(path, 'train', val_fraction=0)
    return [(os.path.relpath(found.name_of(i), os.path.dirname(path)), found.classes[found[i][1]])
            for i in range(len(found))]


@pytest.mark.parametrize('text', [
    'a.jpg,cat\nsub/\u6c49.jpg,dog\n', '\ufeffPath, label\r\na.jpg,cat\r\n\r\nsub/\u6c49.jpg, dog',
    '\n\npath,label\n\na.jpg,cat\n"a.jpg","cat"\nsub/../sub/\u6c49.jpg,dog\n'])
def test_header_quotes_and_byte_order_mark_are_optional(folder, text):
    assert pairs(write(folder, text)) == [('a.jpg', 'cat'), ('sub/\u6c49.jpg', 'dog')]


def test_quoted_commas_and_undecodable_file_names(folder):
    assert pairs(write(folder, '"sub/c, d.jpg","cat, grey"\nb.jpg,"the ""dog"""\n')) == [
        ('sub/c, d.jpg', 'cat, grey'), ('b.jpg', 'the "dog"')]
    name = os.fsdecode(b'\xff.jpg')
    os.rename(str(folder / 'a.jpg'), str(folder / name))
    assert pairs(write(folder, b'\xff.jpg,\xfe\nb.jpg,x\n')) == [(name, os.fsdecode(b'\xfe')), ('b.jpg', 'x')]


def test_numeric_classes_are_sorted_by_value(folder):
    assert labelled_set(write(folder, 'a.jpg,10\nb.jpg,9\n'), 'train', val_fraction=0).classes == ['9', '10']
    assert labelled_set(write(folder, 'a.jpg,10\nb.jpg,9a\n'), 'train', val_fraction=0).classes == ['10', '9a']


def test_csv_labels_a_train_folder_without_class_folders(folder):
    (folder / 'sub').rename(folder / 'train')
    write(folder, 'path,label\ntrain/\u6c49.jpg,dog\n"train/c, d.jpg",cat\n', 'train.csv')
    write(folder, 'path\na.jpg\n', 'test.csv')
    assert labelled_set(str(folder), 'train', val_fraction=0).classes == ['cat', 'dog']
    with pytest.raises(UserError, match='val is missing'):       # test.csv has no classes
        labelled_set(str(folder), 'val', val_fraction=0)


def test_pretraining_needs_paths_only(folder):
    assert len(pretraining_set(write(folder, 'path\na.jpg\nb.jpg\n'))) == 2
    with pytest.raises(UserError, match='x.csv'):
        labelled_set(str(folder / 'x.csv'), 'train')


@pytest.mark.parametrize('text, named', [
    ('a.jpg,cat\nno.jpg,dog\nb.jpg,dog\n', r'/no\.jpg is missing'), ('file,class\na.jpg,cat\n', '/file is missing'),
    ('a.jpg;cat\n', 'line 1'), ('path,label\na.jpg,cat\nb.jpg,\n', 'line 3'), ('a.jpg,cat\n\n"b.jpg,dog\n', 'line 3'),
    ('a.jpg,cat\nb.jpg,dog\na.jpg,dog\n', "line 3: 'a.jpg'"), ('\n\n', 'lists no images'),
    ('path,label\na.jpg,cat\n'.encode('utf-16'), ''), ('a.jpg,cat\n"' + 'x' * 140000 + '",dog\n', 'line 2')])
def test_bad_row_is_reported_by_line(folder, text, named):
    with pytest.raises(UserError, match='^--data_path: .*x.csv.*' + named):
        labelled_set(write(folder, text), 'train')
