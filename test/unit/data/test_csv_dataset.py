"""CSV files of path,label: what they may look like, and what is refused."""
import os

import pytest

from util.data import file_index
from util.data.datasets import labelled_set, pretraining_set
from util.errors import UserError

FILES = ['a.jpg', 'b.jpg', 'sub/c, d.jpg', 'sub/\u6c49.jpg']


@pytest.fixture
def folder(images, tmp_path):
    """A folder with FILES."""
    picture = next(images.glob('train/*/*.jpg')).read_bytes()
    (tmp_path / 'sub').mkdir()
    for name in FILES:
        (tmp_path / name).write_bytes(picture)
    return tmp_path


def write(folder, text, name='x.csv'):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder / name)


def pairs(path):
    """[(path below the folder, class name)] of a CSV file, without a validation part."""
    found = labelled_set(path, 'train', val_fraction=0)
    return [(os.path.relpath(found.name_of(i), os.path.dirname(path)), found.classes[found[i][1]])
            for i in range(len(found))]


@pytest.mark.parametrize('text', [
    'a.jpg,cat\nsub/\u6c49.jpg,dog\n', '\ufeffPath, label\r\na.jpg,cat\r\n\r\nsub/\u6c49.jpg, dog',
    '\n\npath,label\n\na.jpg,cat\n"a.jpg","cat"\nsub/../sub/\u6c49.jpg,dog\n'])
def test_a_file_is_read_with_or_without_a_header_quotes_and_marks(folder, text):
    assert pairs(write(folder, text)) == [('a.jpg', 'cat'), ('sub/\u6c49.jpg', 'dog')]


def test_quotes_keep_commas_and_bytes_that_are_no_text_name_files_too(folder):
    assert pairs(write(folder, '"sub/c, d.jpg","cat, grey"\nb.jpg,"the ""dog"""\n')) == [
        ('sub/c, d.jpg', 'cat, grey'), ('b.jpg', 'the "dog"')]
    name = os.fsdecode(b'\xff.jpg')
    os.rename(str(folder / 'a.jpg'), str(folder / name))
    assert pairs(write(folder, b'\xff.jpg,\xfe\nb.jpg,x\n')) == [(name, os.fsdecode(b'\xfe')), ('b.jpg', 'x')]


def test_numbers_are_ordered_by_their_value_and_names_by_their_letters(folder):
    assert labelled_set(write(folder, 'a.jpg,10\nb.jpg,9\n'), 'train', val_fraction=0).classes == ['9', '10']
    assert labelled_set(write(folder, 'a.jpg,10\nb.jpg,9a\n'), 'train', val_fraction=0).classes == ['10', '9a']


def test_a_table_names_the_classes_of_images_that_lie_flat_in_train(folder):
    (folder / 'sub').rename(folder / 'train')
    write(folder, 'path,label\ntrain/\u6c49.jpg,dog\n"train/c, d.jpg",cat\n', 'train.csv')
    write(folder, 'path\na.jpg\n', 'test.csv')
    assert labelled_set(str(folder), 'train', val_fraction=0).classes == ['cat', 'dog']
    with pytest.raises(UserError, match='val is missing'):       # test.csv has no classes
        labelled_set(str(folder), 'val', val_fraction=0)


@pytest.mark.parametrize('text', ['a.jpg\nb.jpg\n', 'path\na.jpg\nb.jpg\n'])
def test_paths_alone_do_for_pretraining(folder, text):
    assert len(pretraining_set(write(folder, text))) == 2
    with pytest.raises(UserError, match='x.csv'):
        labelled_set(str(folder / 'x.csv'), 'train')


@pytest.mark.parametrize('text, named', [
    ('a.jpg,cat\nno.jpg,dog\nb.jpg,dog\n', r'/no\.jpg is missing'), ('file,class\na.jpg,cat\n', '/file is missing'),
    ('a.jpg;cat\n', 'line 1'), ('path,label\na.jpg,cat\nb.jpg\n', 'line 3'), ('a.jpg,1,2\n', 'line 1'),
    ('a.jpg,cat\nb.jpg,\n', 'line 2'), ('a.jpg,cat\n\n"b.jpg,dog\n', 'line 3'),
    ('a.jpg,cat\nb.jpg,dog\na.jpg,dog\n', "line 3: 'a.jpg'"), ('\n\n', 'lists no images'),
    ('a.jpg,cat\nb\0.jpg,dog\n', ''), ('path,label\na.jpg,cat\n'.encode('utf-16'), ''),
    ('a.jpg,cat\n"' + 'x' * 140000 + '",dog\n', 'line 2'), ('a.jpg,cat\n' + 'x' * 5000 + '.jpg,dog\n', 'is missing')])
def test_a_bad_row_is_named_by_its_line(folder, text, named):
    with pytest.raises(UserError, match='^--data_path: .*x.csv.*' + named):
        labelled_set(write(folder, text), 'train')


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(str(tmp_path / 'x.csv'))
    with pytest.raises(UserError, match='x.csv'):
        pretraining_set(str(tmp_path / 'x.csv'))


def test_of_a_huge_file_some_images_are_looked_for(folder, monkeypatch):
    monkeypatch.setattr(file_index, 'MAX_PATH_CHECKS', 2)
    looked = []
    monkeypatch.setattr(file_index.os.path, 'exists', lambda path: looked.append(path) or True)
    labelled_set(write(folder, ''.join('{}.jpg,a\n'.format(i) for i in range(100))), 'train')
    assert [path for path in looked if path.endswith('.jpg')] == [str(folder / '0.jpg'), str(folder / '51.jpg')]
