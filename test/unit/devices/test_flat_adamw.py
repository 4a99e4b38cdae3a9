"""FlatAdamW, the optimizer of NPUs, on the CPU: against torch.optim.AdamW, and its loss scale."""
import pytest
import torch

from util.checkpoints.checkpointer import load_optimizer
from util.devices import flat_adamw
from util.devices.flat_adamw import FlatAdamW, LossScale

pytestmark = pytest.mark.compat
GOOD, BAD = torch.tensor(True), torch.tensor(False)


def build(kind):
    """(optimizer of two groups, its parameters)."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(*shape)) for shape in ((3, 5), (7,), (130, 2))]
    return kind([{'params': parameters[:2], 'weight_decay': 0., 'lr_scale': .5},
                 {'params': parameters[2:], 'weight_decay': .1}], lr=.1, betas=(.9, .95)), parameters


def train(optimizer, parameters, first, end):
    """Weights after steps `first` to `end` - 1, each with its gradient, clipped if large, and learning rate."""
    flat = isinstance(optimizer, FlatAdamW)
    for i in range(first, end):
        torch.manual_seed(i)
        optimizer.zero_grad()
        sum((p * torch.randn_like(p) * 10. ** (i % 3 - 3)).sum() for p in parameters).backward()
        optimizer.clip_grad_norm_(1.) if flat else torch.nn.utils.clip_grad_norm_(parameters, 1.)
        for group in optimizer.param_groups:
            group['lr'] = .1 / (i + 1) * group.get('lr_scale', 1.)
        optimizer.step(*[GOOD] * flat)
    return [p.detach().clone() for p in parameters]


def resumed(kind, saved, weights):
    """(optimizer, its parameters) with the state of another and its weights."""
    optimizer, parameters = build(kind)
    for parameter, weight in zip(parameters, weights):
        parameter.data.copy_(weight)
    load_optimizer(optimizer, saved.state_dict(), 'x')
    return optimizer, parameters


def close(one, other):
    return all(torch.allclose(*pair, rtol=1e-5, atol=1e-7) for pair in zip(one, other))


def test_it_follows_torchs_adamw_and_they_continue_each_others_checkpoints():
    own, torchs = build(FlatAdamW), build(torch.optim.AdamW)
    assert close(train(*own, 0, 20), train(*torchs, 0, 20))
    swapped = resumed(torch.optim.AdamW, *own), resumed(FlatAdamW, *torchs)
    expected = train(*torchs, 20, 25)
    assert all(close(train(*run, 20, 25), expected) for run in swapped)


@pytest.mark.parametrize('first', [0, 3])       # of all steps, or a later one
@pytest.mark.parametrize('value', [float('inf'), float('nan'), 1.])
def test_a_skipped_step_leaves_no_trace(first, value):
    (optimizer, parameters), plain = build(FlatAdamW), build(FlatAdamW)
    train(optimizer, parameters, 0, first), train(*plain, 0, first)
    optimizer.gradients.fill_(value)
    optimizer.step(BAD)
    for end in (first, first + 3):
        assert all(map(torch.equal, train(optimizer, parameters, first, end), train(*plain, first, end)))
        for one, other in zip(parameters, plain[1]):
            assert all(map(torch.equal, optimizer.state[one].values(), plain[0].state[other].values()))


def test_a_dynamic_scale_grows_and_shrinks_as_torchs_and_a_fixed_one_stays(monkeypatch):
    monkeypatch.setattr(flat_adamw, 'GROWTH_INTERVAL', 3)
    scale, fixed, found = LossScale(torch.device('cpu')), LossScale(torch.device('cpu'), 100.), []
    for skipped in (1, 0, 0, 1, 0, 0, 0, 0):
        scale.update(torch.tensor(skipped)), fixed.update(torch.tensor(skipped))
        found.append(scale.state_dict()['scale'] / 2 ** 16)
    assert found == [.5, .5, .5, .25, .25, .25, .5, .5] and scale.state_dict()['_growth_tracker'] == 1
    assert fixed.scale(GOOD).item() == 100.
    scale.load_state_dict({'loss_scaler0': {'loss_scale': 2., 'unskipped': 1}})       # of apex
    assert scale.state_dict()['scale'] == 2 ** 15
    if hasattr(getattr(torch, 'amp', None), 'GradScaler'):
        torchs, other = torch.amp.GradScaler('cpu'), LossScale(torch.device('cpu'))
        torchs.load_state_dict(scale.state_dict())
        torchs.scale(torch.ones(1))             # makes its tensors
        other.load_state_dict(torchs.state_dict())
        assert other.state_dict() == scale.state_dict() == torchs.state_dict()
