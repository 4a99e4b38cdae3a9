"""torch.compile (--compile) and activation checkpointing (--grad_checkpoint)."""
import pytest
import torch
from conftest import pretrain, succeeded
from test_end_to_end import epochs_of
from torch import distributed, nn

import models_vit
from main_finetune import freeze
from util.devices import compile
from util.devices.accelerator import Cpu
from util.devices.compile import compile_blocks
from util.distributed.world import World
from util.errors import UserError
from util.models.activation_checkpointing import checkpointed
from util.training.session import Session
from util.training.setup import enable_activation_checkpointing


def small_model(**options):
    return models_vit.VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=4,
                                        **options)


@pytest.mark.slow
def test_gradients_and_names_equal_those_of_the_eager_model(caplog):
    plain, fast = small_model(), small_model()
    fast.load_state_dict(plain.state_dict())
    compile_blocks(fast, torch.device('cpu'))
    if [record for record in caplog.records if record.name == 'mae']:
        pytest.skip(caplog.text)    # PyTorch has no torch.compile, or there is no C++ compiler
    imgs = torch.randn(4, 3, 16, 16)
    for model in (plain, fast):
        model(imgs).square().sum().backward()
    for (name, one), (other_name, other) in zip(plain.named_parameters(), fast.named_parameters()):
        assert name == other_name and torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-5), name


def test_blocks_with_different_drop_rates_are_compiled_once(monkeypatch):
    if not hasattr(nn.Module, 'compile'):
        pytest.skip('this torch cannot compile modules')
    graphs, compile_module = [], nn.Module.compile
    backend = lambda graph, inputs: graphs.append(1) or graph.forward  # noqa: E731
    monkeypatch.setattr(nn.Module, 'compile', lambda module: compile_module(module, backend=backend))
    torch.compiler.reset()
    model = small_model(drop_path_rate=.5).train()
    compile_blocks(model, torch.device('cpu'))
    model(torch.randn(4, 3, 16, 16))
    assert len(graphs) == 2         # a probe, and the blocks
    kept = model.blocks[2].drop_path1(torch.ones(1000, 1, 1))
    assert set(kept.flatten().tolist()) == {0., 2.} and .9 < kept.mean() < 1.1
    assert torch.equal(model.blocks[2].eval().drop_path1(kept), kept)


@pytest.mark.slow
def test_a_run_with_compiled_and_checkpointed_blocks_has_the_same_loss(images, pretrained, tmp_path, monkeypatch):
    """Traced as by default, then executed by PyTorch: generating C++ takes a minute."""
    compile_module, calls, used = getattr(nn.Module, 'compile', None), [], []
    monkeypatch.setattr('util.training.setup.checkpointed', lambda *words: used.append(1) or checkpointed(*words))
    if compile_module:
        monkeypatch.setattr(nn.Module, 'compile', lambda module: calls.append(module)
                            or compile_module(module, backend='aot_eager'))
    succeeded(pretrain('--data_path', images, '--output_dir', tmp_path, '--epochs', 1, '--compile',
                       '--grad_checkpoint'))
    loss, expected = (epochs_of(folder)[0]['train_loss'] for folder in (tmp_path, pretrained))
    assert loss == pytest.approx(expected, rel=1e-5) and used
    assert len(calls) == (9 if compile_module else 0)       # a probe, 6 and 2 blocks


def test_a_failing_compiler_is_one_warning(caplog, monkeypatch):
    def fails(self):
        raise RuntimeError('Failed to find C compiler.\nPlease specify it.')

    monkeypatch.setattr(nn.Module, 'compile', fails, raising=False)
    compile_blocks(small_model(), torch.device('cpu'))
    monkeypatch.delattr(nn.Module, 'compile')
    compile_blocks(small_model(), torch.device('cpu'))
    failing, missing = caplog.messages
    assert '(Failed to find C compiler)' in failing and torch.__version__ in missing


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

def gradients(flag, run_block=None, world=None):
    """Those of a model whose --freeze is `flag`."""
    torch.manual_seed(0)
    model = small_model(drop_path_rate=.5).train()
    freeze(model, flag)
    if run_block:
        model.run_block = run_block
    wrapped = (world or World()).wrap_ddp(model, torch.device('cpu'), bucket_view=True)
    wrapped(torch.randn(4, 3, 16, 16)).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def world(tmp_path):
    """A process group of this process alone; models are wrapped as for two."""
    distributed.init_process_group('gloo', init_method='file://{}'.format(tmp_path / 'group'), rank=0, world_size=1)
    yield World(size=2)
    distributed.destroy_process_group()


@pytest.mark.compat
@pytest.mark.parametrize('flag', [None, 0, 'all'])
def test_checkpointed_gradients_are_equal_with_the_same_paths_dropped(world, flag):
    expected, found = gradients(flag), gradients(flag, checkpointed, world)
    assert all(torch.equal(gradient, expected[name]) for name, gradient in found.items())


def test_blocks_are_recomputed_in_the_backward_pass_only():
    calls = []

    def block(x):
        calls.append(x)
        return x * x

    layer = nn.Linear(1, 1)
    layer.forward, x = block, torch.ones(1, requires_grad=True)
    checkpointed(layer, x).sum().backward()
    with torch.no_grad():
        checkpointed(layer, x)
    assert len(calls) == 3


def test_a_device_that_does_not_preserve_its_rng_is_refused_with_drop_path():
    session = Session(Cpu(), World())
    session.accelerator.checkpoint_preserves_rng = False
    enable_activation_checkpointing(small_model(), session)
    with pytest.raises(UserError, match='--grad_checkpoint'):
        enable_activation_checkpointing(small_model(drop_path_rate=.1), session)
