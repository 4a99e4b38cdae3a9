"""Killed anywhere and resumed, a run ends as if nothing had happened: weights, moments, log.txt, best accuracy."""
import json
import shutil
import sys

import pytest
import torch
from conftest import FINETUNE, PRETRAIN, ROOT, call, execute, pretrain, succeeded, together
from test_baseline import log_of
from test_end_to_end import moments_of, same, weights_of
from test_launchers import supervised

# Runs a main script which saves after each step that it can, and is killed after so many iterations, without warning;
# not when its launcher has started it again.
KILLER = """
import os, runpy, signal, sys
sys.path.insert(0, sys.argv[1])
script, rank, last = sys.argv[2], sys.argv[3], int(sys.argv[4])
import threading
import util
from util.training import trainer
from util.training.epoch_meter import EpochMeter
trainer.CHECK_SECONDS = 0.
count, batches = [0], EpochMeter.batches

def killed(self):
    for batch in batches(self):
        yield batch
        for thread in threading.enumerate():
            if thread.name == 'saver':
                thread.join()
        count[0] += 1
        if count[0] == last and os.environ.get('RANK', '0') == rank and 'MAE_RESTART' not in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)

EpochMeter.batches = killed
sys.argv = [script] + sys.argv[5:]
runpy.run_path(script, run_name='__main__')
"""


@pytest.fixture(scope='module')
def killer(tmp_path_factory):
    path = tmp_path_factory.mktemp('killer') / 'killer.py'
    path.write_text(KILLER)
    return path


def command(script, flags, processes, killer=None, at=None, rank=0):
    """A main script, killed after `at` iterations if so asked."""
    flags = [*(PRETRAIN if 'pretrain' in script else FINETUNE), *flags]
    if processes == 1 and not at:
        return call(script[:-3], *flags)
    words = [ROOT / 'util' / 'tools' / 'launch.py', '--nproc', processes] if processes > 1 else []
    words += [killer, ROOT, ROOT / script, rank, at] if at else [ROOT / script]
    return execute([sys.executable, *words, *flags])


def results(folder):
    """(weights, their average, moments, best, lines of log.txt but for times) of the end of a run of two epochs."""
    state = weights_of(folder / 'checkpoint-1.pth')
    return state['model'], state.get('model_ema'), moments_of(state), state.get('best'), log_of(folder)


def assert_alike(whole, parts):
    for one, other in zip(results(whole), results(parts)):
        assert same(one, other)


def killed_and_resumed(script, flags, folder, killer, kills, processes=1):
    """A run that is killed after each of `kills` iterations, and resumed."""
    flags = [*flags, '--output_dir', folder, '--save_every_minutes', 1e-9, '--resume', 'auto']
    for number, (at, rank) in enumerate(kills):
        run = command(script, flags, processes, killer, at, rank)
        assert run.status in (-9, 137) and 'Traceback' not in run.output, run.output
        assert ("resuming" in run.output) == (number > 0), run.output
    run = command(script, flags, processes)
    assert run.status == 0 and 'resuming' in run.output, run.output


@pytest.mark.slow
@pytest.mark.compat
def test_a_killed_pretraining_ends_as_the_uninterrupted_one(images, tmp_path, killer):
    """Within the first epoch, and within the second, with a window open."""
    flags = ['--data_path', images, '--accum_iter', 3, '--num_workers', 1, '--batch_size', 4, '--epochs', 2,
             '--predict_ratio', .5, '--decoder_depth', 1]
    assert command('main_pretrain.py', [*flags, '--output_dir', tmp_path / 'whole'], 1).status == 0
    killed_and_resumed('main_pretrain.py', flags, tmp_path / 'parts', killer, [(4, 0), (7, 0)])     # 7: an epoch's last
    assert_alike(tmp_path / 'whole', tmp_path / 'parts')


@pytest.fixture(scope='module')
def finetuned(images, pretrained, tmp_path_factory):
    """(flags, output folder) of a fine-tuning by two processes."""
    flags = ['--data_path', images, '--finetune', pretrained / 'checkpoint-0.pth', '--freeze', 2, '--ema', .9,
             '--mixup', .8, '--cutmix', 1, '--drop_path', .2, '--batch_size', 2, '--accum_iter', 2, '--num_workers', 1,
             '--dist_eval', '--epochs', 2]
    folder = tmp_path_factory.mktemp('finetuned')
    assert command('main_finetune.py', [*flags, '--output_dir', folder], 2).status == 0
    return flags, folder


@pytest.mark.slow
@pytest.mark.compat
def test_two_processes_of_which_any_is_killed_end_as_the_uninterrupted_ones(pretrained, finetuned, tmp_path, killer):
    flags, whole = finetuned
    killed_and_resumed('main_finetune.py', flags, tmp_path, killer, [(5, 1)], processes=2)
    assert_alike(whole, tmp_path)
    state, start = weights_of(whole / 'checkpoint-1.pth'), weights_of(pretrained / 'checkpoint-0.pth')
    assert state['ema_updates'] == 8 and not same(state['model_ema'], state['model'])
    names = ['blocks.{}.attn.qkv.weight'.format(i) for i in range(3)]
    assert [same(state['model'][name], start['model'][name]) for name in names] == [True, True, False]


