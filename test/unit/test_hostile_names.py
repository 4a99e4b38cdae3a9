"""Folders, classes, images and checkpoints whose names are flags, shell commands, several lines or no text at all."""
import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import FINETUNE, PRETRAIN, ROOT, Run

from util import checkpoint_file, drawn_dataset, errors, log

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
        for name, strange in zip(drawn_dataset.CLASSES, CLASSES):
            (data / split / name).rename(data / split / strange)
            for number, image in enumerate(sorted((data / split / strange).iterdir())):
                image.rename(image.parent / '-{}{}.JPG'.format(number, STRANGE))
    return folder


def execute(place, *command):
    """Run a command in `place` on a terminal that knows nothing but ASCII: no line of the output is part of a name."""
    environ = {**os.environ, 'LC_ALL': 'C', 'PYTHONIOENCODING': 'ascii', 'PYTHON': sys.executable}
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          timeout=300, env=environ, cwd=str(place))
    output = done.stdout.decode(errors='replace')
    assert 'Traceback' not in output and 'Logging error' not in output and not set('\x1b\t') & set(output), output
    assert not list(place.glob('**/ran')) and not (ROOT / 'ran').exists()
    return Run(done.returncode, output)


def well(place, *command):
    """The command ends well; returns its output."""
    run = execute(place, *command)
    assert run.status == 0, run.output
    return run.output


@pytest.mark.slow
def test_every_step_takes_them(place):
    """From pre-training on two processes to a picture, by Python and by the launchers; each step uses the ones before.
    """
    well(place, 'bash', ROOT / 'test/pretrain_performance_8p.sh', '--nproc=2', '--data_path', DATA, '--output_dir', OUT,
         *PRETRAIN)
    well(place, sys.executable, ROOT / 'main_pretrain.py', '--data_path=' + DATA, '--output_dir=' + OUT, *PRETRAIN,
         '--epochs', '2', '--resume', 'auto', '--num_workers', '1')
    shutil.copy(str(place / OUT / 'checkpoint-1.pth'), str(place / CHECKPOINT))
    well(place, sys.executable, ROOT / 'main_finetune.py', '--data_path=' + DATA, '--output_dir=' + OTHER, *FINETUNE,
         '--epochs', '1', '--finetune=' + CHECKPOINT)
    shutil.copy(str(place / OTHER / 'checkpoint-0.pth'), str(place / CHECKPOINT))
    assert checkpoint_file.load(str(place / CHECKPOINT))['classes'] == sorted(CLASSES)
    well(place, 'bash', ROOT / 'test/finetune_eval_8p.sh', '--nproc', '1', '--data_path', DATA, '--output_dir', OTHER,
         '--resume_pth', CHECKPOINT, *FINETUNE)
    with open(str(place / OTHER / 'eval.json'), encoding='utf-8') as file:
        assert json.load(file)['checkpoint'] == './' + CHECKPOINT
    with open(str(place / OUT / 'log.txt'), encoding='utf-8') as file:
        assert [json.loads(line)['epoch'] for line in file] == [0, 1]
    output = well(place, sys.executable, ROOT / 'util/visualize.py', '--resume={}/checkpoint-1.pth'.format(OUT),
                  '--output={}.png'.format(OUT), '--', DATA)
    assert output.count('\n') == 1 and (place / (OUT + '.png')).exists()


def test_a_mistake_in_them_is_one_line_of_python_and_of_a_launcher(place):
    for command in ((sys.executable, ROOT / 'main_finetune.py', '--data_path=' + DATA, '--resume=no' + STRANGE),
                    ('bash', ROOT / 'test/finetune_full_8p.sh', '--data_path', '-no' + STRANGE, '--finetune_pth',
                     CHECKPOINT)):
        run = execute(place, *command)
        assert run.status == 2 and run.output.count('\n') == 1 and r'[x]\ {0}%s\n' in run.output, run.output
        assert run.output.startswith('error: ')


def test_any_text_fits_a_line_and_plain_text_stays_as_it_is():
    assert errors.one_line('a\nb\r\x1b[0m\udcff\u2028\x85') == r'a\nb\r\x1b[0m\udcff\u2028\x85'
    assert errors.one_line('it\'s 汉é😀 "x" \\n') == 'it\'s 汉é😀 "x" \\n'


def test_a_value_that_is_logged_stays_within_its_line(capsys):
    log.set_up(is_main=True)
    log.logger.info('%s: %d of %.1f\n%s', STRANGE, 3, .5, ValueError('a\nb'))
    assert capsys.readouterr().out.count('\n') == 2
