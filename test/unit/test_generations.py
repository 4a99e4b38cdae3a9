"""Across generations of PyTorch: checkpoints load in each other generation, which goes on with equal losses.

`bash test/check.sh --torch=all` lists the interpreters in MAE_PYTHONS, as lines of generation=python.
"""
import json
import os

import pytest
from conftest import FINETUNE, PRETRAIN, ROOT, execute
from test_end_to_end import epochs_of

PYTHONS = dict(line.split('=', 1) for line in os.environ.get('MAE_PYTHONS', '').splitlines())

pytestmark = pytest.mark.slow
if len(PYTHONS) < 2:
    pytest.skip('compares generations of PyTorch: bash test/check.sh --torch=all', allow_module_level=True)


def succeed(generation, program, *flags):
    """Output of a program, which must exit with status 0."""
    run = execute([PYTHONS[generation], ROOT / program, *flags])
    assert run.status == 0, run.output
    return run.output


@pytest.fixture(scope='module')
def written(images, tmp_path_factory):
    """{generation: folder with the output of a pre-training and a fine-tuning by its programs}."""
    folders = {}
    for generation in PYTHONS:
        folder = folders[generation] = tmp_path_factory.mktemp('written')
        on = ['--data_path', images, '--epochs', 2, '--save_every', 1]
        succeed(generation, 'main_pretrain.py', *PRETRAIN, *on, '--output_dir', folder / 'pre')
        succeed(generation, 'main_finetune.py', *FINETUNE, *on, '--output_dir', folder / 'fine', '--finetune',
                folder / 'pre' / 'checkpoint-0.pth', '--lr', .003, '--warmup_epochs', 0)
    return folders


@pytest.mark.parametrize('writer, reader', list(zip(PYTHONS, [*list(PYTHONS)[1:], *PYTHONS])))
def test_another_generation_resumes_with_the_same_losses_and_evaluates(images, written, tmp_path, writer, reader):
    on = ['--data_path', images, '--epochs', 2]
    for program, flags, name in (('main_pretrain.py', PRETRAIN, 'pre'), ('main_finetune.py', FINETUNE, 'fine')):
        folder = written[writer] / name
        output = succeed(reader, program, *flags, *on, '--resume', folder / 'checkpoint-0.pth', '--output_dir',
                         tmp_path / name, *(['--lr', .003, '--warmup_epochs', 0] if name == 'fine' else []))
        assert 'Epoch: [1]' in output and 'Epoch: [0]' not in output
        found, expected = epochs_of(tmp_path / name)[-1], epochs_of(folder)[-1]
        # PyTorch 2 has its own resize kernel: one value in 300 differs by a grey level or two.
        assert found['train_loss'] == pytest.approx(expected['train_loss'], rel=1e-4)
    succeed(reader, 'main_finetune.py', *FINETUNE, *on, '--resume', folder / 'checkpoint-1.pth', '--output_dir',
            tmp_path / 'eval', '--eval')
    result = json.loads((tmp_path / 'eval' / 'eval.json').read_text())
    assert result['acc1'] == expected['test_acc1']
    assert result['loss'] == pytest.approx(expected['test_loss'], rel=1e-4)
