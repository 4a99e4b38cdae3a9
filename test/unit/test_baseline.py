"""Regression against commit eeec694: same losses, files, flags and commands, and its checkpoints still load.

baseline/results.json holds the record; the losses of fine-tuning are newer, since random erasing draws other noise, and
without it were equal. baseline/GENERATION is the output folder of a pre-training that SIGTERM stopped within its second
epoch, as written by that PyTorch; the tensors of its checkpoint have repeated values, which compress well.
"""
import json
import lzma
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, call, finetune, launcher, pretrain, succeeded
from test_end_to_end import epochs_of

BASELINE = Path(__file__).with_name('baseline')
RECORD = json.loads((BASELINE / 'results.json').read_text())
VERSION = '.'.join(torch.__version__.split('.')[:2])
GENERATION = '2.x' if VERSION.startswith('2.') else VERSION
WITHIN = 'checkpoint-1-16.pth'
TIMES = ('FPS', 'data_wait')        # all that differs between two runs of the same course
# Losses are equal to 1e-6 on the machine of the record; other processors round differently.
REL = float(os.environ.get('MAE_BASELINE_REL', 1e-4))

pytestmark = pytest.mark.compat


def old_folder(folder):
    """Fill `folder` with the output of the recorded run."""
    folder.mkdir()
    for path in (BASELINE / GENERATION).iterdir():
        if path.suffix == '.xz':
            (folder / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
        else:
            shutil.copy(str(path), str(folder / path.name))
    return folder


def run_of(task, images, folder):
    """Run a task into `folder`; 'resume' takes its flags from the recorded run's config.yaml."""
    flags = ['--data_path', images, '--output_dir', folder, '--resume', 'auto']
    if task == 'resume':
        config = old_folder(folder) / 'config.yaml'
        return call('main_pretrain', '--config', config, *flags)
    flags += ['--epochs', 2, '--save_every', 1, '--lr', 1e-3]
    if task == 'pretrain':
        return pretrain(*flags, '--norm_pix_loss', '--accum_iter', 2)
    start = old_folder(folder.with_name('old')) / WITHIN
    return finetune(*flags, '--finetune', start, '--mixup', .8, '--cutmix', 1, '--clip_grad', 5)


def log_of(folder):
    """The records of log.txt without times."""
    return [{name: value for name, value in record.items() if name not in TIMES} for record in epochs_of(folder)]


def files_of(folder):
    """File names in an output folder, without backups, and with one name for all TensorBoard files."""
    names = {re.sub(r'tfevents.*', 'tfevents', path.name) for path in folder.iterdir()}
    return sorted(name for name in names if not re.search(r'\.\d{8}', name))


def help_of(command):
    """{flag: default} from the help of a command; None for a default in words."""
    name, *words = command.replace('-m ', '').replace('.py ', ' ').replace('/', '.').split()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('COLUMNS', '10000')
        output = succeeded(call(name, *words))
    found = {}
    for option in re.split(r'\n(?=  -)', output)[1:]:
        default = re.search(r'\(default: (.*)\)', option)
        for flag in re.findall(r'--[\w-]+', re.split(r'\s{2,}', option.strip())[0]):
            found[flag] = default and default.group(1)
    return found


def commands_of(name, images, folder):
    """Output of a launcher under DRY_RUN=1, with placeholders."""
    pth = folder / 'x.pth'
    pth.write_bytes(b'')
    flags = ['--data_path=' + str(images), '--output_dir=' + str(folder / 'out'), '--mask_ratio=.5']
    if name == 'cifar10_1p':
        flags = flags[:2]
    elif not name.startswith('pretrain'):
        flags += [('--resume_pth=' if 'eval' in name else '--finetune_pth=') + str(pth)]
    nodes = {'NODE_RANK': '1', 'MASTER_ADDR': 'first', 'MASTER_PORT': '29501'} if '16p' in name else {}
    text = succeeded(launcher(name, *flags, DRY_RUN='1', **nodes))
    for place, word in ((sys.executable, 'PYTHON'), (images, 'DATA'), (folder, 'FOLDER'), (ROOT, 'ROOT')):
        text = text.replace(str(place), word)
    return text.splitlines()


@pytest.mark.parametrize('task', ['pretrain', 'finetune', 'resume'])
def test_a_run_has_the_losses_and_files_of_the_record(images, tmp_path, task):
    succeeded(run_of(task, images, tmp_path / 'out'))
    # 2.1 has losses of its own: initialization and resizing differ between releases.
    expected, found = RECORD['log'].get(VERSION, RECORD['log'].get(GENERATION))[task], log_of(tmp_path / 'out')
    assert len(found) == len(expected)
    for record, old in zip(found, expected):
        for name, value in old.items():
            assert record[name] == (pytest.approx(value, rel=REL) if isinstance(value, float) else value), name
    assert set(files_of(tmp_path / 'out')) >= set(RECORD['files'][task])


def renamed(command):
    """A recorded command under its current name."""
    command = re.sub(r'util([./])(?=\w+)', r'util\1tools\1', command)
    return command.replace('util.tools.drawn_dataset', 'synthetic_dataset')       # in test/lib


@pytest.mark.parametrize('command', RECORD['help'])
def test_a_command_has_the_flags_and_defaults_of_the_record(command, monkeypatch):
    monkeypatch.chdir(str(ROOT))
    old, found = RECORD['help'][command], help_of(renamed(command))
    assert {flag: found.get(flag, 'is gone') for flag in old} == old


@pytest.mark.parametrize('name', RECORD['dry run'])
def test_a_launcher_prints_the_command_of_the_record(images, tmp_path, name):
    assert commands_of(name, images, tmp_path) == [renamed(line) for line in RECORD['dry run'][name]]
