"""main_predict.py: predictions as text or JSON lines."""
import json
import re
import shutil
import sys

import pytest
import torch
from conftest import NANO, ROOT, execute

import main_finetune
import main_predict
from util.checkpoints import load_model, pth_file
from util.config.inference_flags import parse_predict
from util.config.train_flags import parse_finetune
from util.data import transforms
from util.devices.accelerator import Cpu
from util.distributed.world import World
from util.errors import UserError
from util.tools import inference
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


def test_an_earlier_output_is_set_aside_unless_no_image_can_be_read(images, nameless, tmp_path):
    (tmp_path / 'out.jsonl').write_text('earlier')
    (tmp_path / 'b.jpg').write_bytes(b'')
    with pytest.raises(UserError, match='none of the 1 '):
        predict('--resume', nameless, '--output', tmp_path / 'out.jsonl', tmp_path / 'b.jpg')
    assert len(list(tmp_path.iterdir())) == 2
    predict('--resume', nameless, '--output', tmp_path / 'out.jsonl', next(images.glob('val/*/*')))
    kept, = tmp_path.glob('out.*-*.jsonl')
    assert kept.read_text() == 'earlier' and len(objects(tmp_path / 'out.jsonl')) == 1


def test_an_output_that_cannot_be_written_is_one_line(images, nameless):
    with pytest.raises(UserError, match='/proc/x: '):
        predict('--resume', nameless, '--output', '/proc/x', next(images.glob('val/*/*')))


def test_the_lines_below_an_image_have_the_class_names_of_a_file(images, nameless, tmp_path, capfd):
    (tmp_path / 'names.txt').write_text('\n'.join('kind {}'.format(i) for i in range(8)) + '\n')
    predict('--resume', nameless, '--class_names', tmp_path / 'names.txt', '--top', 2, images / 'val')
    lines = capfd.readouterr().out.splitlines()
    assert lines[::3] == sorted(map(str, images.glob('val/*/*'))) and len(lines) == 3 * 19
    assert all(re.match(r' +\d+\.\d%  kind [0-7]$', line) for line in lines[1::3] + lines[2::3])


@pytest.mark.parametrize('flags, message', [
    (['--class_names', 'two.txt'], '--class_names two.txt: '), (['--class_names', 'no'], '--class_names no: '),
    (['--input_size', '30'], '--input_size: 30 '), (['missing.jpg'], 'missing.jpg: ')])
def test_a_user_error_names_its_flag_or_file(images, nameless, tmp_path, monkeypatch, flags, message):
    (tmp_path / 'two.txt').write_text('a\nb\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        predict('--resume', nameless, next(images.glob('val/*/*')), *flags)


@pytest.mark.parametrize('flag, value', [
    ('--top', '0'), ('--resume', 'no')])
def test_a_bad_value_gets_one_line_that_names_the_flag(nameless, capsys, flag, value):
    with pytest.raises(SystemExit) as ended:
        parse_predict(['--resume', str(nameless), 'x.jpg', flag, value])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count('\n') == 1 and 'argument ' + flag in error


def test_a_pretraining_checkpoint_is_refused(images, pretrained):
    with pytest.raises(UserError, match='fine-tune it first'):
        predict('--resume', pretrained / 'checkpoint-0.pth', images / 'val')


def test_amp_reaches_the_forward_pass(named, monkeypatch):
    asked, choose = [], inference.choose_precision
    monkeypatch.setattr(inference, 'choose_precision', lambda *args: asked.append(args[1]) or choose(*args))
    inference.Inference(load_model.load_classifier(str(named)), 'cpu', amp=True)
    assert asked == [True]


def test_unnamed_classes_are_numbers(named):
    loaded = load_model.load_classifier(str(named))._replace(classes=['a', 'b'])
    assert main_predict.class_names(loaded, '') == ['a', 'b', 2, 3, 4, 5, 6, 7]


@pytest.mark.slow
@pytest.mark.parametrize('rest, status, message', [
    ('--batch_size 1 | head -n 1', 0, '"probabilities"'),
    ('> /dev/full', 2, 'error: /dev/stdout: cannot be written')])
def test_a_closed_pipe_is_quiet_and_a_full_disk_one_line(images, nameless, rest, status, message):
    command = '"{}" "{}" --device cpu --num_workers 0 --resume "{}" --json "{}" '.format(
        sys.executable, ROOT / 'main_predict.py', nameless, images)
    run = execute(['bash', '-o', 'pipefail', '-c', command + rest])
    hint, line = sorted(run.output.splitlines(), key=lambda text: message in text)
    assert run.status == status and message in line and '--class_names' in hint
