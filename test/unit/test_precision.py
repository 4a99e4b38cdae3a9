"""Which precision is chosen, and that each one trains."""
import contextlib
import sys
import types

import pytest
import torch

from util import precision
from util.device import Cpu
from util.errors import UserError


class Chip(Cpu):
    """An accelerator in name, for choosing; its arithmetic stays on the CPU."""
    is_accelerator = True

    def __init__(self, type, bf16):
        super().__init__()
        self.type, self.bf16, self.module = type, bf16, torch.cuda

    name = property(lambda self: 'Chip')

    def supports_bf16(self):
        return self.bf16


@pytest.fixture
def apex(monkeypatch):
    """An importable package that looks like apex with amp."""
    package, amp = types.ModuleType('apex'), types.ModuleType('apex.amp')
    amp.initialize, package.amp = (lambda model, optimizer=None, **options: (model, optimizer)), amp
    monkeypatch.setitem(sys.modules, 'apex', package)
    monkeypatch.setitem(sys.modules, 'apex.amp', amp)


@pytest.mark.parametrize('device, bf16, flags, name', [
    ('cuda', True, {}, 'fp32'),
    ('cuda', True, {'amp': True}, 'native bf16'),
    ('cuda', False, {'amp': True}, 'native fp16, loss scale dynamic'),
    ('cuda', False, {'amp': True, 'loss_scale': 2048.}, 'native fp16, loss scale 2048.0'),
    ('cuda', True, {'dtype': 'fp16'}, 'native fp16, loss scale dynamic'),
    ('cuda', True, {'amp': True, 'backend': 'none'}, 'fp32'),
    ('npu', False, {'amp': True}, 'apex O2, loss scale dynamic'),
    ('npu', True, {'amp': True}, 'apex O2, loss scale dynamic'),
    ('cuda', True, {'backend': 'apex', 'loss_scale': 128.}, 'apex O2, loss scale 128.0'),
    ('cpu', True, {'amp': True}, 'fp32'),
    ('cpu', True, {'dtype': 'bf16'}, 'native bf16'),
])
def test_the_flags_and_the_device_choose(apex, monkeypatch, device, bf16, flags, name):
    monkeypatch.setattr(precision, '_autocast_factory', lambda accelerator, dtype: precision.nothing)
    monkeypatch.setattr(precision, '_new_scaler', lambda accelerator, scale: None)
    accelerator = Cpu() if device == 'cpu' else Chip(device, bf16)
    assert precision.choose(accelerator, **flags).name == name


@pytest.mark.parametrize('flags, words', [
    ({'dtype': 'fp16'}, '--amp_dtype fp16: needs an accelerator'),
    ({'backend': 'apex'}, '--amp_backend apex: needs an accelerator')])
def test_what_a_cpu_cannot_do_is_refused_by_name(flags, words):
    with pytest.raises(UserError, match=words):
        precision.choose(Cpu(), **flags)


def test_bf16_on_a_card_without_it_is_refused_by_name():
    with pytest.raises(UserError, match='--amp_dtype bf16: Chip does not support it'):
        precision.choose(Chip('cuda', False), dtype='bf16')


def test_apex_asked_for_by_name_and_not_there_is_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, 'apex', None)
    with pytest.raises(UserError, match="--amp_backend apex: .*the package 'apex' on PyPI is another project"):
        precision.choose(Chip('cuda', True), backend='apex')


def test_the_unrelated_apex_of_pypi_is_not_taken_for_amp(monkeypatch):
    monkeypatch.setitem(sys.modules, 'apex', types.ModuleType('apex'))
    with pytest.raises(UserError, match='--amp_backend apex'):
        precision.choose(Chip('cuda', True), backend='apex')


class FakeAmp:
    """O2 in the small: a half-precision model, masters made from it at the first zero_grad, scaled loss."""

    def initialize(self, model, optimizer=None, opt_level='O2', loss_scale='dynamic', combine_grad=None, verbosity=1):
        assert opt_level == 'O2' and combine_grad is True
        self.scale = 128. if loss_scale == 'dynamic' else loss_scale
        model.half()
        forward = model.forward
        model.forward = lambda *args: forward(*[arg.half() for arg in args]).float()
        self.pairs, zero_grad, step = [], optimizer.zero_grad, optimizer.step

        def lazy_zero_grad():
            if not self.pairs:
                for group in optimizer.param_groups:
                    for i, p in enumerate(group['params']):
                        group['params'][i] = torch.nn.Parameter(p.detach().float())
                        self.pairs.append((p, group['params'][i]))
            zero_grad()
            for p, _ in self.pairs:
                p.grad = None

        def step_and_copy():
            step()
            for p, master in self.pairs:
                p.data.copy_(master.data)
        optimizer.zero_grad, optimizer.step = lazy_zero_grad, step_and_copy
        return model, optimizer

    @contextlib.contextmanager
    def scale_loss(self, loss, optimizer):
        yield loss * self.scale
        for p, master in self.pairs:
            gradient = p.grad.float() / self.scale
            master.grad = gradient if master.grad is None else master.grad + gradient
            p.grad = None

    def master_params(self, optimizer):
        return (p for group in optimizer.param_groups for p in group['params'])

    def state_dict(self):
        return {'scale': self.scale}

    def load_state_dict(self, state):
        self.scale = state['scale']


