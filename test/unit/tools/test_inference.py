"""Models on images: predictions as text or JSON lines, features as .npy files, reconstruction grids."""
import json
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import NANO, call, nano_mae
from PIL import Image

import main_predict
from util.checkpoints import load_model, pth_file
from util.config.inference_flags import predict_parser
from util.config.train_flags import parse_finetune
from util.data import transforms
from util.devices.accelerator import Cpu
from util.distributed.world import World
from util.errors import UserError
from util.models import features
from util.models.build import build_classifier
from util.models.reconstruction import reconstruct
from util.tools import extract_features, inference
from util.training.session import Session
from util.training.setup import build_evaluation_loader

# main_predict.py

def classifier(folder, classes, *flags):
    """The path of a checkpoint of random weights for 8 classes."""
    args = parse_finetune(['--model', 'vit_nano_patch16', *NANO, '--data_path', str(folder), *flags])
    torch.manual_seed(0)
    model = build_classifier(vars(args), classes=8)
    for parameter in model.head.parameters():       # so that classes differ
        torch.nn.init.normal_(parameter)
    state = {'model': model.state_dict(), 'args': vars(args)}
    pth_file.save(str(folder / 'x.pth'), {**state, 'classes': classes} if classes else state)
    return folder / 'x.pth'


@pytest.fixture(scope='module')
def named(images, tmp_path_factory):
    """A checkpoint with the class names of `images`."""
    names = sorted(folder.name for folder in (images / 'val').iterdir())
    return classifier(tmp_path_factory.mktemp('named'), names)


@pytest.fixture(scope='module')
def nameless(tmp_path_factory):
    return classifier(tmp_path_factory.mktemp('nameless'), None)


def predict(*flags):
    """python main_predict.py, in this process."""
    main_predict.main(predict_parser().parse_args(['--device', 'cpu', '--num_workers', '0', *map(str, flags)]))


@pytest.mark.compat
def test_probabilities_equal_those_of_an_evaluation_in_file_order(images, named, tmp_path):
    predict('--resume', named, images / 'val', '--batch_size', 8, '--output', tmp_path / 'p.jsonl', '--top', 3)
    found = [json.loads(line) for line in (tmp_path / 'p.jsonl').read_text().splitlines()]
    assert [one['file'] for one in found] == sorted(str(path) for path in images.glob('val/*/*'))
    args = parse_finetune(['--model', 'vit_nano_patch16', *NANO, '--data_path', str(images), '--batch_size', '19'])
    (pixels, _), = build_evaluation_loader(args, Session(Cpu(), World()))
    loaded = load_model.load_classifier(str(named))
    with torch.no_grad():
        shares, classes = loaded.model(transforms.Normalize()(pixels)).softmax(dim=1).topk(3, dim=1)
    assert [one['classes'] for one in found] == [[loaded.classes[i] for i in row] for row in classes]
    assert torch.allclose(torch.tensor([one['probabilities'] for one in found]), shares, atol=1e-4)


def test_json_goes_to_standard_output_and_unreadable_images_to_standard_error(images, nameless, tmp_path, capfd):
    shutil.copy(str(next(images.glob('val/*/*.jpg'))), str(tmp_path / '猫 a.jpg'))
    (tmp_path / 'b.jpg').write_bytes(b'no image')
    predict('--resume', nameless, '--json', '--top', 99, tmp_path)
    output, errors = capfd.readouterr()
    shown = json.loads(output)
    assert shown['file'] == str(tmp_path / '猫 a.jpg') and '猫' in output
    assert sorted(shown['classes']) == list(range(8)) and sum(shown['probabilities']) == pytest.approx(1, abs=1e-4)
    hint, named, counted = errors.splitlines()
    assert '--class_names' in hint and str(tmp_path / 'b.jpg') in named and '1 of 2' in counted


def test_the_lines_below_an_image_have_the_class_names_of_a_file(images, nameless, tmp_path, capfd):
    (tmp_path / 'names.txt').write_text('\n'.join('kind {}'.format(i) for i in range(8)) + '\n')
    predict('--resume', nameless, '--class_names', tmp_path / 'names.txt', '--top', 2, images / 'val')
    lines = capfd.readouterr().out.splitlines()
    assert lines[::3] == sorted(map(str, images.glob('val/*/*'))) and len(lines) == 3 * 19
    assert all(re.match(r' +\d+\.\d%  kind [0-7]$', line) for line in lines[1::3] + lines[2::3])


@pytest.mark.parametrize('flags, message', [
    (['--class_names', 'two.txt'], '--class_names two.txt: '), (['--input_size', '30'], '--input_size: 30 '),
    (['missing.jpg'], 'missing.jpg: ')])
