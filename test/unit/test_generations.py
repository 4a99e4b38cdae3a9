"""Across generations of PyTorch: equal losses, and checkpoints with which another generation goes on.

`bash test/check.sh --torch=all` lists the interpreters in MAE_PYTHONS, as lines of generation=python.
"""
import json
import os
from pathlib import Path

import pytest
from conftest import FINETUNE, PRETRAIN, ROOT, execute, succeeded
from test_end_to_end import epochs_of
from twenty_steps import SAVED_AT

PYTHONS = dict(line.split('=', 1) for line in os.environ.get('MAE_PYTHONS', '').splitlines())

pytestmark = pytest.mark.slow
if len(PYTHONS) < 2:
    pytest.skip('compares generations of PyTorch: bash test/check.sh --torch=all', allow_module_level=True)


def succeed(generation, program, *flags):
    """Output of a program, which must exit with status 0."""
    return succeeded(execute([PYTHONS[generation], ROOT / program, *flags]))


def steps(generation, mode, *checkpoints):
    """What twenty_steps.py prints under a generation."""
    program = Path(__file__).with_name('twenty_steps.py')
    return json.loads(succeed(generation, program, mode, *checkpoints).splitlines()[-1])


def test_losses_agree_and_each_resumes_the_checkpoints_of_all_as_if_uninterrupted(tmp_path):
    paths = {generation: tmp_path / generation for generation in PYTHONS}
    whole = [steps(generation, 'write', path)[0] for generation, path in paths.items()]
    assert len(whole[0]) == 20 and whole[0][0] != whole[0][-1]
    for losses in whole:
        assert losses == pytest.approx(whole[0], rel=1e-5)
    for reader in PYTHONS:
        for losses, expected in zip(steps(reader, 'resume', *paths.values()), whole):
            assert losses == pytest.approx(expected[SAVED_AT:], rel=1e-5), reader


@pytest.fixture(scope='module')
def written(images, tmp_path_factory):
    """{generation: folder with the output of a pre-training and a fine-tuning by its programs}."""
    folders = {}
    for generation in PYTHONS:
        folder = folders[generation] = tmp_path_factory.mktemp('written')
        on = ['--data_path', images, '--epochs', 1]
        succeed(generation, 'main_pretrain.py', *PRETRAIN, *on, '--output_dir', folder / 'pre')
        succeed(generation, 'main_finetune.py', *FINETUNE, *on, '--output_dir', folder / 'fine', '--finetune',
                folder / 'pre' / 'checkpoint-0.pth', '--lr', .003, '--warmup_epochs', 0)
    return folders


@pytest.mark.parametrize('writer, reader', list(zip(PYTHONS, [*list(PYTHONS)[1:], *PYTHONS])))
def test_the_programs_of_another_generation_resume_and_evaluate(images, written, tmp_path, writer, reader):
    on = ['--data_path', images, '--epochs', 2]
    for program, flags, name in (('main_pretrain.py', PRETRAIN, 'pre'), ('main_finetune.py', FINETUNE, 'fine')):
        folder = written[writer] / name
        output = succeed(reader, program, *flags, *on, '--resume', folder / 'checkpoint-0.pth', '--output_dir',
                         tmp_path / name)
        assert 'Epoch: [1]' in output and 'Epoch: [0]' not in output
    succeed(reader, 'main_finetune.py', *FINETUNE, *on, '--resume', folder / 'checkpoint-0.pth', '--output_dir',
            tmp_path / 'eval', '--eval')
    expected, = epochs_of(folder)
    result = json.loads((tmp_path / 'eval' / 'eval.json').read_text())
    assert result['acc1'] == expected['test_acc1']
    # PyTorch 2 has its own resize kernel: one value in 300 differs by a grey level or two.
    assert result['loss'] == pytest.approx(expected['test_loss'], rel=1e-4)
