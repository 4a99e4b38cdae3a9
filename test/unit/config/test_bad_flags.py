"""User errors: one line, a non-zero status, earlier results untouched."""
import shutil
from argparse import Namespace

import pytest
import torch
from conftest import FINETUNE, call, finetune
from synthetic_dataset import CLASSES

from engine_finetune import evaluate_checkpoint
from util.checkpoints.checkpointer import Checkpointer
from util.config.train_flags import parse_finetune
from util.data.datasets import labelled_set
from util.data.transforms import finetuning_transform
from util.distributed.world import World
from util.errors import UserError
from util.reporting import output_dir
from util.training.setup import count_classes, log_training_summary


@pytest.mark.parametrize('tool, argument', [('dataset_stats', 'DATA'), ('pack_shards', 'SOURCE')])
def test_errors_of_a_tool_name_its_own_argument(tmp_path, tool, argument):
    (tmp_path / 'data').mkdir()
    paths = [tmp_path / 'data', *[tmp_path / 'x'] * (argument == 'SOURCE')]
    run = call('util.tools.' + tool, *paths)
    assert run.status == 2 and run.output.startswith('error: {}: {}'.format(argument, tmp_path / 'data')), run.output


def test_nb_classes_below_the_number_of_classes_is_rejected(images):
    args = parse_finetune([*FINETUNE, '--data_path', str(images), '--nb_classes', '3'])
    with pytest.raises(UserError, match='^--nb_classes 3'):
        count_classes(args, labelled_set(str(images), 'val'))


def test_an_output_folder_that_cannot_be_created_is_rejected(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='^--output_dir'):
        output_dir.enter(str(tmp_path / 'file' / 'o'))


def test_evaluation_without_a_checkpoint_to_resume_is_rejected(tmp_path):
    args = parse_finetune([*FINETUNE, '--data_path', str(tmp_path), '--eval', '--resume', 'auto'])
    with pytest.raises(UserError, match='^--resume auto'):
        evaluate_checkpoint(args, None, None, Checkpointer(None), None, None)


def test_an_unknown_augmentation_policy_is_rejected():
    with pytest.raises(UserError, match='^--aa rand-m9-foo1'):
        finetuning_transform(32, aa='rand-m9-foo1')


# Warnings before training

@pytest.mark.parametrize('epochs, warmup, batch, named', [
    (400, 40, 1000, ''), (1, 40, 1000, ''), (10, 10, 1000, '--warmup_epochs 10'), (10, 40, 1000, '--warmup_epochs 40'),
    (10, 1, 1001, '--accum_iter')])
def test_a_warmup_over_all_epochs_and_a_batch_over_all_images_warn(caplog, epochs, warmup, batch, named):
    caplog.set_level('INFO', 'mae')
    args = Namespace(epochs=epochs, warmup_epochs=warmup, lr=None, blr=.1, batch_size=batch, accum_iter=1,
                     base_batch_size=None)
    log_training_summary(args, World(), range(1000), torch.nn.Linear(1, 1))
    warnings = [line for line in caplog.messages if line.startswith('warning: ')]
    assert len(warnings) == bool(named) and all(named in line for line in warnings)


def test_classes_without_validation_images_are_named(images, tmp_path):
    shutil.copytree(str(images / 'train'), str(tmp_path / 'data' / 'train'))
    shutil.copytree(str(images / 'val' / CLASSES[0]), str(tmp_path / 'data' / 'val' / CLASSES[0]))
    run = finetune('--data_path', tmp_path / 'data', '--output_dir', tmp_path / 'o', '--epochs', 1)
    assert run.status == 0 and 'warning: ' in run.output and CLASSES[1] in run.output, run.output
