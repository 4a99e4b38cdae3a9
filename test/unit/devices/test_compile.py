"""torch.compile (--compile) and activation checkpointing (--grad_checkpoint)."""
import json

import pytest
import torch
from conftest import PRETRAIN, ROOT, pretrain, two_processes
from torch import nn

import models_mae
import models_vit
from util.devices import compile
from util.devices.accelerator import Cpu
from util.devices.compile import compile_blocks
from util.distributed.world import World
from util.errors import UserError
from util.models.activation_checkpointing import checkpointed
from util.training.session import Session
from util.training.setup import enable_activation_checkpointing

SIZE = {'img_size': 32, 'patch_size': 8}


@pytest.fixture
def lines(monkeypatch):
    """Warnings logged during the test."""
    logged = []
    monkeypatch.setattr(compile.logger, 'warning', lambda text, *values: logged.append(text % values))
    return logged


@pytest.mark.slow
def test_losses_gradients_and_names_equal_those_of_the_eager_model(lines):
    compile_blocks(models_mae.mae_vit_nano_patch16(**SIZE), torch.device('cpu'))
    if lines:
        pytest.skip(lines[0])       # PyTorch has no torch.compile, or there is no C++ compiler
    torch.manual_seed(0)
    plain, fast = (models_mae.mae_vit_nano_patch16(norm_pix_loss=True, **SIZE).train() for _ in range(2))
    fast.load_state_dict(plain.state_dict())
    compile_blocks(fast, torch.device('cpu'))
    imgs, noise = torch.randn(4, 3, 32, 32), torch.rand(4, 16)
    losses = [model(imgs, .75, noise, loss_only=True) for model in (plain, fast)]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    for (name, one), (other_name, other) in zip(plain.named_parameters(), fast.named_parameters()):
        assert name == other_name
        if one.requires_grad:
            assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-5), name


@pytest.mark.slow
def test_a_run_with_compile_succeeds_on_every_pytorch(images, tmp_path):
    run = pretrain('--data_path', images, '--output_dir', tmp_path, '--epochs', 1, '--compile', process=True)
    assert run.status == 0 and 'Final result' in run.output, run.output


def test_a_failing_compiler_is_one_warning(lines, monkeypatch):
    def fails(self):
        raise RuntimeError('Failed to find C compiler.\nPlease specify it.')

    monkeypatch.setattr(nn.Module, 'compile', fails, raising=False)
    compile_blocks(models_mae.mae_vit_nano_patch16(**SIZE), torch.device('cpu'))
    monkeypatch.delattr(nn.Module, 'compile')
    compile_blocks(models_mae.mae_vit_nano_patch16(**SIZE), torch.device('cpu'))
    assert len(lines) == 2 and '(Failed to find C compiler)' in lines[0] and torch.__version__ in lines[1]


def test_eager_mode_compiles_nothing():
    if not hasattr(getattr(torch, 'compiler', None), 'set_stance'):
        pytest.skip('this torch cannot switch to eager mode')
    class Doubled(nn.Module):
        def forward(self, x):
            return x * 2

    model, compiled = nn.Sequential(Doubled()), []
    model[0].compile(backend=lambda graph, inputs: compiled.append(1) or graph.forward)
    model.compiled = True
    with compile.eager_mode(model):
        model(torch.zeros(1, 2))
    assert not compiled
    model(torch.zeros(1, 2))
    assert len(compiled) == 1


# --grad_checkpoint

def gradients(run_block=None):
    torch.manual_seed(0)
    model = models_vit.vit_nano_patch16(img_size=32, patch_size=8, drop_path_rate=.5, num_classes=4).train()
    if run_block:
        model.run_block = run_block
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.compat
def test_checkpointed_gradients_are_equal_with_the_same_paths_dropped():
    expected = gradients()
    assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients(checkpointed).items())


def test_blocks_are_recomputed_in_the_backward_pass_only():
    calls = []

    class Counted(torch.nn.Sequential):
        def forward(self, x):
            calls.append(self)
            return super().forward(x)

    gradients(lambda block, x: checkpointed(Counted(block), x))
    assert len(calls) == 12
    with torch.no_grad():
        checkpointed(Counted(), torch.ones(1))
    assert len(calls) == 13


@pytest.mark.parametrize('rate', [0., .1])
def test_a_device_that_does_not_preserve_its_rng_is_refused_with_drop_path(rate):
    session = Session(Cpu(), World())
    session.accelerator.checkpoint_preserves_rng = False
    model = models_vit.vit_nano_patch16(img_size=32, patch_size=8, drop_path_rate=rate)
    if rate:
        with pytest.raises(UserError, match='--grad_checkpoint'):
            enable_activation_checkpointing(model, session)
    else:
        enable_activation_checkpointing(model, session)
        assert model.run_block is checkpointed


@pytest.mark.slow
def test_two_processes_train_as_without_checkpointing(images, tmp_path):
    losses = []
    for flags in ([], ['--grad_checkpoint']):
        folder = tmp_path / str(len(flags))
        run = two_processes(ROOT / 'main_pretrain.py', *PRETRAIN, '--data_path', images, '--epochs', 1,
                            '--output_dir', folder, *flags)
        assert run.status == 0, run.output
        losses.append(json.loads((folder / 'log.txt').read_text())['train_loss'])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