@pytest.mark.slow
@pytest.mark.compat
def test_two_nodes_of_which_one_is_killed_start_again_together_and_end_as_if_nothing_was(finetuned, tmp_path, killer):
    flags, whole = finetuned
    first, second = together(lambda port: [supervised(
        '--nproc', 1, '--nnodes', 2, '--node_rank', node, '--master_port', port, '--max_restarts', 1,
        killer, ROOT, ROOT / 'main_finetune.py', 1, 12, *FINETUNE, *flags, '--output_dir', tmp_path / 'parts',
        '--save_every_minutes', 1e-9, '--start_epoch', 0) for node in range(2)])
    assert (first.status, second.status) == (0, 0), (first, second)
    assert 'restart 1 of 1\n' in first.output and 'restart 1 of 1\n' in second.output
    assert 'rank 1 was killed by SIGKILL' in second.output and 'resuming epoch 1' in first.output, (first, second)
    assert_alike(whole, tmp_path / 'parts')


@pytest.mark.slow
def test_nodes_that_find_different_checkpoints_end_at_once(pretrained, tmp_path):
    (tmp_path / '0').mkdir()
    shutil.copy(str(pretrained / 'checkpoint-0.pth'), str(tmp_path / '0'))
    runs = together(lambda port: [supervised(
        '--nproc', 1, '--nnodes', 2, '--node_rank', node, '--master_port', port, ROOT / 'main_pretrain.py', *PRETRAIN,
        '--data_path', tmp_path, '--output_dir', tmp_path / str(node), '--resume', 'auto') for node in range(2)])
    for run in runs:
        assert run.status == 2 and '--resume' in run.output, run.output


@pytest.mark.slow
def test_a_changed_batch_and_number_of_processes_go_on_with_the_unseen_images_and_say_what_changed(images, tmp_path,
                                                                                                   killer):
    flags = ['--data_path', images, '--output_dir', tmp_path, '--save_every_minutes', 1e-9, '--epochs', 2]
    assert command('main_pretrain.py', flags, 1, killer, 2).status == -9           # 16 of 32 images
    flags += ['--resume', 'auto', '--batch_size', 4, '--accum_iter', 2]
    output = succeeded(command('main_pretrain.py', flags, 2))
    assert 'accum_iter 1 -> 2, batch_size 8 -> 4, processes 1 -> 2' in output
    assert 'Epoch: [0]  [4/4]' in output and 'Epoch: [1]  [4/4]' in output, output


@pytest.mark.slow
def test_going_on_from_an_older_checkpoint_sets_the_newer_ones_aside(images, tmp_path):
    flags = ['--data_path', images, '--output_dir', tmp_path, '--save_every', 1, '--epochs', 3]
    assert pretrain(*flags).status == 0
    newest = (tmp_path / 'checkpoint-2.pth').read_bytes()
    succeeded(pretrain(*flags, '--resume', tmp_path / 'checkpoint-0.pth', '--lr', 1e-3))
    assert all(len(list(tmp_path.glob(name + '.*.*'))) == 1 for name in ('checkpoint-1', 'config', 'log', 'report'))
    aside, = tmp_path.glob('checkpoint-2.*.pth')
    assert aside.read_bytes() == newest != (tmp_path / 'checkpoint-2.pth').read_bytes()
    assert len((tmp_path / 'log.txt').read_text().splitlines()) == 3
    assert [shot['epoch'] for shot in weights_of(tmp_path / 'checkpoint-2.pth')['reconstructions']] == [0, 1, 2]
    old, = tmp_path.glob('log.*.txt')
    assert len(old.read_text().splitlines()) == 3


@pytest.mark.parametrize('again', [{'MAE_RESTART': '1'}, {}])
def test_a_run_that_ended_before_its_first_checkpoint_begins_its_log_anew(images, tmp_path, again):
    folder = tmp_path / 'o'
    folder.mkdir()
    (folder / 'log.txt').write_text('{"epoch": 0, "train_loss": 7}\n')
    flags = ['--resume', 'auto'] if not again else []
    run = pretrain('--data_path', images, '--output_dir', folder, '--epochs', 1, *flags, **again)
    assert run.status == 0 and ('--resume auto: no checkpoint' in run.output) == bool(flags), run.output
    record, = (folder / 'log.txt').read_text().splitlines()
    old, = folder.glob('log.*.txt' if again else 'earlier.*/log.txt')
    assert json.loads(record)['train_loss'] != json.loads(old.read_text())['train_loss'] == 7


def test_more_images_than_the_data_has_are_refused(images, pretrained, tmp_path):
    state = weights_of(pretrained / 'checkpoint-0.pth')
    torch.save({**state, 'images': 10 ** 9}, str(tmp_path / 'x.pth'))
    run = pretrain('--data_path', images, '--output_dir', tmp_path / 'o', '--epochs', 2, '--resume', tmp_path / 'x.pth')
    assert run.status == 2 and '--resume' in run.output and not (tmp_path / 'o' / 'log.txt').exists(), run.output
