"""test/cifar10_1p.sh: its commands, every stage on a few images, going on after an interruption, mistakes."""
import re
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, environment, launcher, succeeded
from test_datasets import cifar  # noqa: F401  (a fixture)

SMALL = ['--model=vit_nano_patch16', '--patch_size=8', '--device=cpu', '--num_workers=0', '--warmup_epochs=1',
         '--batch_size=8']


@pytest.mark.parametrize('flags, words', [
    ([], '--data_path'), (['--data_path=/no/where'], '--data_path'), (['--data_path=/', '--images=many'], '--images'),
    (['--data_path=/', '--epochs=3'], '--pretrain_epochs'), (['--data_path=/', '--config=x.yaml'], '--config'),
    (['--data_path=/', '--mask_ratio=.5'], '--mask_ratio.*main_finetune.py')])
def test_a_mistake_is_one_line_before_anything_is_trained(tmp_path, flags, words):
    run = launcher('cifar10_1p', '--output_dir', tmp_path / 'o', *flags)
    assert (run.status, run.output.count('\n')) == (2, 1) and not (tmp_path / 'o').exists(), run.output
    assert re.search(words, run.output), run.output


def test_fast_adds_the_fast_recipe_to_pretraining_alone(tmp_path):
    def stages(*flags):
        return succeeded(launcher('cifar10_1p', '--data_path', tmp_path, *flags, DRY_RUN='1')).splitlines()

    recipe = ' --decoder_depth 2 --mask_ratio 0.8 --predict_ratio 0.5'
    pretraining, *others = stages('--fast')
    assert recipe in pretraining and [pretraining.replace(recipe, ''), *others] == stages()


@pytest.mark.slow
def test_all_stages_run_and_the_same_command_goes_on_where_it_was_stopped(cifar, tmp_path):  # noqa: F811
    out = tmp_path / 'o'
    flags = ['--data_path', str(cifar), '--output_dir', str(out), '--pretrain_epochs=40', '--finetune_epochs=1']
    # Slowed down by a checkpoint after every step, it is far from its end when the signal comes.
    running = subprocess.Popen(['bash', str(ROOT / 'test' / 'cifar10_1p.sh'), *flags, *SMALL,
                                '--save_every_minutes=1e-9'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               env=environment(PYTHON=sys.executable))
    assert any(b'Epoch: [1]' in line for line in running.stdout)
    running.send_signal(signal.SIGTERM)
    assert b'status 75' in running.communicate(timeout=600)[0]
    assert running.returncode == 75
    epochs = (out / 'pretrain' / 'log.txt').read_text().count('\n')

    run = launcher('cifar10_1p', *flags, *SMALL)
    assert run.status == 0 and 'pre-training gave' in run.output, run.output
    assert 0 < epochs < 40 and (out / 'pretrain' / 'log.txt').read_text().count('\n') == 40
    table = run.output[run.output.index('=== done'):].split('\n', 1)[1]
    assert 'from scratch' in table
    assert (out / 'cifar10_1p.log').read_text().endswith(table)

    run = launcher('cifar10_1p', *flags, *SMALL)
    assert run.status == 0 and run.output.endswith(table) and run.output.count('already complete\n') == 3
    assert launcher('cifar10_1p', *flags, *SMALL, '--fast').status == 2
    run = launcher('cifar10_1p', *flags, *SMALL, '--seed=1')
    assert run.status == 2 and run.output.count('\n') == 1
    assert '{} holds a run with '.format(out) in run.output and '--seed=0' in run.output


@pytest.mark.slow
def test_a_part_of_a_folder_with_train_and_test_is_enough_to_try_it(images, tmp_path):
    shutil.copytree(str(images / 'train'), str(tmp_path / 'data' / 'train'))
    shutil.copytree(str(images / 'val'), str(tmp_path / 'data' / 'test'))
    succeeded(launcher('cifar10_1p', '--data_path', tmp_path / 'data', '--output_dir', tmp_path / 'o', '--quick',
                       '--images=40', *SMALL))
    assert len(list((tmp_path / 'o' / 'images' / 'train').glob('*/*.png'))) == 32
    assert len(list((tmp_path / 'o' / 'images' / 'val').glob('*/*.png'))) == 8
    run = launcher('cifar10_1p', '--data_path', tmp_path / 'data', '--output_dir', tmp_path / 'p', '--images=7', *SMALL)
    assert run.status == 2
    assert run.output.splitlines()[-1] == 'error: --images: 7 train images are fewer than the 8 classes'
