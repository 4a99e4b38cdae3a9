"""The images that a command line names."""
import shutil
import tarfile

import pytest
from test_datasets import cifar  # noqa: F401

from util.datasets import ImageSources
from util.errors import UserError
from util.images import UnreadableImage


def sources(*paths):
    return ImageSources([str(path) for path in paths], lambda picture: (picture.height, picture.width))


def names_and_classes(found):
    return [(found.name_of(i), found.classes[found.labels[i]]) for i in range(len(found))]


def test_the_images_of_a_folder_come_in_the_order_of_their_names_with_the_folder_as_class(images, tmp_path):
    paths = sorted(images.glob('val/*/*'))
    assert names_and_classes(sources(images / 'val')) == [(str(path), path.parent.name) for path in paths]
    shutil.copytree(str(images / 'val'), str(tmp_path / 'val'))
    shutil.copy(str(paths[0]), str(tmp_path / 'val' / 'x.jpg'))
    assert sources(tmp_path / 'val').classes is None        # one image has none


def test_files_and_folders_come_in_the_order_that_they_are_named_in(images, tmp_path):
    first, second, *_ = sorted(images.glob('train/*/*'))
    shutil.copy(str(first), str(tmp_path / 'odd name'))
    found = sources(second, tmp_path / 'odd name', images / 'val', first)
    named = [found.name_of(i) for i in (0, 1, 2, len(found) - 1)]
    assert len(found) == 22 and named[:2] + named[3:] == [str(second), str(tmp_path / 'odd name'), str(first)]
    assert found[1] == ((64, 64), 1) and found[21][1] == 21
    assert found.classes is None        # a file has none


def test_tar_files_hold_images_and_classes(images, tmp_path):
    paths = sorted(images.glob('val/*/*'))
    with tarfile.open(str(tmp_path / 'a.tar'), 'w') as tar:
        for path in paths:
            tar.add(str(path), str(path.relative_to(images / 'val')))
    expected = [(str(tmp_path / 'a.tar' / path.relative_to(images / 'val')), path.parent.name) for path in paths]
    assert names_and_classes(sources(tmp_path)) == expected
    with tarfile.open(str(tmp_path / 'b.tar'), 'w') as tar:
        tar.add(str(paths[0]), 'x.jpg')
    assert len(sources(tmp_path)) == 20 and sources(tmp_path).classes is None


def test_train_and_val_are_no_classes_in_a_folder_and_packed(images, tmp_path):
    for split in ('train', 'val'):
        (tmp_path / split).mkdir()
        with tarfile.open(str(tmp_path / split / 'a.tar'), 'w') as tar:
            tar.add(str(images / split), '')
    for folder in (images, tmp_path):
        assert len(sources(folder)) == 32 + 19 and len(sources(folder).classes) == 8


def test_cifar_batches_are_named_alone_or_by_their_folder(cifar):  # noqa: F811
    alone, all_of_them = sources(cifar / 'test_batch'), sources(cifar.parent)
    assert alone.name_of(1) == str(cifar / 'test_batch') + ':1' and alone[1] == ((32, 32), 1)
    assert len(alone) == 6 and names_and_classes(all_of_them)[30:] == names_and_classes(alone)


def test_a_csv_file_stands_for_the_images_that_it_lists(images, tmp_path):
    paths = sorted(images.glob('val/*/*'))[:2]
    (tmp_path / 'x.csv').write_text('path,label\n{},cat\n{},dog\n'.format(*paths))
    assert names_and_classes(sources(tmp_path / 'x.csv')) == [(str(paths[0]), 'cat'), (str(paths[1]), 'dog')]
    (tmp_path / 'x.csv').write_text('{}\n'.format(paths[1]))
    assert sources(tmp_path / 'x.csv').classes is None


def test_a_damaged_file_is_an_unreadable_image_and_a_missing_one_a_mistake(tmp_path):
    (tmp_path / 'x.jpg').write_bytes(b'no image')
    with pytest.raises(UnreadableImage):
        sources(tmp_path / 'x.jpg')[0]
    with pytest.raises(UserError, match='y.jpg'):
        sources(tmp_path / 'x.jpg', tmp_path / 'y.jpg')
