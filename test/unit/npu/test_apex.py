"""Training through the stand-in for Ascend's apex: loss scale, master weights, clipping, accumulation, checkpoints."""
import argparse
from types import SimpleNamespace

import pytest
import torch

import models_mae
from util import checkpoint, checkpoint_file, weights
from util.device import Cpu
from util.precision import ApexO2, FullPrecision
from util.updates import WeightUpdates, decay_groups

from .conftest import require_emulator

require_emulator()          # an older torch does not train in fp16 on the CPU


class Training:
    """What main_pretrain.train does, on drawn images: a nano masked autoencoder, restored from `path` if given."""

    def __init__(self, precision, path=None, ema=None):
        torch.manual_seed(0)
        self.precision, resumed = precision, checkpoint.Resumed(path)
        model = models_mae.mae_vit_nano_patch16(img_size=32, patch_size=8)
        resumed.restore_model(model)
        optimizer = precision.adamw(Cpu(), decay_groups(model, .05), lr=1e-3, betas=(.9, .95))
        self.model, self.optimizer = precision.prepare(model, optimizer)
        resumed.restore_training(self.optimizer, precision)
        self.average = resumed.average(ema, precision.trained_weights(self.model, self.optimizer))
        self.updates = WeightUpdates(self.model, self.optimizer, precision, lambda epoch: 1e-3, clip_grad=1.,
                                     average=self.average)

    def steps(self, first, end, overflow=None):
        """Losses of steps `first` to `end` - 1; the gradients of step `overflow` are not finite."""
        losses = []
        for i in range(first, end):
            torch.manual_seed(i)
            images = torch.rand(4, 3, 32, 32)
            with self.updates.iteration(i, end, epoch=0):
                loss, _, _ = self.model(images)
                self.updates.backward(loss * 1e30 if i == overflow else loss)
            losses.append(loss.item())
        return losses

    def checkpoint(self):
        return checkpoint.training_state(self.model, self.optimizer, self.precision, 0, argparse.Namespace(),
                                         self.average)

    def save(self, path):
        """A checkpoint at `path`; gives `path`."""
        checkpoint_file.save(str(path), self.checkpoint())
        return str(path)

    def state(self):
        """All that a resumed run starts from, as one flat dict."""
        held = self.checkpoint()
        average = {('average', name): value for name, value in held.get('model_ema', {}).items()}
        moments = {(key, name): value for key, state in held['optimizer']['state'].items()
                   for name, value in state.items()}
        return {**held['model'], **moments, **average, 'scaler': held['scaler']}


def differing(one, other):
    """Names of the values that are not the same to the last bit."""
    assert one.keys() == other.keys()
    return [name for name, value in one.items()
            if not (torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name])]


