"""Parameter groups, learning-rate schedule, LARS, and steps over accumulation windows."""
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import models_mae
import models_vit
from util.devices.precision import FullPrecision
from util.distributed.world import World
from util.models.linear_probe import LARS
from util.training.optimizer_step import OptimizerStep, decay_groups, layer_decay_groups, warmup_cosine
from util.training.setup import report_schedule_change

pytestmark = pytest.mark.compat


# Parameter groups

def by_name(model, groups, key):
    """{parameter name: value of `key` in its group}; each parameter is in one group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed = [(names[id(parameter)], group[key]) for group in groups for parameter in group['params']]
    assert len(listed) == len(dict(listed))
    return dict(listed)


def test_layer_decay_of_12_blocks_gives_each_layer_its_scale():
    model = models_vit.vit_nano_patch16(global_pool=True, depth=12)
    scale = by_name(model, layer_decay_groups(model, weight_decay=.05, layer_decay=.65), 'lr_scale')
    expected = {'cls_token': 13, 'pos_embed': 13, 'patch_embed.proj.weight': 13, 'patch_embed.proj.bias': 13,
                'blocks.0.norm1.weight': 12, 'blocks.0.attn.qkv.weight': 12, 'blocks.5.mlp.fc1.bias': 7,
                'blocks.11.mlp.fc2.weight': 1, 'fc_norm.weight': 0, 'fc_norm.bias': 0, 'head.weight': 0, 'head.bias': 0}
    assert {name: scale[name] for name in expected} == pytest.approx(
        {name: .65 ** power for name, power in expected.items()})
    assert set(scale) == {name for name, _ in model.named_parameters()}


def test_fine_tuning_decays_matrices_only_and_neither_positions_nor_class_token():
    model = models_vit.vit_nano_patch16(global_pool=True)
    decay = by_name(model, layer_decay_groups(model, weight_decay=.05, layer_decay=.65), 'weight_decay')
    for name, value in decay.items():
        assert value == (.05 if name.endswith('.weight') and 'norm' not in name else 0.), name


def test_pretraining_decays_all_but_1d_tensors_and_biases_and_trains_no_position_embeddings():
    model = models_mae.mae_vit_nano_patch16()
    decay = by_name(model, decay_groups(model, .05), 'weight_decay')
    for name, value in decay.items():
        assert value == (0. if name.endswith('.bias') or 'norm' in name else .05), name
    assert set(decay) == {name for name, _ in model.named_parameters()} - {'pos_embed', 'decoder_pos_embed'}


# The learning rate

@pytest.mark.parametrize('epoch, lr', [
    (0, 0.), (20, 1.2e-3), (39.5, 2.37e-3), (40, 2.4e-3), (130, 2.0485281e-3), (220, 1.2e-3), (400, 0.)])
def test_pretraining_warms_up_over_40_of_400_epochs_then_follows_half_a_cosine(epoch, lr):
    assert warmup_cosine(epoch, 2.4e-3, 400, 40) == pytest.approx(lr, rel=1e-6, abs=1e-12)


def test_a_floor_no_warm_up_and_a_run_shorter_than_its_warm_up():
    assert warmup_cosine(100, 1e-3, 100, 5, floor=1e-6) == pytest.approx(1e-6)
    assert warmup_cosine(0, 1e-3, 10, 0) == pytest.approx(1e-3)
    assert warmup_cosine(.5, 1., 1, 40) == pytest.approx(.0125)


# LARS

def by_formula(weights, gradients, lr, weight_decay, momentum, trust_coefficient):
    """Weights after a step for each of `gradients`, in numpy and float64."""
    w, m = weights.astype(np.float64), np.zeros(weights.shape)
    for g in gradients:
        d = g.astype(np.float64)
        if w.ndim > 1:
            d = d + weight_decay * w
            sizes = np.sqrt((w ** 2).sum()), np.sqrt((d ** 2).sum())
            if min(sizes) > 0:
                d = d * trust_coefficient * sizes[0] / sizes[1]
        m = momentum * m + d
        w = w - lr * m
    return w


@pytest.mark.parametrize('shape, zeros', [((8, 16), ''), ((16,), ''), ((8, 16), 'weights'), ((8, 16), 'gradients')])
def test_three_steps_of_lars_follow_the_formula_and_resume(shape, zeros):
    rng, options = np.random.RandomState(0), {'lr': 30., 'weight_decay': .1, 'momentum': .5, 'trust_coefficient': .02}
    weights, gradients = rng.randn(*shape).astype(np.float32), rng.randn(3, *shape).astype(np.float32)
    weights, gradients = weights * (zeros != 'weights'), gradients * (zeros != 'gradients')
    parameter, state = torch.nn.Parameter(torch.from_numpy(weights.copy())), None
    for gradient in gradients:
        optimizer = LARS([parameter], **options)
        if state:
            optimizer.load_state_dict(state)
        parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
        state = optimizer.state_dict()
    assert np.allclose(parameter.detach().numpy(), by_formula(weights, gradients, **options), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('saved, words', [
    ({'epochs': 100}, ('0.00085', '0.0005', '200')), ({'epochs': 200, 'seed': 1}, ()), (None, ())])
def test_resuming_with_another_schedule_is_one_line_with_both_learning_rates(caplog, saved, words):
    args = Namespace(epochs=200, warmup_epochs=0, min_lr=0., lr=None, blr=1e-3, batch_size=256, accum_iter=1,
                     base_batch_size=None, auto_scale_lr=False, start_epoch=None)
    checkpointer = SimpleNamespace(is_resume=True, path='x.pth', start=lambda flag: (50, 0),
                                   get={'args': saved, 'processes': 1}.get)
    report_schedule_change(args, World(), checkpointer)
    assert len(caplog.messages) == bool(words) and all(word in caplog.text for word in words), caplog.text


# Steps

class Linear(torch.nn.Module):
    """One trained weight; the loss is the weight times the mean of the input."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.fixed = torch.nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x):
        return (self.weight * x).mean()


def run(values, accum_iter, clip_grad=None, schedule=lambda epoch: 1., ema=lambda weights: None):
    """Weights after each iteration of plain SGD over inputs `values`; `ema` makes an EMA of them."""
    model, weights = Linear(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1.)
    optimizer_step = OptimizerStep(model, optimizer, FullPrecision(), schedule, accum_iter, clip_grad,
                                   ema=ema(FullPrecision().trained_weights(model, None)))
    for i, value in enumerate(values):
        optimizer_step.set_lr(0, i, len(values))
        with optimizer_step.gradient_sync():
            optimizer_step.backward(model(torch.tensor([float(value)])))
        if optimizer_step.due:
            optimizer_step.update()
        weights.append(model.weight.item())
    return weights


@pytest.mark.parametrize('inputs, clip_grad, weights', [
    ([1, 3, 5, 7], None, [0, -2, -2, -8]), ([1, 3, 10], None, [0, -2, -12]), ([1, 3, .25], .5, [0, -.5, -.75])])
def test_a_window_of_two_or_at_the_end_one_makes_one_step_along_the_mean_clipped_gradient(inputs, clip_grad, weights):
    assert run(inputs, accum_iter=2, clip_grad=clip_grad) == pytest.approx(weights, abs=1e-5)


def test_the_schedule_is_evaluated_once_per_window_at_the_fractional_epoch():
    asked = []
    run([1] * 5, accum_iter=2, schedule=lambda epoch: asked.append(epoch) or .1)
    assert asked == pytest.approx([0, .4, .8])
