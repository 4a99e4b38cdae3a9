"""Accuracy over the images that can be read."""
import json
import shutil
import sys

import pytest
import torch
from conftest import FINETUNE, ROOT, execute, finetune

import models_vit
from engine_finetune import evaluate
from util import datasets, precision, runtime
from util.device import Cpu
from util.distributed import World
from util.errors import UserError
from util.loader import evaluation_loader
from util.log import logger
from util.mistakes import Mistakes
from util.transforms import Normalize, evaluation_transform


@pytest.fixture
def folder(images, tmp_path):
    """A copy of the images, whose validation set may be damaged."""
    shutil.copytree(str(images), str(tmp_path / 'data'))
    return tmp_path / 'data'


def break_some(folder, every):
    """Damage each `every`th validation image; returns their paths."""
    broken = sorted(folder.glob('val/*/*.jpg'))[::every]
    for path in broken:
        path.write_bytes(b'no picture')
    return broken


def result_of(folder, batch_size=4, signal=''):
    torch.manual_seed(0)
    model = models_vit.vit_nano_patch16(img_size=32, patch_size=8, num_classes=8)
    dataset = datasets.labelled_set(str(folder), 'val', evaluation_transform(32))
    place = runtime.Runtime(Cpu(), World())
    place.stops.requested = signal
    loader = evaluation_loader(dataset, batch_size, World(), False, 0, True, Cpu())
    result = evaluate(model, loader, precision.FullPrecision(), place, Normalize(), Mistakes(dataset, Normalize()))
    return {name: value for name, value in result.items() if name != 'FPS'}


def test_an_evaluation_that_a_signal_cuts_short_tells_no_accuracy(images, monkeypatch):
    lines = []
    monkeypatch.setattr(logger, 'info', lambda text, *args: lines.append(text % args))
    assert result_of(images, signal='SIGTERM')['images'] == 0 and not lines


@pytest.mark.compat
@pytest.mark.parametrize('batch_size', [4, 1])      # 1: some batches have no readable image
def test_unreadable_images_are_left_out_and_counted(folder, monkeypatch, batch_size):
    broken, lines = break_some(folder, 3), []
    monkeypatch.setattr(logger, 'info', lambda text, *args: lines.append(text % args))
    result = result_of(folder, batch_size)
    assert (result['images'], result.pop('unreadable')) == (12, 7) and '7' in lines[-1].split('(')[-1]
    for path in broken:
        path.unlink()
    whole = result_of(folder)
    assert result == pytest.approx(whole) and 'unreadable' not in whole and '7' not in lines[-1].split('(')[-1]


def test_an_evaluation_without_a_readable_image_is_a_mistake(folder):
    break_some(folder, 1)
    with pytest.raises(UserError, match='none of the 19 validation images'):
        result_of(folder)


@pytest.mark.slow
def test_processes_with_unequal_numbers_of_readable_images_agree_on_the_accuracy(folder, tmp_path):
    trained = finetune('--data_path', folder, '--output_dir', tmp_path / 'o', '--epochs', 1)
    assert trained.status == 0, trained.output
    for path in sorted(folder.glob('val/*/*.jpg'))[1::2]:       # all that the second process reads
        path.write_bytes(b'no picture')
    flags = [ROOT / 'main_finetune.py', *FINETUNE, '--data_path', folder, '--eval', '--resume',
             tmp_path / 'o' / 'checkpoint-0.pth', '--batch_size', 2]
    one = execute([sys.executable, *flags, '--output_dir', tmp_path / 'one'])
    two = execute([sys.executable, ROOT / 'util' / 'launch.py', '--nproc', 2, *flags, '--dist_eval',
                   '--output_dir', tmp_path / 'two'])
    assert (one.status, two.status) == (0, 0), one.output + two.output
    results = [json.loads((tmp_path / name / 'eval.json').read_text()) for name in ('one', 'two')]
    assert [(result['images'], result['unreadable']) for result in results] == [(10, 9), (10, 9)]
    assert results[0]['acc1'] == pytest.approx(results[1]['acc1'])
    assert results[0]['loss'] == pytest.approx(results[1]['loss'], rel=1e-5)
