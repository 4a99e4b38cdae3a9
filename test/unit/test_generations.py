"""What holds between generations of PyTorch: equal losses, and checkpoints that pass from each to each.

`bash test/check.sh --torch=all` says in MAE_PYTHONS which interpreters there are, as lines of generation=python.
"""
import json
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
from conftest import FINETUNE, PRETRAIN, ROOT, execute
from twenty_steps import SAVED_AT

PYTHONS = dict(line.split('=', 1) for line in os.environ.get('MAE_PYTHONS', '').splitlines())
PAIRS = list(product(PYTHONS, PYTHONS))
STEPS = Path(__file__).with_name('twenty_steps.py')

pytestmark = pytest.mark.slow
if len(PYTHONS) < 2:
    pytest.skip('compares generations of PyTorch: bash test/check.sh --torch=all', allow_module_level=True)


def steps(python, *arguments):
    """What twenty_steps.py prints under an interpreter."""
    run = execute([python, STEPS, *arguments])
    assert run.status == 0, run.output
    return json.loads(run.output.splitlines()[-1])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Where twenty_steps.py keeps its checkpoints."""
    return tmp_path_factory.mktemp('steps')


@pytest.fixture(scope='module')
def uninterrupted(folder):
    """{generation: {task: 20 losses}}."""
    losses = {}
    for generation, python in PYTHONS.items():
        losses.update(steps(python, folder, generation))
    return losses


@pytest.fixture(scope='module')
def resumed(folder, uninterrupted):
    """{reader: {writer: {task: the last 10 losses}}}."""
    return {generation: steps(python, folder) for generation, python in PYTHONS.items()}


@pytest.fixture(scope='module')
def written(images, tmp_path_factory):
    """{generation: folder with the output of a pre-training and a fine-tuning by its programs}."""
    folders = {}
    for generation, python in PYTHONS.items():
        folder = folders[generation] = tmp_path_factory.mktemp('written')
        pre, fine = folder / 'pre', folder / 'fine'
        succeed(python, 'main_pretrain.py', *PRETRAIN, '--data_path', images, '--output_dir', pre, '--epochs', 1)
        succeed(python, 'main_finetune.py', *FINETUNE, '--data_path', images, '--output_dir', fine, '--epochs', 1,
                '--finetune', pre / 'checkpoint-0.pth', '--lr', .003, '--warmup_epochs', 0)
    return folders


def succeed(python, program, *flags):
    """Run a program to its good end; returns what it printed."""
    run = execute([python, ROOT / program, *flags])
    assert run.status == 0, run.output
    return run.output


@pytest.mark.parametrize('task', ['pretrain', 'finetune'])
@pytest.mark.parametrize('generation', PYTHONS)
def test_twenty_steps_have_the_losses_of_the_other_generations(uninterrupted, generation, task):
    losses = uninterrupted[generation][task]
    assert len(losses) == 20 and losses[0] != losses[-1]
    for other in uninterrupted.values():
        assert losses == pytest.approx(other[task], rel=1e-5)


@pytest.mark.parametrize('writer, reader', PAIRS)
def test_a_run_of_any_generation_goes_on_in_any_other_as_if_uninterrupted(uninterrupted, resumed, writer, reader):
    for task, losses in resumed[reader][writer].items():
        assert losses == pytest.approx(uninterrupted[writer][task][SAVED_AT:], rel=1e-5)


@pytest.mark.parametrize('writer, reader', PAIRS)
def test_a_checkpoint_of_any_generation_resumes_and_evaluates_in_any_other(images, written, tmp_path, writer, reader):
    python, pre, fine = PYTHONS[reader], written[writer] / 'pre', written[writer] / 'fine'
    on = ['--data_path', images, '--epochs', 2]
    commands = [
        ('main_pretrain.py', *PRETRAIN, *on, '--resume', pre / 'checkpoint-0.pth', '--output_dir', tmp_path / 'pre'),
        ('main_finetune.py', *FINETUNE, *on, '--resume', fine / 'checkpoint-0.pth', '--output_dir', tmp_path / 'fine'),
        ('main_finetune.py', *FINETUNE, *on, '--resume', fine / 'checkpoint-0.pth', '--output_dir', tmp_path / 'eval',
         '--eval')]
    with ThreadPoolExecutor() as pool:
        outputs = list(pool.map(lambda command: succeed(python, *command), commands))
    for output in outputs[:2]:
        assert 'going on after epoch 0' in output and 'Epoch: [1]' in output
    result = json.loads((tmp_path / 'eval' / 'eval.json').read_text())
    trained = json.loads((fine / 'log.txt').read_text())
    for name in ('acc1', 'acc5'):
        assert result[name] == trained['test_' + name]
    # PyTorch 2 resizes by a kernel of its own, and one value of 300 comes out a grey level or two different.
    assert result['loss'] == pytest.approx(trained['test_loss'], rel=1e-4)
