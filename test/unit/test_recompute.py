"""--grad_checkpoint: less memory, the same gradients."""
import json

import pytest
import torch
from conftest import PRETRAIN, ROOT, two_processes

import models_vit
from util import runtime as runtimes
from util.device import Cpu
from util.distributed import World
from util.errors import UserError
from util.recompute import recomputed


def gradients(run_block=None):
    torch.manual_seed(0)
    model = models_vit.vit_nano_patch16(img_size=32, patch_size=8, drop_path_rate=.5, num_classes=4).train()
    if run_block:
        model.run_block = run_block
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.compat
def test_gradients_are_those_without_it_and_the_same_paths_are_dropped():
    expected = gradients()
    assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients(recomputed).items())


def test_blocks_are_computed_again_in_the_backward_pass_only():
    calls = []

    class Counted(torch.nn.Sequential):
        def forward(self, x):
            calls.append(self)
            return super().forward(x)

    gradients(lambda block, x: recomputed(Counted(block), x))
    assert len(calls) == 12
    with torch.no_grad():
        recomputed(Counted(), torch.ones(1))
    assert len(calls) == 13


class ForgetsDrops(Cpu):
    def repeats_drops(self):
        return False


@pytest.mark.parametrize('rate', [0., .1])
def test_a_device_that_would_drop_other_paths_is_refused(rate):
    runtime = runtimes.Runtime(ForgetsDrops(), World())
    model = models_vit.vit_nano_patch16(img_size=32, patch_size=8, drop_path_rate=rate)
    if rate:
        with pytest.raises(UserError, match='--grad_checkpoint'):
            runtime.speed_up(model, False, True)
    else:
        runtime.speed_up(model, False, True)
        assert model.run_block is recomputed


@pytest.mark.slow
def test_two_processes_train_as_they_do_without_it(images, tmp_path):
    losses = []
    for flags in ([], ['--grad_checkpoint']):
        folder = tmp_path / str(len(flags))
        run = two_processes(ROOT / 'main_pretrain.py', *PRETRAIN, '--data_path', images, '--epochs', 1,
                            '--output_dir', folder, *flags)
        assert run.status == 0, run.output
        losses.append(json.loads((folder / 'log.txt').read_text())['train_loss'])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
