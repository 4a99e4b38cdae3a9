"""Warnings at the head of a run: each where it is due, and none elsewhere."""
import shutil
from argparse import Namespace

import pytest
import torch
from conftest import finetune

from util import runtime as runtimes
from util.distributed import World
from util.drawn_dataset import CLASSES


@pytest.mark.parametrize('epochs, warmup, batch, named', [
    (400, 40, 1000, ''), (1, 40, 1000, ''), (10, 10, 1000, '--warmup_epochs 10'), (10, 40, 1000, '--warmup_epochs 40'),
    (10, 1, 1001, '--accum_iter')])
def test_a_warm_up_of_all_epochs_and_a_batch_of_more_than_all_images_get_a_line(caplog, epochs, warmup, batch, named):
    caplog.set_level('INFO', 'mae')
    args = Namespace(epochs=epochs, warmup_epochs=warmup, lr=None, blr=.1, batch_size=batch, accum_iter=1,
                     base_batch_size=None)
    runtimes.describe_training(args, World(), range(1000), torch.nn.Linear(1, 1))
    warnings = [line for line in caplog.messages if line.startswith('warning: ')]
    assert len(warnings) == bool(named) and all(named in line for line in warnings)


def test_warnings_of_training_and_evaluation_stand_at_the_head_of_the_log(images, tmp_path):
    for name in (CLASSES[:2]):
        shutil.copytree(str(images / 'train' / name), str(tmp_path / 'data' / 'train' / name))
    shutil.copytree(str(images / 'val' / CLASSES[0]), str(tmp_path / 'data' / 'val' / CLASSES[0]))
    flags = ['--data_path', tmp_path / 'data', '--output_dir', tmp_path / 'o', '--epochs', 2, '--warmup_epochs', 2,
             '--batch_size', 2, '--accum_iter', 8]
    run = finetune(*flags)
    head, _, rest = run.output.partition('Epoch: [0]')
    assert run.status == 0 and '\nwarning: ' not in rest and head.count('\nwarning: ') == 3, run.output
    run = finetune(*flags, '--eval', '--resume', tmp_path / 'o' / 'checkpoint-1.pth')
    assert run.status == 0 and run.output.count('\nwarning: ') == 1, run.output