def test_a_user_error_names_its_flag_or_file(images, nameless, tmp_path, monkeypatch, flags, message):
    (tmp_path / 'two.txt').write_text('a\nb\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        predict('--resume', nameless, next(images.glob('val/*/*')), *flags)


def test_a_pretraining_checkpoint_is_refused(images, pretrained):
    with pytest.raises(UserError, match='fine-tune it first'):
        predict('--resume', pretrained / 'checkpoint-0.pth', images / 'val')


def test_unnamed_classes_are_numbers(named):
    loaded = load_model.load_classifier(str(named))._replace(classes=['a', 'b'])
    assert main_predict.class_names(loaded, '') == ['a', 'b', 2, 3, 4, 5, 6, 7]


# Features

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


def test_pool_and_dtype_apply(images, pretrained, tmp_path):
    path = pretrained / 'checkpoint-0.pth'
    extract('--resume', path, '--output', tmp_path / 'f', images / 'val', '--pool', 'cls', '--dtype', 'float16')
    found = np.load(str(tmp_path / 'f' / 'features.npy'))
    rows = expected(images / 'val', path, lambda net, imgs: features.pooled(net, imgs, 'cls'))
    assert found.dtype == np.float16 and np.array_equal(found, rows.astype(np.float16))


def test_without_a_readable_image_nothing_is_written(pretrained, tmp_path):
    (tmp_path / 'broken.jpg').write_bytes(b'')
    with pytest.raises(UserError, match='none of the 1 images'):
        extract('--resume', pretrained / 'checkpoint-0.pth', '--output', tmp_path / 'f', tmp_path / 'broken.jpg')
    assert os.listdir(str(tmp_path)) == ['broken.jpg']


def test_a_float16_overflow_is_an_error(tmp_path):
    images = SimpleNamespace(classes=None, name_of='image {}.jpg'.format)
    with pytest.raises(UserError, match='--dtype float16: .*image 0.jpg'):
        extract_features.write(str(tmp_path), [([0], torch.tensor([[1e5, 0.]]))], images, 'float16', 2)


# Reconstructions

@pytest.mark.compat
def test_visible_patches_are_the_originals_and_masked_ones_grey():
    imgs = torch.randn(2, 3, 32, 32)
    masked, predicted, reconstructed = reconstruct(nano_mae().eval(), imgs, .75)
    shown = masked != 0
    assert shown.float().mean() == pytest.approx(.25)
    assert torch.equal(reconstructed[shown], imgs[shown])
    assert torch.equal(predicted[~shown], reconstructed[~shown])
    assert (predicted != imgs).float().mean() > .9


@pytest.mark.compat
def test_norm_pix_loss_predictions_are_denormalised_by_patch_statistics():
    net, imgs = nano_mae(norm_pix_loss=True).eval(), torch.randn(2, 3, 32, 32) * 5 + 3
    for parameter in net.decoder_pred.parameters():
        torch.nn.init.zeros_(parameter)
    _, _, reconstructed = reconstruct(net, imgs, .75)
    mean = net.patchify(imgs).mean(dim=-1, keepdim=True)
    patches = net.patchify(reconstructed)
    hidden = patches.var(dim=-1) < 1e-6
    assert hidden.float().mean() == pytest.approx(.75)
    assert torch.allclose(patches[hidden], mean.expand_as(patches)[hidden], atol=1e-4)


def test_images_of_any_type_are_reconstructed_and_unreadable_ones_skipped(images, pretrained, tmp_path):
    (tmp_path / 'broken.jpg').write_bytes(b'')
    for kind in (np.uint8, np.float32):
        np.save(str(tmp_path / (kind.__name__ + '.npy')), np.full((40, 40, 3), .5, np.float32).astype(kind))
    run = call('util.tools.visualize', '--resume', pretrained / 'checkpoint-0.pth', '--count', 22, '--output',
               tmp_path / 'x.png', images / 'val', *tmp_path.iterdir())
    with Image.open(str(tmp_path / 'x.png')) as picture:
        assert picture.size == (660, 17 + 21 * 164 - 4) and len(set(picture.tobytes())) > 50
    assert run.status == 0 and str(tmp_path / 'broken.jpg') in run.output


def test_a_classifier_checkpoint_is_refused(tmp_path, images):
    torch.save({'model': {}, 'args': {'model': 'vit_base_patch16'}}, str(tmp_path / 'x.pth'))
    run = call('util.tools.visualize', '--output', tmp_path / 'y.png', '--resume', tmp_path / 'x.pth', images)
    assert run.status == 2 and 'main_pretrain.py' in run.output and not (tmp_path / 'y.png').exists()
