"""Feature extraction to .npy files: correct values and order, atomically written."""
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from util.checkpoints import load_model
from util.errors import UserError
from util.models import features
from util.tools import extract_features, inference


def extract(*flags):
    """python -m util.tools.extract_features, in this process."""
    extract_features.main(['--device', 'cpu', '--num_workers', '0', *[str(flag) for flag in flags]])


def expected(folder, path, function):
    """Outputs of a function of (model, imgs) for all images of a folder as one batch."""
    loaded = inference.Inference(load_model.load_any(str(path)), 'cpu')
    (_, found), = loaded.run(loaded.dataset([str(folder)]), function, 100, 0)
    return found.numpy()


def test_pooled_features_names_and_labels_of_the_readable_images_are_written(images, pretrained, tmp_path, capsys):
    shutil.copytree(str(images / 'val'), str(tmp_path / 'val'))
    paths = sorted(tmp_path.glob('val/*/*'))
    bad = paths.pop(4)
    bad.write_bytes(b'')
    flags = '--resume', pretrained / 'checkpoint-0.pth', '--output', tmp_path / 'f', '--batch_size', 8
    extract(*flags, tmp_path / 'val')
    found = np.load(str(tmp_path / 'f' / 'features.npy'), mmap_mode='r')
    assert found.dtype == np.float32 and found.shape == (18, 128)
    assert np.allclose(found, expected(tmp_path / 'val', pretrained / 'checkpoint-0.pth', features.pooled), atol=1e-4)
    assert (tmp_path / 'f' / 'files.txt').read_text().splitlines() == [str(path) for path in paths]
    classes = (tmp_path / 'f' / 'classes.txt').read_text().splitlines()
    labels = np.load(str(tmp_path / 'f' / 'labels.npy'))
    assert labels.dtype == np.int64 and [classes[i] for i in labels] == [path.parent.name for path in paths]
    about = json.loads((tmp_path / 'f' / 'features.json').read_text())
    assert (about['images'], about['pool'], about['input_size'], about['unreadable']) == (18, 'mean', 32, 1)
    assert (tmp_path / 'f' / 'bad_images.txt').read_text() == '{}\tan empty file\n'.format(bad)
    assert str(bad) in capsys.readouterr().err


def test_each_block_has_a_file_and_pool_and_dtype_apply(images, pretrained, tmp_path):
    flags = '--resume', pretrained / 'checkpoint-0.pth', images / 'val', '--pool', 'cls', '--dtype', 'float16'
    extract(*flags, '--output', tmp_path / 'f', '--blocks', 6, 2)
    for number in (2, 6):
        found = np.load(str(tmp_path / 'f' / 'block-{}.npy'.format(number)))
        tokens = expected(images / 'val', pretrained / 'checkpoint-0.pth',
                          lambda net, imgs, n=number: list(features.block_outputs(net, imgs))[n - 1])
        assert found.dtype == np.float16 and np.array_equal(found, tokens[:, 0].astype(np.float16))
    assert not (tmp_path / 'f' / 'features.npy').exists()
    extract(*flags, '--output', tmp_path / 'all', '--blocks', 'all')
    assert len(list((tmp_path / 'all').glob('block-*.npy'))) == 6
    with pytest.raises(UserError, match='--blocks 7: the model has 6 blocks'):
        extract(*flags, '--output', tmp_path / 'none', '--blocks', 7)
    assert not (tmp_path / 'none').exists()


def test_without_a_readable_image_nothing_is_written(pretrained, tmp_path):
    (tmp_path / 'broken.jpg').write_bytes(b'')
    with pytest.raises(UserError, match='none of the 1 images'):
        extract('--resume', pretrained / 'checkpoint-0.pth', '--output', tmp_path / 'f', tmp_path / 'broken.jpg')
    assert os.listdir(str(tmp_path)) == ['broken.jpg']


def test_a_float16_overflow_is_an_error(tmp_path):
    images = SimpleNamespace(classes=None, name_of='image {}.jpg'.format)
    with pytest.raises(UserError, match='--dtype float16: .*image 0.jpg'):
        extract_features.write(str(tmp_path), ['features'], [([0], [torch.tensor([[1e5, 0.]])])], images, 'float16', 2)
