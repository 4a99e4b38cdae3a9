"""Losses of training as they were when the program was first complete: whatever moves, these numbers stay.

Weights and images are sines, so no generator of random numbers has a part in them. The four generations of PyTorch
differ by 3e-7 at most.
"""
import pytest
import torch

import models_mae
import models_vit
from util.lr_schedule import set_lr, warmup_cosine
from util.param_groups import decay_groups, layer_decay_groups

pytestmark = pytest.mark.compat
SIZE = {'patch_size': 8, 'img_size': (32, 16)}


def wave(shape, start):
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(count, dtype=torch.float64) * 1.7 + start).float().reshape(shape)


def losses(model, groups, loss_of):
    """Of four steps of AdamW, with the learning rate warming up for two."""
    for i, (name, parameter) in enumerate(sorted(model.named_parameters())):
        if parameter.requires_grad:
            parameter.data.copy_(wave(parameter.shape, i) * .05 + ('norm' in name and name.endswith('weight')))
    optimizer, found = torch.optim.AdamW(groups, lr=1., betas=(.9, .95)), []
    for step in range(4):
        set_lr(optimizer, warmup_cosine(step + 1, 1e-3, 10, 2))
        loss = loss_of(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize('norm_pix_loss, expected', [
    (False, [1.2551901, .74456382, .51397842, .55434078]), (True, [1.7501565, 1.2393688, 1.0084578, 1.0486614])])
def test_pre_training(norm_pix_loss, expected):
    model = models_mae.mae_vit_nano_patch16(norm_pix_loss=norm_pix_loss, **SIZE)
    imgs, noise = wave((4, 3, 32, 16), 0.), wave((4, 8), 1.)
    assert losses(model, decay_groups(model, .05), lambda model: model(imgs, .75, noise, loss_only=True)) == \
        pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('global_pool, expected', [
    (False, [1.5855753, 1.5412869, 1.5328457, 1.5153113]), (True, [1.846256, 1.62532, 1.5486744, 1.513172])])
def test_fine_tuning(global_pool, expected):
    model = models_vit.vit_nano_patch16(global_pool=global_pool, num_classes=5, **SIZE)
    imgs, labels = wave((4, 3, 32, 16), 0.), torch.arange(4)
    assert losses(model, layer_decay_groups(model, .05, .75),
                  lambda model: torch.nn.functional.cross_entropy(model(imgs), labels)) == \
        pytest.approx(expected, rel=1e-6)
