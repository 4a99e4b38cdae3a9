"""Operators that training launches on the emulated NPU, new ones among them, and reads from the device."""
import json
import sys

import pytest
from conftest import execute, finetune, pretrain

from .conftest import WITH_STAND_INS, require_emulator
from .operators import FULL_RECIPE, PRECISIONS, reads, recorded

require_emulator()
pytestmark = pytest.mark.slow

AUGMENT = """
import json, sys, torch, torch_npu
from torch_npu import _record
import main_finetune
from util.config.train_flags import parse_finetune
from util.data.loader import seed_generators
args, found = parse_finetune(sys.argv[1:]), []
augment = main_finetune.build_augmentation(args, main_finetune.build_loss(args, 8)[1], torch.device('npu:0'))
for size in (16, 128):
    counts = set()
    for seed in range(8):
        images = torch.zeros(size, 32, 32, 3, dtype=torch.uint8).to('npu')
        labels = torch.zeros(size, dtype=torch.long).to('npu')
        seed_generators(seed)
        steps = _record.start()
        augment(images, labels)
        counts.add(sum(steps[0]['operators'].values()))
    found.append(sorted(counts))
print(json.dumps(found))
"""
LOSS = """
import torch, torch_npu, models_mae
torch.manual_seed(0)
model = models_mae.mae_vit_nano_patch16(img_size=32, patch_size=8)
images, noise = torch.randn(8, 3, 32, 32), torch.rand(8, 16)
print(model.to('npu')(images.to('npu'), noise=noise.to('npu'))[0].item())
"""


@pytest.mark.parametrize('run, flags', [(pretrain, []), (finetune, FULL_RECIPE)])
@pytest.mark.parametrize('precision', ['none', 'native'])
def test_no_new_operators_from_the_fourth_step_on(images, tmp_path, run, flags, precision):
    steps = recorded(run, tmp_path / 'record', 'train_one_epoch', '--data_path', images, '--epochs', 3, '--batch_size',
                     4, '--amp_backend', precision, '--output_dir', tmp_path / 'out', *flags, **WITH_STAND_INS)
    assert len(steps) == 24 and not [step.new for step in steps[3:] if step.new]


def test_the_last_batch_of_an_evaluation_needs_no_operators_of_its_own(images, tmp_path):
    """Its 19 images are no multiple of 8; what follows the batches shows in other places than the batch before."""
    steps = recorded(finetune, tmp_path / 'record', ' evaluate', '--data_path', images, '--epochs', 2,
                     '--output_dir', tmp_path / 'out', **WITH_STAND_INS)
    batches = {place for _, place, _ in steps[1].operators}
    assert len(steps) == 6 and not [entry for step in steps[1:] for entry in step.new if entry[1] in batches]


@pytest.mark.parametrize('run, flags', [(pretrain, []), (finetune, [*FULL_RECIPE, '--clip_grad', 1.])])
@pytest.mark.parametrize('chip, precision', PRECISIONS)
def test_the_host_does_not_read_from_the_device_in_a_step(images, tmp_path, chip, precision, run, flags):
    steps = recorded(run, tmp_path / 'record', 'train_one_epoch', '--data_path', images, '--epochs', 1, '--output_dir',
                     tmp_path / 'out', *precision, *flags, chip=chip, **WITH_STAND_INS)
    assert len(steps) == 4 and not sum(map(reads, steps), [])


@pytest.mark.parametrize('mode', ['batch', 'pair', 'elem'])
def test_augmenting_128_images_launches_as_many_operators_as_augmenting_16(mode):
    run = execute([sys.executable, '-c', AUGMENT, '--data_path', '.', *FULL_RECIPE, '--mixup_mode', mode],
                  **WITH_STAND_INS)
    small, large = json.loads(run.output.split('\n')[-2])
    assert small == large


def test_the_loss_with_tanh_gelu_is_within_its_bound_of_the_exact_one():
    runs = [execute([sys.executable, '-c', LOSS], EMULATED_NPU_GELU=form, **WITH_STAND_INS) for form in ('', 'tanh')]
    exact, tanh = (float(run.output.split()[-1]) for run in runs)
    assert 0 < abs(tanh - exact) < 5e-4
