"""Validation split of datasets without their own: size, reproducibility, disjoint from training."""
import re
import shutil

import numpy as np
import pytest
from conftest import finetune, succeeded
from PIL import Image
from synthetic_dataset import CLASSES

from util.data.datasets import labelled_set, pretraining_set
from util.data.validation_split import resolve_split, validation_mask
from util.errors import UserError
from util.tools import pack_shards


@pytest.fixture(scope='module')
def folders(images, tmp_path_factory):
    """32 images in 8 class folders, without train/ and val/."""
    folder = tmp_path_factory.mktemp('own') / 'data'
    shutil.copytree(str(images / 'train'), str(folder))
    return folder


def names(dataset):
    return {dataset.name_of(i).split('/data/')[-1] for i in range(len(dataset))}


def split_sizes(counts, fraction, seed=0):
    """Size of the validation split of classes with `counts` images each."""
    labels = np.repeat(np.arange(len(counts)), counts)
    mask = validation_mask(labels, map(str, range(len(labels))), fraction, seed)
    return np.bincount(labels[mask], minlength=len(counts))


def test_each_class_contributes_its_fraction_at_least_one_and_never_all():
    assert split_sizes([100, 24, 25, 3, 2, 1], .1).tolist() == [10, 2, 3, 1, 1, 0]
    assert split_sizes([100, 3, 1], .9).tolist() == [90, 2, 0] and split_sizes([5, 1], 1).tolist() == [5, 1]


def test_split_depends_on_names_and_seed_and_is_nested_in_larger_fractions():
    labels, texts = np.arange(200) % 3, np.array(['x/{}.jpg'.format(i) for i in range(200)])
    order = np.random.RandomState(1).permutation(200)
    small, large = validation_mask(labels, texts, .1, 0), validation_mask(labels, texts, .4, 0)
    assert np.array_equal(small[order], validation_mask(labels[order], texts[order], .1, 0))
    assert not (small & ~large).any() and small.sum() == 21
    assert not np.array_equal(small, validation_mask(labels, texts, .1, 1))
    assert np.flatnonzero(small)[:5].tolist() == [7, 12, 16, 19, 30]     # on every machine


def test_split_is_the_same_for_packed_shrunk_and_csv_images(tmp_path):
    root, pixels = tmp_path / 'data', np.zeros((40, 48, 3), np.uint8)
    rows = {}
    for i in range(40):
        path = root / 'class.{}'.format(i % 2) / 'IMG.{:02d}.png'.format(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels + i).save(str(path))
        rows[i] = [path, '{},{}\n'.format(path, path.parent.name)]
    (root / 'absolute.csv').write_text(''.join(row for _, row in rows.values()))
    (root / 'relative.csv').write_text(''.join(row.replace(str(root), '.') for _, row in rows.values()))
    for name, flags in (('whole', []), ('shrunk', ['--short_side', '32'])):
        args = pack_shards.parse_flags([str(root), str(tmp_path / name), *flags, '--num_workers', '0'])
        assert pack_shards.pack(args, pack_shards.load_splits(args.source, args.short_side)) == 0
    sources = [root, root / 'absolute.csv', root / 'relative.csv', tmp_path / 'whole', tmp_path / 'shrunk']
    found = [labelled_set(str(source), 'val') for source in sources]
    numbers = [sorted(re.search(r'IMG.(\d+)', part.name_of(i)).group(1) for i in range(len(part))) for part in found]
    assert len(numbers[0]) == 4 and numbers == numbers[:1] * 5
    assert all(part.classes == ['class.0', 'class.1'] and part[i][1] == ('class.1' in part.name_of(i))
               for part in found for i in range(len(part)))


@pytest.mark.parametrize('inside', ['', 'train'])
def test_train_and_val_are_disjoint_and_complete(folders, tmp_path, inside):
    root = tmp_path / 'data'
    shutil.copytree(str(folders), str(root / inside))
    train, val = (labelled_set(str(root), split, val_fraction=.3) for split in ('train', 'val'))
    assert not names(train) & names(val) and len(train) == 24 and len(val) == 8
    assert names(train) | names(val) == {('train/' if inside else '') + str(path.relative_to(folders))
                                         for path in folders.glob('*/*.jpg')}
    assert train.classes == val.classes == sorted(CLASSES) and set(val.labels) == set(range(8))
    assert names(pretraining_set(str(root), None, .3, 0)) == names(train) and len(pretraining_set(str(root))) == 32
    for part in (train, val):
        assert all(part.classes[part[i][1]] in part.name_of(i) for i in range(len(part)))


def test_val_folder_is_used_and_test_folder_without_classes_is_not(images, folders, tmp_path):
    assert len(labelled_set(str(images), 'train', val_fraction=.5)) == 32
    assert len(labelled_set(str(images), 'val', val_fraction=.5)) == 19
    shutil.copytree(str(folders), str(tmp_path / 'data' / 'train'))
    shutil.copytree(str(images / 'val' / 'star_checks'), str(tmp_path / 'data' / 'test'))
    assert len(labelled_set(str(tmp_path / 'data'), 'val')) == 8


@pytest.mark.parametrize('made, words', [
    (['Train/a', 'Val/a'], 'Train'), (['x/test/a'], '/x '), (['val/a'], '/train is missing')])
def test_split_folders_are_not_taken_for_classes(images, tmp_path, made, words):
    for name in made:
        shutil.copytree(str(images / 'val' / 'star_checks'), str(tmp_path / name))
    with pytest.raises(UserError, match='^--data_path: .*' + words):
        labelled_set(str(tmp_path), 'train')


@pytest.mark.parametrize('flags, trained, expected, warned', [
    ((None, None), None, (.1, 0), False), ((.2, None), (.3, 5), (.2, 5), False), ((.4, 6), (.3, 5), (.4, 6), True)])
def test_split_flags_default_to_the_checkpoints_and_overlap_is_warned_of(flags, trained, expected, warned, caplog):
    saved = trained and dict(zip(('val_fraction', 'val_seed'), trained))
    assert resolve_split(*flags, False, False, saved) == expected
    assert bool(caplog.messages) == warned
    caplog.clear()
    assert resolve_split(*flags, True, False, saved) == (0., 0)        # the dataset has its own
    assert bool(caplog.messages) == bool(flags[0])
    assert resolve_split(None, None, False, True, None) == (0., 0)         # --eval of a checkpoint without a split


@pytest.mark.slow
def test_evaluation_uses_the_split_of_the_training(folders, tmp_path):
    succeeded(finetune('--data_path', folders, '--output_dir', tmp_path / 'o', '--epochs', 1, '--val_fraction', .5,
                       '--val_seed', 7))
    run = finetune('--data_path', folders, '--output_dir', tmp_path / 'e', '--eval', '--resume',
                   tmp_path / 'o' / 'checkpoint-0.pth')
    assert 'using 16 of its 32 images (--val_fraction 0.5, --val_seed 7)' in run.output, run.output
