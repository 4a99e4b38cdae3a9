"""Training with an emulation of Ascend's apex: loss scale, master weights, clipping, accumulation, checkpoints."""
from types import SimpleNamespace

import pytest
import torch
from test_end_to_end import same
from twenty_steps import Training

from util.checkpoints import pth_file
from util.devices.accelerator import Cpu
from util.devices.precision import ApexO2, FullPrecision

# Training

def nvidias(apex):
    """NVIDIA's apex: without Ascend's keywords and optimizers."""
    def initialize(models, optimizers=None, opt_level='O1', loss_scale=None, verbosity=1):
        return apex.amp.initialize(models, optimizers, opt_level, loss_scale, verbosity, combine_grad=True)
    return SimpleNamespace(amp=SimpleNamespace(initialize=initialize, scale_loss=apex.amp.scale_loss,
                                               state_dict=apex.amp.state_dict))


@pytest.mark.parametrize('kind, optimizer', [(lambda apex: apex, 'NpuFusedAdamW'), (nvidias, 'AdamW')],
                         ids=['ascend', 'nvidia'])
def test_apex_o2_starts_with_the_exact_weights_and_follows_fp32_training(apex, kind, optimizer):
    run, plain = Training(ApexO2(kind(apex))), Training(FullPrecision())
    assert same(plain.model.state_dict(), run.precision.model_state(run.model, run.optimizer))      # not rounded
    losses, exact = run.steps(0, 6), plain.steps(0, 6)
    assert losses == pytest.approx(exact, rel=3e-3) and losses[-1] < losses[0] and losses != exact
    assert type(run.optimizer).__name__ == optimizer


@pytest.mark.parametrize('clip_grad, moved', [(None, 5.), (.1, .1), (100., 5.)])     # scaled ones are > 100
def test_the_gradients_of_a_window_add_up_and_are_clipped_without_their_scale(apex, clip_grad, moved):
    precision, model = ApexO2(apex, 1024.), torch.nn.Linear(2, 1, bias=False)
    model, optimizer = precision.prepare(model, torch.optim.SGD(model.parameters(), lr=1.))
    before = model.weight.detach().float()
    for x in ([1., 2.], [2., 2.]):
        precision.backward(model(torch.tensor([x])).sum(), optimizer)
    precision.step(optimizer, clip_grad)
    weight = precision.model_state(model, optimizer)['weight']
    assert (weight - before).norm().item() == pytest.approx(moved, rel=.01)


def test_a_parameter_without_a_gradient_in_the_first_backward_is_updated_later(apex):
    """apex itself would never update it."""
    precision, model = ApexO2(apex), torch.nn.ModuleList([torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)])
    model, optimizer = precision.prepare(model, precision.adamw(Cpu(), model.parameters(), lr=.1))
    before = model[1].bias.item()
    for layer in model:
        precision.backward(layer(torch.ones(1, 1).half()).sum(), optimizer)
        precision.step(optimizer)
    assert model[1].bias.item() != before


# Checkpoints

def test_the_checkpoint_and_its_ema_are_in_fp32(apex, tmp_path):
    run, plain = Training(ApexO2(apex), ema=.9), Training(FullPrecision())
    run.steps(0, 4, overflow=2)
    run.save(str(tmp_path / 'a.pth'))
    saved = pth_file.load(str(tmp_path / 'a.pth'), as_trained=True)
    assert {value.dtype for value in saved['model'].values()} == {torch.float32} and saved['ema_updates'] == 3
    assert torch.equal(saved['model']['pos_embed'], plain.model.pos_embed)                   # frozen, not rounded
    for weights in (saved['model'], saved['model_ema']):        # of the masters
        assert not torch.equal(weights['norm.weight'], weights['norm.weight'].half().float())
    plain.model.load_state_dict(saved['model'])
    losses = []
    for model in (run.model, plain.model):
        torch.manual_seed(1)
        losses.append(model(torch.ones(2, 3, 32, 32))[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=3e-3)


def test_an_fp32_run_resumes_in_o2_with_its_step_count(apex, tmp_path):
    """In fp32 the count is a tensor, which apex would increment twice per step."""
    exact = Training(FullPrecision())
    exact.steps(0, 3)
    exact.save(str(tmp_path / 'fp32.pth'))
    run = Training(ApexO2(apex), str(tmp_path / 'fp32.pth'))
    assert run.steps(3, 6) == pytest.approx(exact.steps(3, 6), rel=3e-3)
    assert run.optimizer.state_dict()['state'][0]['step'] == 6
