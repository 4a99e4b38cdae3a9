"""Features in .npy files: the right numbers in the right rows, whole or not at all."""
import json
import os
import shutil

import numpy as np
import pytest
import torch

from util import encoder, extract_features, inference, trained
from util.errors import UserError
from util.extract_features import HEADER, growing_array


def extract(*flags):
    """python -m util.extract_features, in this process."""
    extract_features.main(['--device', 'cpu', '--num_workers', '0', *[str(flag) for flag in flags]])


@pytest.fixture
def model(pretrained):
    return trained.load_either(str(pretrained / 'checkpoint-0.pth'))


def expected(model, folder, function):
    """What a function makes of all images of a folder at once."""
    at_work = inference.Inference(model, 'cpu')
    (_, found), = at_work.over(at_work.images([str(folder)]), function, 100, 0)
    return found.numpy()


def test_features_are_the_pooled_ones_of_the_encoder_beside_names_and_labels(images, pretrained, model, tmp_path):
    extract('--resume', pretrained / 'checkpoint-0.pth', '--output', tmp_path / 'f', '--batch_size', 8, images / 'val')
    paths = sorted(images.glob('val/*/*'))
    found = np.load(str(tmp_path / 'f' / 'features.npy'), mmap_mode='r')
    assert found.dtype == np.float32 and found.shape == (19, 128)
    assert np.allclose(found, expected(model, images / 'val', encoder.pooled), atol=1e-4)
    assert (tmp_path / 'f' / 'files.txt').read_text().splitlines() == [str(path) for path in paths]
    classes = (tmp_path / 'f' / 'classes.txt').read_text().splitlines()
    labels = np.load(str(tmp_path / 'f' / 'labels.npy'))
    assert labels.dtype == np.int64 and [classes[i] for i in labels] == [path.parent.name for path in paths]
    about = json.loads((tmp_path / 'f' / 'features.json').read_text())
    assert (about['images'], about['pool'], about['input_size'], about['unreadable']) == (19, 'mean', 32, 0)


def test_blocks_have_a_file_each_and_pool_and_dtype_are_taken(images, pretrained, model, tmp_path):
    extract('--resume', pretrained / 'checkpoint-0.pth', '--output', tmp_path / 'f', images / 'val', '--pool', 'cls',
            '--dtype', 'float16', '--blocks', 6, 2)
    for number in (2, 6):
        found = np.load(str(tmp_path / 'f' / 'block-{}.npy'.format(number)))
        tokens = expected(model, images / 'val',
                          lambda net, imgs, n=number: list(encoder.block_outputs(net, imgs))[n - 1])
        assert found.dtype == np.float16 and np.array_equal(found, tokens[:, 0].astype(np.float16))
    assert not (tmp_path / 'f' / 'features.npy').exists()


def test_all_blocks_are_all(model):
    assert extract_features.choose_blocks(['all'], 3) == [1, 2, 3]
    features = extract_features.features_of(model.model, torch.randn(2, 3, 32, 32), 'mean', [1, 2, 3, 4, 5, 6])
    assert len(features) == 6 and all(one.shape == (2, 128) for one in features)


def test_unreadable_images_are_in_no_row_and_listed(images, pretrained, tmp_path, capsys):
    shutil.copytree(str(images / 'val'), str(tmp_path / 'val'))
    bad = sorted(tmp_path.glob('val/*/*'))[4]
    bad.write_bytes(b'')
    extract('--resume', pretrained / 'checkpoint-0.pth', '--output', tmp_path / 'f', tmp_path / 'val')
    assert len(np.load(str(tmp_path / 'f' / 'features.npy'))) == len(np.load(str(tmp_path / 'f' / 'labels.npy'))) == 18
    names = (tmp_path / 'f' / 'files.txt').read_text().splitlines()
    assert len(names) == 18 and str(bad) not in names
    assert (tmp_path / 'f' / 'bad_images.txt').read_text() == '{}\tan empty file\n'.format(bad)
    assert '{}: cannot be read (an empty file)'.format(bad) in capsys.readouterr().err


def test_earlier_features_are_kept_and_a_folder_of_other_things_is_left_alone(images, pretrained, tmp_path, capsys):
    flags = '--resume', pretrained / 'checkpoint-0.pth', next(images.glob('val/*/*')), '--output', tmp_path / 'f'
    extract(*flags)
    extract(*flags)
    kept, = [path for path in tmp_path.iterdir() if path.name.startswith('f.')]
    assert 'earlier features kept in {}'.format(kept) in capsys.readouterr().err
    assert sorted(os.listdir(str(kept))) == sorted(os.listdir(str(tmp_path / 'f')))
    (tmp_path / 'f' / 'thesis.tex').write_text('x')
    with pytest.raises(UserError, match='holds thesis.tex'):
        extract(*flags)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_block_that_is_not_there_is_named(images, pretrained, tmp_path):
    with pytest.raises(UserError, match='--blocks 7: the model has 6 blocks'):
        extract('--resume', pretrained / 'checkpoint-0.pth', '--output', tmp_path / 'f', images / 'val', '--blocks', 7)
    assert not (tmp_path / 'f').exists()


def test_numbers_too_large_for_float16_are_refused():
    rows = torch.tensor([[1e5, 0.]])
    assert np.isfinite(extract_features._converted(rows, 'float32', 'x.jpg')).all()
    with pytest.raises(UserError, match='--dtype float16: .*x.jpg'):
        extract_features._converted(rows, 'float16', 'x.jpg')


@pytest.mark.parametrize('shape', [(), (5,)])
def test_an_array_that_grows_is_an_npy_file_like_others(tmp_path, shape):
    rows = np.random.RandomState(0).rand(7, *shape)
    with growing_array(str(tmp_path / 'x.npy'), shape, np.float64) as add:
        add(rows[:3])
        add(rows[3:])
        assert not (tmp_path / 'x.npy').exists()
    assert np.array_equal(np.load(str(tmp_path / 'x.npy')), rows)
    assert (tmp_path / 'x.npy').stat().st_size == HEADER + rows.nbytes
