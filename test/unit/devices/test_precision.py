"""Choice of the precision, and training in each of them."""
import sys
import types
from contextlib import nullcontext

import pytest
import torch
from twenty_steps import Training

from util.devices import host, precision
from util.devices.accelerator import Accelerator, Cpu
from util.errors import UserError


class Chip(Accelerator):
    """A fake accelerator, for the choice only."""
    name = 'Chip'

    def __init__(self, type, bf16):
        super().__init__(types.SimpleNamespace(is_bf16_supported=lambda: bf16))
        self.type = type


@pytest.mark.parametrize('device, bf16, flags, name', [
    ('cuda', True, {}, 'fp32'),
    ('cuda', True, {'amp': True}, 'native bf16'),
    ('cuda', False, {'amp': True}, 'native fp16, loss scale dynamic'),
    ('cuda', True, {'dtype': 'fp16', 'loss_scale': 2048.}, 'native fp16, loss scale 2048.0'),
    ('npu', False, {'amp': True}, 'apex O2, loss scale dynamic'),
    ('cuda', True, {'backend': 'apex', 'loss_scale': 128.}, 'apex O2, loss scale 128.0'),
    ('cpu', False, {'amp': True}, 'fp32'),
    ('cpu', True, {'amp': True}, 'native bf16'),
])
def test_the_flags_and_the_device_choose(apex, monkeypatch, device, bf16, flags, name):
    monkeypatch.setattr(precision, '_autocast_factory', lambda accelerator, dtype: nullcontext)
    monkeypatch.setattr(precision, 'LossScale', lambda device, scale: None)
    monkeypatch.setattr(host, 'cpu_flags', lambda: {'avx2', 'avx512_bf16'} if bf16 else {'avx2'})
    accelerator = Cpu() if device == 'cpu' else Chip(device, bf16)
    assert precision.choose_precision(accelerator, **flags).name == name


@pytest.mark.parametrize('device, flags, named', [
    (Cpu(), {'dtype': 'fp16'}, '--amp_dtype fp16'), (Cpu(), {'backend': 'apex'}, '--amp_backend apex'),
    (Chip('cuda', False), {'dtype': 'bf16'}, '--amp_dtype bf16'),
    (Chip('npu', True), {'backend': 'apex', 'dtype': 'bf16'}, '--amp_dtype bf16')])
def test_an_unsupported_precision_is_an_error_that_names_the_flag(apex, device, flags, named):
    with pytest.raises(UserError, match=named):
        precision.choose_precision(device, **flags)


def old_chip(**amp):
    """A device with an autocast of its own, which torch.autocast does not support."""
    chip = Chip('npu', False)
    chip.module = types.SimpleNamespace(amp=types.SimpleNamespace(**amp))
    return chip


@pytest.mark.compat
def test_older_npu_builds_use_their_own_autocast_with_bf16_if_it_takes_a_dtype():
    factory = precision._autocast_factory
    of_1_8 = old_chip(autocast=lambda enabled=True: 'fp16')
    assert factory(of_1_8, torch.float16)() == 'fp16' and factory(of_1_8, torch.bfloat16) is None
    of_1_11 = old_chip(autocast=lambda enabled=True, dtype=torch.float16: dtype)
    assert factory(of_1_11, torch.bfloat16)() == torch.bfloat16


@pytest.mark.parametrize('package', [None, types.ModuleType("PyPI's")])         # the latter has no amp
def test_an_npu_without_autocast_or_apex_trains_in_fp32_unless_the_backend_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, 'apex', package)
    assert precision.choose_precision(old_chip(), amp=True).name == 'fp32'
    for backend in ('native', 'apex'):
        with pytest.raises(UserError, match='--amp_backend ' + backend):
            precision.choose_precision(old_chip(), backend=backend)


def test_bf16_on_the_cpu_computes_in_bf16_and_trains_like_fp32():
    if precision._autocast_factory(Cpu(), torch.bfloat16) is None:
        pytest.skip('this torch has no autocast on the CPU')
    losses, exact = (Training(chosen).steps(0, 20) for chosen in (
        precision.choose_precision(Cpu(), dtype='bf16'), precision.FullPrecision()))
    assert losses != exact and losses == pytest.approx(exact, rel=.01) and losses[-1] < losses[0]


@pytest.fixture
def scaled(monkeypatch):
    """Builds the fp16 precision with its scaler; it computes in fp32."""
    monkeypatch.setattr(precision, '_autocast_factory', lambda accelerator, dtype: nullcontext)
    return lambda loss_scale: precision.NativeAmp(Cpu(), torch.float16, loss_scale)


@pytest.mark.compat
def test_scaled_losses_give_the_steps_of_fp32(scaled):
    losses, exact = (Training(chosen).steps(0, 20) for chosen in (scaled('dynamic'), precision.FullPrecision()))
    assert losses == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize('loss_scale, after', [('dynamic', 32768.), (2048., 2048.)])
def test_an_overflow_skips_the_step_and_halves_a_dynamic_scale_which_is_saved(scaled, loss_scale, after):
    chosen, weight = scaled(loss_scale), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([weight], lr=.1)
    chosen.backward((weight * float('inf')).sum(), optimizer)
    assert chosen.step(optimizer) == 1 and weight.item() == 1. and chosen.loss_scale == after
    other = scaled(loss_scale)
    other.load_state_dict(chosen.state_dict())
    assert other.state_dict() == chosen.state_dict()
    other.backward(weight.sum(), optimizer)
    assert other.step(optimizer) == 0 and weight.item() < 1. and other.loss_scale == after
