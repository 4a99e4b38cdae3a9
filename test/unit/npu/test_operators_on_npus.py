"""Operators that a training launches on the emulated NPU, and what makes the host wait for it."""
import json
import shutil
import sys

import pytest
from conftest import execute, finetune, pretrain, succeeded
from npu_operators import FULL_RECIPE, PRECISIONS, recorded
from PIL import Image

from .conftest import WITH_STAND_INS

pytestmark = pytest.mark.slow


def on_npu(code, *words, **environ):
    """What Python code prints last."""
    prelude = 'import json, sys, torch, torch_npu\nfrom torch_npu import _record\n'
    return json.loads(succeeded(execute([sys.executable, '-c', prelude + code, *words], **WITH_STAND_INS, **environ))
                      .split('\n')[-2])


def test_the_record_has_signatures_and_waits():
    """Statements, how many different operators they launch, and what they wait for."""
    expected = {'x.t()[1:].expand(2, 2, 4); x[0].view(3, 1)': (0, []), 'x * .5; x * .6; x + 1; x + 2': (2, []),
                'x[:2].zero_(); x[1:3].zero_(); x[:, 1:].zero_(); x[:, :2].zero_()': (3, []),
                'x[x > 0] = 0': (3, ['read']), 'bool(x[0, 0])': (0, ['read']), 'x.new_tensor([1.])': (0, ['write']),
                'torch.arange(3, device="npu"); torch.arange(4, device="npu")': (2, []), 'x.sum() > 0': (2, []),
                'x.cpu(); x.tolist()': (0, 2 * ['read'])}
    found = on_npu("""
x, found = torch.zeros(4, 3, device='npu:0'), []
for statement in sys.argv[1:]:
    step = _record.start()
    exec(statement)
    found.append([len(step['operators']), [*map(str.strip, step['waits'].elements())]])
print(json.dumps(found))""", *expected)
    assert dict(zip(expected, map(tuple, found))) == expected


@pytest.mark.parametrize('run, backend, flags', [(pretrain, 'none', []), (finetune, 'native', FULL_RECIPE)])
def test_no_new_operators_from_the_fourth_step_on(images, tmp_path, run, backend, flags):
    shutil.copytree(images, tmp_path / 'images')
    for i, path in enumerate(sorted((tmp_path / 'images').glob('*/*/*.jpg'))):
        Image.open(path).resize((40 + i, 96 - i)).save(path)
    steps = recorded(run, tmp_path / 'record', 'train_one_epoch', '--data_path', tmp_path / 'images', '--epochs', 3,
                     '--batch_size', 4, '--amp_backend', backend, '--output_dir', tmp_path / 'out', *flags,
                     **WITH_STAND_INS)
    assert len(steps) == 24 and not [step.new for step in steps[3:] if step.new]


def test_the_last_batch_of_an_evaluation_needs_no_operators_of_its_own(images, tmp_path):
    """Its 19 images are no multiple of 8. What follows the batches is in other places than the batch before."""
    steps = recorded(finetune, tmp_path / 'record', ' evaluate', '--data_path', images, '--epochs', 2,
                     '--output_dir', tmp_path / 'out', **WITH_STAND_INS)
    batches = {place for _, place, _ in steps[1].operators}
    assert len(steps) == 6 and not [entry for step in steps[1:] for entry in step.new if entry[1] in batches]


@pytest.mark.parametrize('run, chip, precision, flags', [
    *((pretrain, *place, []) for place in PRECISIONS),
    *((finetune, *place, [*FULL_RECIPE, '--clip_grad', 1., '--ema', .9]) for place in PRECISIONS[1::3])])
def test_the_host_does_not_wait_for_the_device_in_a_step(images, tmp_path, run, chip, precision, flags):
    """Neither to read, nor, from the second step on, for a copy that is not from pinned memory."""
    steps = recorded(run, tmp_path / 'record', 'train_one_epoch', '--data_path', images, '--epochs', 1, '--output_dir',
                     tmp_path / 'out', *precision, *flags, chip=chip, **WITH_STAND_INS)
    assert len(steps) == 4 and not [wait for i, step in enumerate(steps) for wait in step.waits
                                    if wait[0] in ('read', 'write')[:1 + i]]


def test_the_loss_with_tanh_gelu_is_within_its_bound_of_the_exact_one():
    exact, tanh = (on_npu('''
import models_mae
torch.manual_seed(0)
model = models_mae.mae_vit_nano_patch16(img_size=32, patch_size=8)
images, noise = torch.randn(8, 3, 32, 32), torch.rand(8, 16)
print(model.to('npu')(images.to('npu'), noise=noise.to('npu'))[0].item())
''', EMULATED_NPU_GELU=form) for form in ('', 'tanh'))
    assert 0 < abs(tanh - exact) < 5e-4
