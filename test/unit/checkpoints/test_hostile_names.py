"""Folders, classes, images and checkpoints whose names are flags, shell commands, several lines or not valid text."""
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import synthetic_dataset
from conftest import FINETUNE, PRETRAIN, ROOT, call, execute, succeeded

from util.checkpoints import pth_file

STRANGE = os.fsdecode(b' \'a\' "b" $(touch ran)`touch ran`;touch ran;#&|<>!*?[x]\\ {0}%s\n\t\xe6\xb1\x89\xc3\xa9'
                      b'\xf0\x9f\x98\x80\xff\x1b[31m')
DATA, OUT, OTHER, CHECKPOINT = ('--help' + STRANGE, '-rf' + STRANGE, '--' + STRANGE, '--resume' + STRANGE + '.pth')
CLASSES = [os.fsdecode(name) for name in (b'--help', b' a ', b'it\'s "x"', b'new\nline', b'$(touch ran)', b'*?[!]',
                                          b'\\\xe6\xb1\x89', b'\xff\xfe')]


@pytest.fixture(scope='module')
def place(images, tmp_path_factory):
    """A folder that the tests stand in, with images below DATA in classes of CLASSES."""
    folder = tmp_path_factory.mktemp('names')
    data = folder / DATA
    shutil.copytree(str(images), str(data))
    for split in ('train', 'val'):
        for name, strange in zip(synthetic_dataset.CLASSES, CLASSES):
            (data / split / name).rename(data / split / strange)
            for number, image in enumerate(sorted((data / split / strange).iterdir())):
                image.rename(image.parent / '-{}{}.JPG'.format(number, STRANGE))
    return folder


@pytest.fixture(autouse=True)
def stand(place, monkeypatch):
    monkeypatch.chdir(place)


def ends(status, *command):
    """The output of a command on an ASCII terminal, in which no line is part of a name."""
    run = execute(command, LC_ALL='C', PYTHONIOENCODING='ascii', PYTHON=sys.executable)
    assert run.status == status and 'Traceback' not in run.output and 'Logging error' not in run.output, run.output
    assert not set('\x1b\t') & set(run.output) and not list(Path().glob('**/ran')) and not (ROOT / 'ran').exists()
    return run.output


@pytest.mark.slow
def test_every_step_accepts_them(place):
    """From pre-training on two processes, by a launcher, to a picture."""
    ends(0, 'bash', ROOT / 'test/pretrain_performance_8p.sh', '--nproc=2', '--data_path', DATA, '--output_dir', OUT,
         *PRETRAIN)
    succeeded(call('main_pretrain', '--data_path=' + DATA, '--output_dir=' + OUT, *PRETRAIN, '--epochs', '2',
                   '--resume', 'auto', '--num_workers', '1'))
    shutil.copy(str(place / OUT / 'checkpoint-1.pth'), str(place / CHECKPOINT))
    succeeded(call('main_finetune', '--data_path=' + DATA, '--output_dir=' + OTHER, *FINETUNE, '--epochs', '1',
                   '--finetune=' + CHECKPOINT))
    assert pth_file.load(str(place / OTHER / 'checkpoint-0.pth'))['classes'] == sorted(CLASSES)
    lines = (place / OUT / 'log.txt').read_text('utf-8').splitlines()
    assert [json.loads(line)['epoch'] for line in lines] == [0, 1]
    run = call('util.tools.visualize', '--resume={}/checkpoint-1.pth'.format(OUT), '--output={}.png'.format(OUT), '--',
               DATA)
    assert run.status == 0 and run.output.count('\n') == 1 and (place / (OUT + '.png')).exists(), run.output


def test_an_error_in_them_is_one_line_from_python_and_launcher(place):
    for command in ((sys.executable, ROOT / 'main_finetune.py', '--data_path=' + DATA, '--resume=no' + STRANGE),
                    ('bash', ROOT / 'test/finetune_full_8p.sh', '--data_path', '-no' + STRANGE, '--finetune_pth',
                     CHECKPOINT)):
        output = ends(2, *command)
        assert output.startswith('error: ') and output.count('\n') == 1 and r'[x]\ {0}%s\n' in output
