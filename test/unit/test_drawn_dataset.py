"""The dataset that the program draws for itself."""
import sys

import numpy as np
from conftest import execute
from PIL import Image

from util import drawn_dataset


def pixels(class_name, count, seed=0):
    rng = np.random.RandomState(seed)
    return np.stack([np.asarray(drawn_dataset.draw(class_name, rng), dtype=np.float32) for _ in range(count)])


def test_classes_are_spread_evenly_over_jpeg_files(images):
    for split, expected in (('train', 32), ('val', 19)):
        counts = [len(list(folder.iterdir())) for folder in (images / split).iterdir()]
        assert sum(counts) == expected and len(counts) == 8 and max(counts) - min(counts) <= 1
    with Image.open(str(next(images.glob('train/*/*.jpg')))) as image:
        assert (image.format, image.size) == ('JPEG', (64, 64))
    train, val = ({path.read_bytes() for path in images.glob(split + '/*/*.jpg')} for split in ('train', 'val'))
    assert not train & val


def test_a_seed_gives_the_same_images_and_another_seed_others(images, tmp_path):
    drawn_dataset.write(str(tmp_path / 'again'), train=8, val=0, seed=0)
    drawn_dataset.write(str(tmp_path / 'other'), train=8, val=0, seed=1)
    for path in (tmp_path / 'again' / 'train').glob('*/*.jpg'):
        name = path.relative_to(tmp_path / 'again')
        assert path.read_bytes() == (images / name).read_bytes() != (tmp_path / 'other' / name).read_bytes()


def test_the_mean_colour_does_not_tell_the_class():
    """A classifier by the nearest mean colour of a class does no better than guessing, 1 in 8."""
    train = [pixels(name, 60, seed=i).mean(axis=(1, 2)) for i, name in enumerate(drawn_dataset.CLASSES)]
    test = [pixels(name, 40, seed=100 + i).mean(axis=(1, 2)) for i, name in enumerate(drawn_dataset.CLASSES)]
    centres = np.stack([colours.mean(axis=0) for colours in train])
    hits = [np.linalg.norm(colours[:, None] - centres[None], axis=2).argmin(axis=1) == label
            for label, colours in enumerate(test)]
    assert np.mean(hits) < .2


def test_textures_differ_in_how_many_directions_they_vary_along():
    checks, stripes = (np.stack([drawn_dataset._texture(name, 128, np.random.RandomState(i)) for i in range(8)])
                       for name in drawn_dataset.TEXTURES)
    for images, directions in ((checks, 2), (stripes, 1)):
        spectrum = np.abs(np.fft.fft2(images - images.mean(axis=(1, 2), keepdims=True)))
        strongest = spectrum.max(axis=(1, 2), keepdims=True)
        peaks = (spectrum > .6 * strongest).sum(axis=(1, 2)) / 2        # each wave has two peaks
        assert np.median(peaks) >= directions if directions == 2 else np.median(peaks) < 2


def test_a_mistake_is_one_line(tmp_path):
    (tmp_path / 'file').write_text('')
    for name in ('file', ''):           # a folder that holds something is left alone
        run = execute([sys.executable, '-m', 'util.drawn_dataset', tmp_path / name, '--train', 8])
        assert (run.status, run.output.count('\n')) == (2, 1) and str(tmp_path / name) in run.output
    assert [path.name for path in tmp_path.iterdir()] == ['file']
