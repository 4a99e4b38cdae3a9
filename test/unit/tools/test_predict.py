"""main_predict.py: predictions as text or JSON lines."""
import json
import re
import shutil

import pytest
import torch
from conftest import NANO

import main_finetune
import main_predict
from util.checkpoints import load_model, pth_file
from util.config.inference_flags import parse_predict
from util.config.train_flags import parse_finetune
from util.data import transforms
from util.devices.accelerator import Cpu
from util.distributed.world import World
from util.errors import UserError
from util.training.session import Session
from util.training.setup import build_evaluation_loader


def classifier(folder, classes, *flags):
    """The path of a checkpoint of random weights for 8 classes."""
    args = parse_finetune(['--model', 'vit_nano_patch16', *NANO, '--data_path', str(folder), *flags])
    torch.manual_seed(0)
    model = main_finetune.build_model(args, classes=8)
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
    main_predict.main(parse_predict(['--device', 'cpu', '--num_workers', '0', *[str(flag) for flag in flags]]))


def objects(path):
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]


@pytest.mark.compat
def test_probabilities_equal_those_of_an_evaluation_in_file_order(images, named, tmp_path):
    predict('--resume', named, images / 'val', '--batch_size', 8, '--output', tmp_path / 'p.jsonl', '--top', 3)
    found = objects(tmp_path / 'p.jsonl')
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