class Net(torch.nn.Module):
    """Two layers in a row, the second of which may be left out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.LayerNorm(16), torch.nn.GELU())
        self.second, self.head = torch.nn.Linear(16, 16), torch.nn.Linear(16, 1)

    def forward(self, x, whole=True):
        x = self.first(x)
        return self.head(self.second(x) if whole else x)


def batch(i, size=16):
    """(inputs, targets) of step `i`."""
    x = torch.randn(size, 8, generator=torch.Generator().manual_seed(i))
    return x, x.sum(dim=1, keepdim=True)


# Loss scale

def test_an_overflow_halves_the_dynamic_scale_and_skips_the_step(apex):
    run = Training(ApexO2(apex))
    run.steps(0, 2)
    before = {name: value.clone() for name, value in run.state().items() if torch.is_tensor(value)}
    run.steps(2, 3, overflow=2)
    after = run.state()
    assert after.pop('scaler') == {'loss_scaler0': {'loss_scale': 2. ** 15, 'unskipped': 0}}
    assert not differing(before, {name: value for name, value in after.items() if name in before})
    assert run.updates.bad_steps.skipped == 1
    run.steps(3, 5)
    assert run.updates.bad_steps.skipped == 1 and run.state()['scaler']['loss_scaler0']['unskipped'] == 2
    assert differing(before, {name: value for name, value in run.state().items() if name in before})


def test_an_overflow_anywhere_in_a_window_skips_its_one_step(apex):
    run = Training(ApexO2(apex))
    run.updates.accum_iter = 2
    run.steps(0, 4, overflow=0)
    assert run.updates.bad_steps.skipped == 1
    assert run.state()['scaler'] == {'loss_scaler0': {'loss_scale': 2. ** 15, 'unskipped': 3}}
    assert run.optimizer.state_dict()['state'][0]['step'] == 1


@pytest.mark.parametrize('scale', [2048., '2048'])
def test_a_static_scale_stays_and_a_step_that_is_not_finite_is_skipped(apex, scale):
    run = Training(ApexO2(apex, scale))
    run.steps(0, 2)
    assert run.state()['scaler'] == {'loss_scaler0': {'loss_scale': 2048., 'unskipped': 2}}
    losses = run.steps(2, 4, overflow=2)
    assert run.state()['scaler']['loss_scaler0']['loss_scale'] == 2048. and run.updates.bad_steps.skipped == 1
    assert losses[1] == losses[1]       # apex itself would have taken the step, and lost the weights


# Training

def test_the_masters_begin_as_the_exact_weights(apex):
    plain, run = Training(FullPrecision()), Training(ApexO2(apex))
    assert not differing(plain.model.state_dict(), run.precision.model_state(run.model, run.optimizer))
    assert run.model.blocks[0].mlp.fc1.weight.dtype == torch.float16
    assert all(p.dtype == torch.float32 for group in run.optimizer.param_groups for p in group['params'])


def gradients_in_one_buffer(model):
    return len({p.grad.data_ptr() - p.grad.storage_offset() * p.grad.element_size()
                for p in model.parameters() if p.requires_grad}) == 1


def nvidia_initialize(apex):
    """amp.initialize as NVIDIA's apex has it: without Ascend's keywords."""
    def initialize(models, optimizers=None, opt_level='O1', loss_scale=None, verbosity=1):
        return apex.amp.initialize(models, optimizers, opt_level=opt_level, loss_scale=loss_scale, verbosity=verbosity)
    return initialize


@pytest.mark.parametrize('kind', ['ascend', 'ascend without optimizers', 'nvidia'])
def test_apex_o2_follows_fp32_training(apex, kind):
    package = apex if kind == 'ascend' else SimpleNamespace(amp=apex.amp)
    if kind == 'nvidia':
        members = {name: getattr(apex.amp, name) for name in ('scale_loss', 'state_dict')}
        package.amp = SimpleNamespace(initialize=nvidia_initialize(apex), **members)
    run = Training(ApexO2(package))
    losses, exact = run.steps(0, 10), Training(FullPrecision()).steps(0, 10)
    assert losses == pytest.approx(exact, rel=3e-3) and losses[-1] < .9 * losses[0] and losses != exact
    if kind != 'nvidia':
        assert gradients_in_one_buffer(run.model)
        assert type(run.optimizer).__name__ == ('NpuFusedAdamW' if kind == 'ascend' else 'AdamW')


def sgd_step(apex, scale, batches, clip_grad=None):
    """How far one window of SGD at rate 1 over `batches` moves each weight."""
    precision, model = ApexO2(apex, scale), Net()
    model, optimizer = precision.prepare(model, torch.optim.SGD(model.parameters(), lr=1.))
    before = precision.model_state(model, optimizer)
    before = {name: value.clone() for name, value in before.items()}
    updates = WeightUpdates(model, optimizer, precision, lambda epoch: 1., len(batches), clip_grad)
    for i, (x, y) in enumerate(batches):
        with updates.iteration(i, len(batches), epoch=0):
            updates.backward((model(x) - y).pow(2).mean())
    after = precision.model_state(model, optimizer)
    return torch.cat([(after[name] - before[name]).flatten() for name in before])


def test_clipping_acts_on_unscaled_master_gradients(apex):
    free = sgd_step(apex, 1024., [batch(0)])
    assert free.norm() > 1
    clipped = sgd_step(apex, 1024., [batch(0)], clip_grad=.1)
    assert clipped.norm().item() == pytest.approx(.1, rel=1e-3)
    assert torch.allclose(clipped / clipped.norm(), free / free.norm(), atol=1e-3)
    assert torch.allclose(sgd_step(apex, 1024., [batch(0)], clip_grad=100.), free)      # scaled ones would be clipped


def test_a_window_of_small_batches_steps_as_one_large_batch(apex):
    x, y = batch(0, size=32)
    whole = sgd_step(apex, 'dynamic', [(x, y)])
    parts = sgd_step(apex, 'dynamic', [(x[i:i + 8], y[i:i + 8]) for i in range(0, 32, 8)])
    assert torch.allclose(parts, whole, rtol=5e-3, atol=5e-3)


def test_what_has_no_gradient_at_first_is_updated_later(apex):
    """apex itself would leave it out for good."""
    precision, model = ApexO2(apex), Net()
    optimizer = precision.adamw(Cpu(), model.parameters(), lr=.01, weight_decay=0.)
    model, optimizer = precision.prepare(model, optimizer)
    before = model.second.weight.detach().clone()
    for i in range(5):
        x, y = batch(i)
        precision.backward((model(x, whole=i > 0) - y).pow(2).mean(), optimizer)
        precision.step(optimizer)
    assert (model.second.weight.detach() - before).abs().max() > .01


# Checkpoints

@pytest.mark.parametrize('scale', ['dynamic', 2048.])
def test_a_resumed_run_continues_to_the_last_bit(apex, tmp_path, scale):
    overflow = 2 if scale == 'dynamic' else None
    whole = Training(ApexO2(apex, scale), ema=.9)
    losses = whole.steps(0, 10, overflow)
    expected = whole.state()
    begun = Training(ApexO2(apex, scale), ema=.9)
    first = begun.steps(0, 5, overflow)
    resumed = Training(ApexO2(apex, scale), begun.save(tmp_path / 'checkpoint-0.pth'), ema=.9)
    assert not differing(resumed.state(), begun.state())
    assert first + resumed.steps(5, 10) == losses
    assert not differing(resumed.state(), expected)
    assert resumed.updates.bad_steps.skipped == 0         # of its own steps


def test_the_average_is_of_the_masters(apex, tmp_path):
    run = Training(ApexO2(apex), ema=.9)
    run.steps(0, 4, overflow=2)
    saved = checkpoint_file.load(run.save(tmp_path / 'a.pth'), as_trained=True)
    average = saved['model_ema']['norm.weight']
    assert saved['ema_updates'] == 3 and average.dtype == torch.float32
    assert not torch.equal(average, average.half().float())


def test_the_checkpoint_is_a_plain_fp32_one(apex, tmp_path):
    run = Training(ApexO2(apex))
    run.steps(0, 3)
    saved = checkpoint_file.load(run.save(tmp_path / 'a.pth'))['model']
    plain = Training(FullPrecision())
    assert {value.dtype for value in saved.values()} == {torch.float32}
    assert torch.equal(saved['pos_embed'], plain.model.pos_embed)                   # frozen, and not rounded either
    assert not torch.equal(saved['norm.weight'], saved['norm.weight'].half().float())
    weights.load_model(plain.model, saved, 'a.pth')
    torch.manual_seed(1)
    mine = run.model(torch.ones(2, 3, 32, 32))[0].item()
    torch.manual_seed(1)
    assert plain.model(torch.ones(2, 3, 32, 32))[0].item() == pytest.approx(mine, rel=3e-3)


def test_an_fp32_run_continues_in_o2_with_its_count_of_steps(apex, tmp_path):
    """The count is a tensor in fp32; apex would count such a one twice a step."""
    exact = Training(FullPrecision())
    exact.steps(0, 3)
    run = Training(ApexO2(apex), exact.save(tmp_path / 'fp32.pth'))
    assert run.steps(3, 6) == pytest.approx(exact.steps(3, 6), rel=3e-3)
    assert run.optimizer.state_dict()['state'][0]['step'] == 6
