"""Images from paths on a command line."""
import shutil

from test_csv_and_tar import tar
from test_datasets import cifar  # noqa: F401

from util.data.datasets import InputImages


def inputs(*paths):
    return InputImages([str(path) for path in paths], lambda image: (image.height, image.width))


def names_and_classes(found):
    return [(found.name_of(i), found.classes[found.labels[i]]) for i in range(len(found))]


def test_paths_keep_their_order(images, tmp_path):
    first, second, *_ = sorted(images.glob('train/*/*'))
    shutil.copy(str(first), str(tmp_path / 'odd name'))
    found = inputs(second, tmp_path / 'odd name', images / 'val', first)
    assert [found.name_of(i) for i in (0, 1, 21)] == [str(second), str(tmp_path / 'odd name'), str(first)]
    assert found[1] == ((64, 64), 1) and found[21][1] == 21 == len(found) - 1
    assert found.classes is None        # a file has none


def test_folders_and_tar_files_have_classes_unless_an_image_has_none(images, tmp_path):
    paths = sorted(images.glob('val/*/*'))
    tar(tmp_path / 'a.tar', {str(path.relative_to(images / 'val')): path.read_bytes() for path in paths})
    for whole, folder in ((images / 'val', images / 'val'), (tmp_path, tmp_path / 'a.tar')):
        assert names_and_classes(inputs(whole)) == [
            (str(folder / path.relative_to(images / 'val')), path.parent.name) for path in paths]
    tar(tmp_path / 'b.tar', {'x.jpg': paths[0].read_bytes()})
    shutil.copytree(str(images / 'val'), str(tmp_path / 'plain' / 'val'))
    shutil.copy(str(paths[0]), str(tmp_path / 'plain' / 'val' / 'x.jpg'))
    for folder in (tmp_path, tmp_path / 'plain' / 'val'):
        assert len(inputs(folder)) == 20 and inputs(folder).classes is None


def test_train_and_val_are_not_classes(images, tmp_path):
    for split in ('train', 'val'):
        tar(tmp_path / split / 'a.tar', {str(path.relative_to(images / split)): path.read_bytes()
                                         for path in images.glob(split + '/*/*')})
    for folder in (images, tmp_path):
        assert len(inputs(folder)) == 32 + 19 and len(inputs(folder).classes) == 8


def test_cifar_folders_and_csv_files_expand_to_their_images(cifar, images, tmp_path):  # noqa: F811
    found = inputs(cifar.parent)
    assert len(found) == 36 and found[31] == ((32, 32), 31)
    assert names_and_classes(found)[31] == (str(cifar / 'test_batch') + ':1', 'automobile')
    paths = [str(path) for path in sorted(images.glob('val/*/*'))[:2]]
    (tmp_path / 'x.csv').write_text('{},cat\n{},dog\n'.format(*paths))
    assert names_and_classes(inputs(tmp_path / 'x.csv')) == [(paths[0], 'cat'), (paths[1], 'dog')]
    (tmp_path / 'x.csv').write_text(paths[1])
    assert inputs(tmp_path / 'x.csv').classes is None
