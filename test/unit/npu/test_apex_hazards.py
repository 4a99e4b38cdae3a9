"""The hazards of Ascend's apex, and that util.precision.ApexO2 steps around each of them.

A test first shows the naive program that its hazard catches, then ours.
"""
import pytest
import torch

import models_mae
from util import checkpoint_file
from util.device import Cpu
from util.param_groups import decay_groups
from util.precision import ApexO2, FullPrecision

from .small_training import Training, batch, computes_in_half, differing, small_net, train_naively

if not computes_in_half():
    pytest.skip('this torch does not train in fp16 on the CPU', allow_module_level=True)


def test_hazard_1_the_state_loaded_before_the_masters_exist_is_rounded_to_fp16(apex, tmp_path):
    run = Training(ApexO2(apex))
    run.steps(0, 5)
    path, moments = run.save(tmp_path / 'a.pth'), run.optimizer.state_dict()['state']

    model = models_mae.mae_vit_nano_patch16(img_size=32, patch_size=8)
    optimizer = apex.optimizers.NpuFusedAdamW(decay_groups(model, .05), lr=1e-3)
    model, optimizer = apex.amp.initialize(model, optimizer, opt_level='O2', combine_grad=True, verbosity=0)
    optimizer.load_state_dict(checkpoint_file.load(path)['optimizer'])
    optimizer.zero_grad()
    naive = optimizer.state_dict()['state']
    zeroed = sum(int(((state['exp_avg_sq'] == 0) & (moments[key]['exp_avg_sq'] > 0)).sum())
                 for key, state in naive.items())
    assert zeroed > 1000 and naive[0]['exp_avg'].dtype == torch.float32

    assert not differing(Training(ApexO2(apex), path).state(), run.state())


def test_hazard_2_the_state_dict_is_rounded_so_only_the_masters_continue_exactly(apex, tmp_path):
    whole = Training(ApexO2(apex))
    whole.steps(0, 5)
    rounded = whole.model.state_dict()
    assert all(value.dtype == torch.float32 and torch.equal(value, value.half().float()) for value in rounded.values())
    ours, naive = whole.save(tmp_path / 'ours.pth'), whole.save(tmp_path / 'naive.pth', model=rounded)
    whole.steps(5, 10)
    expected = whole.state()
    for path, exact in ((naive, False), (ours, True)):
        run = Training(ApexO2(apex), path)
        run.steps(5, 10)
        assert (not differing(run.state(), expected)) == exact


def test_hazard_3_what_has_no_gradient_at_first_would_never_be_updated(apex):
    def train(model, backward, step):
        before = model.second.weight.detach().clone()
        for i in range(5):
            x, y = batch(i)
            backward((model(x, whole=i > 0) - y).pow(2).mean())
            step()
        return (model.second.weight.detach().float() - before.float()).abs().max().item()

    model = small_net()
    optimizer = apex.optimizers.NpuFusedAdamW(model.parameters(), lr=.01, weight_decay=0.)
    model, optimizer = apex.amp.initialize(model, optimizer, opt_level='O2', combine_grad=True, verbosity=0)

    def naive_backward(loss):
        optimizer.zero_grad()
        with apex.amp.scale_loss(loss, optimizer) as scaled:
            scaled.backward()
    assert train(model, naive_backward, optimizer.step) == 0

    ours, model = ApexO2(apex), small_net()
    model, prepared = ours.prepare(model, ours.adamw(Cpu(), model.parameters(), lr=.01, weight_decay=0.))
    assert train(model, lambda loss: ours.backward(loss, prepared), lambda: ours.step(prepared)) > .01


def test_hazard_4_zero_grad_knows_no_none_and_every_module_is_changed(apex):
    model, optimizer = train_naively(apex, 1)
    with pytest.raises(TypeError):
        optimizer.zero_grad(set_to_none=True)
    with pytest.raises(AssertionError):
        small_net().zero_grad(set_to_none=True)         # not even a module of amp's

    run = Training(ApexO2(apex))
    run.steps(0, 2)
    assert all(not p.grad.any() for p in run.model.parameters() if p.requires_grad)


def test_hazard_5_the_fused_optimizer_steps_only_with_amp(apex):
    model = small_net()
    optimizer = apex.optimizers.NpuFusedAdamW(model.parameters())
    model(batch(0)[0]).sum().backward()
    with pytest.raises(RuntimeError):
        optimizer.step()
    with pytest.raises(RuntimeError):
        apex.amp.initialize(model, optimizer, opt_level='O0', verbosity=0)

    for precision, name in ((FullPrecision(), 'AdamW'), (ApexO2(apex), 'NpuFusedAdamW')):
        run = Training(precision)
        losses = run.steps(0, 3)
        assert type(run.optimizer).__name__ == name and losses[2] < losses[0]


def test_hazard_6_a_step_count_that_is_a_tensor_is_counted_twice(apex, tmp_path):
    run = Training(FullPrecision())
    run.steps(0, 3)
    path = run.save(tmp_path / 'fp32.pth')
    saved = checkpoint_file.load(path)['optimizer']
    if not torch.is_tensor(saved['state'][0]['step']):
        pytest.skip("this torch's AdamW counts in plain numbers")

    naive = Training(ApexO2(apex), path)
    naive.optimizer.load_state_dict(saved)
    naive.steps(3, 6)
    assert naive.optimizer.state_dict()['state'][0]['step'] == 3 + 2 * 3

    ours = Training(ApexO2(apex), path)
    assert ours.steps(3, 6) == pytest.approx(run.steps(3, 6), rel=3e-3)
    assert ours.optimizer.state_dict()['state'][0]['step'] == 3 + 3
    expected, *states = run.state(), ours.state(), naive.state()
    deviations = [sum((state[name] - expected[name]).abs().mean() for name in run.model.state_dict())
                  for state in states]
    assert deviations[0] < .2 * deviations[1]
