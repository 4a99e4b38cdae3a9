"""--compile and --grad_checkpoint: what they change, and what is said where they do not work."""
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
    """What is said while the test runs."""
    said = []
    monkeypatch.setattr(compile.logger, 'warning', lambda text, *values: said.append(text % values))
    return said


@pytest.mark.slow
def test_losses_and_gradients_are_those_of_the_plain_model_under_the_same_names(lines):
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
def test_a_run_with_it_goes_through_whatever_pytorch_can(images, tmp_path):
    run = pretrain('--data_path', images, '--output_dir', tmp_path, '--epochs', 1, '--compile')
    assert run.status == 0 and 'Final result' in run.output, run.output


def test_where_it_does_not_work_one_line_says_why(lines, monkeypatch):
    def fails(self):
        raise RuntimeError('Failed to find C compiler.\nPlease specify it.')

    monkeypatch.setattr(nn.Module, 'compile', fails, raising=False)
    compile_blocks(models_mae.mae_vit_nano_patch16(**SIZE), torch.device('cpu'))
    monkeypatch.delattr(nn.Module, 'compile')
    compile_blocks(models_mae.mae_vit_nano_patch16(**SIZE), torch.device('cpu'))
    assert len(lines) == 2 and '(Failed to find C compiler)' in lines[0] and torch.__version__ in lines[1]


def test_reconstructions_within_a_training_do_not_wait_for_the_compiler():
    if not hasattr(getattr(torch, 'compiler', None), 'set_stance'):
        pytest.skip('this torch cannot leave compiled code aside')
    class Doubled(nn.Module):
        def forward(self, x):
            return x * 2

    model, compiled = nn.Sequential(Doubled()), []
    model[0].compile(backend=lambda graph, inputs: compiled.append(1) or graph.forward)
    model.compiled = True
    with compile.eagerly(model):
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
def test_gradients_are_those_without_it_and_the_same_paths_are_dropped():
    expected = gradients()
    assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients(checkpointed).items())


def test_blocks_are_computed_again_in_the_backward_pass_only():
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
def test_a_device_that_would_drop_other_paths_is_refused(rate):
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
def test_two_processes_train_as_they_do_without_it(images, tmp_path):
    losses = []
    for flags in ([], ['--grad_checkpoint']):
        folder = tmp_path / str(len(flags))
        run = two_processes(ROOT / 'main_pretrain.py', *PRETRAIN, '--data_path', images, '--epochs', 1,
                            '--output_dir', folder, *flags)
        assert run.status == 0, run.output
        losses.append(json.loads((folder / 'log.txt').read_text())['train_loss'])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