def half_linear_works():
    try:
        torch.nn.functional.linear(torch.ones(2, 2).half(), torch.ones(2, 2).half(), torch.ones(2).half())
    except RuntimeError:
        return False
    return True


@pytest.mark.skipif(not half_linear_works(), reason='this torch has no fp16 matrix product on the CPU')
def test_apex_o2_trains_and_keeps_exact_fp32_weights():
    chosen = precision.ApexO2(types.SimpleNamespace(amp=FakeAmp()), 128.)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = chosen.adamw(Cpu(), model.parameters(), lr=.01)
    model, optimizer = chosen.prepare(model, optimizer)
    exact = chosen.model_state(model, optimizer)
    assert all(torch.equal(exact[name], value) for name, value in before.items())       # not rounded to fp16
    assert model.state_dict()['0.weight'].dtype == torch.float16
    for part in torch.randn(2, 8, 4):
        chosen.backward(model(part).pow(2).mean() / 2, optimizer)
    chosen.step(optimizer, clip_grad=.1)
    after = chosen.model_state(model, optimizer)
    moved = (after['0.weight'] - before['0.weight']).abs()
    assert 0 < moved.max() < .011 and after['0.weight'].dtype == torch.float32
    assert torch.equal(model.state_dict()['0.weight'], after['0.weight'].half())


def train(chosen, steps=30):
    """Losses of a small regression."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.GELU(), torch.nn.Linear(16, 1))
    optimizer = chosen.adamw(Cpu(), model.parameters(), lr=.02)
    model, optimizer = chosen.prepare(model, optimizer)
    x = torch.randn(64, 4)
    y = x.sum(dim=1, keepdim=True)
    losses = []
    for _ in range(steps):
        with chosen.autocast():
            out = model(x)
        loss = (out.float() - y).pow(2).mean()
        chosen.backward(loss, optimizer)
        chosen.step(optimizer, clip_grad=5.)
        losses.append(loss.item())
    return losses


def test_bf16_on_the_cpu_computes_in_bf16_and_trains_like_fp32():
    if precision._autocast_factory(Cpu(), torch.bfloat16) is None:
        pytest.skip('this torch has no autocast on the CPU')
    chosen = precision.choose(Cpu(), dtype='bf16')
    with chosen.autocast():
        assert torch.nn.functional.linear(torch.ones(1, 2), torch.ones(2, 2)).dtype == torch.bfloat16
    losses, exact = train(chosen), train(precision.FullPrecision())
    assert losses != exact
    assert losses[-1] == pytest.approx(exact[-1], rel=.1) and losses[-1] < .5 * losses[0]


class Scaled(precision.NativeAmp):
    """fp16 with a scaler, as a device without bf16 has it; torch's scaler also runs on the CPU where there is one."""

    def __init__(self, loss_scale):
        super().__init__(Cpu(), torch.float16, loss_scale)
        self._autocast = precision.nothing


@pytest.fixture
def scaler():
    if not (hasattr(torch, 'amp') and hasattr(torch.amp, 'GradScaler')):
        pytest.skip('this torch has no gradient scaler for the CPU')


@pytest.mark.parametrize('loss_scale', ['dynamic', 2048.])
def test_scaled_losses_give_the_steps_of_fp32(scaler, loss_scale):
    assert train(Scaled(loss_scale)) == pytest.approx(train(precision.FullPrecision()), rel=1e-4)


def test_an_overflow_skips_the_step_and_a_fixed_scale_stays(scaler):
    chosen, weight = Scaled(2048.), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([weight], lr=.1)
    chosen.backward((weight * float('inf')).sum(), optimizer)
    chosen.step(optimizer)
    assert weight.item() == 1. and chosen.state_dict()['scale'] == 2048.
    chosen.backward(weight.sum(), optimizer)
    chosen.step(optimizer)
    assert weight.item() < 1. and chosen.state_dict()['scale'] == 2048.


def test_the_scaler_remembers_its_scale(scaler):
    chosen, weight = Scaled('dynamic'), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([weight], lr=.1)
    chosen.backward((weight * float('inf')).sum(), optimizer)
    chosen.step(optimizer)
    other = Scaled('dynamic')
    other.load_state_dict(chosen.state_dict())
    assert other.state_dict() == chosen.state_dict()
    assert other.state_dict()['scale'] < 65536.
