"""The learning-rate schedule at chosen points."""
import pytest
import torch

from util.lr_schedule import peak_lr, set_lr, warmup_cosine


@pytest.mark.parametrize('epoch, lr', [
    (0, 0.), (20, 1.2e-3), (39.5, 2.37e-3), (40, 2.4e-3), (130, 2.0485281e-3), (220, 1.2e-3), (400, 0.)])
def test_pretraining_warms_up_over_40_of_400_epochs_then_follows_half_a_cosine(epoch, lr):
    assert warmup_cosine(epoch, 2.4e-3, 400, 40) == pytest.approx(lr, rel=1e-6, abs=1e-12)


def test_the_cosine_ends_at_the_minimum():
    assert warmup_cosine(100, 1e-3, 100, 5, floor=1e-6) == pytest.approx(1e-6)


def test_no_warmup_starts_at_the_peak():
    assert warmup_cosine(0, 1e-3, 10, 0) == pytest.approx(1e-3)


def test_a_run_shorter_than_its_warmup_only_warms_up():
    assert warmup_cosine(.5, 1., 1, 40) == pytest.approx(.0125)


def test_the_peak_is_blr_for_256_images_unless_lr_is_given():
    assert peak_lr(None, 3e-4, 2048) == pytest.approx(2.4e-3)
    assert peak_lr(5e-4, 3e-4, 2048) == 5e-4
    assert peak_lr(5e-4, 3e-4, 2048, lr_batch=4096) == pytest.approx(2.5e-4)


def test_each_group_gets_its_own_share():
    groups = [{'params': [torch.zeros(1, requires_grad=True)], 'lr_scale': .25},
              {'params': [torch.zeros(1, requires_grad=True)]}]
    optimizer = torch.optim.AdamW(groups, lr=1.)
    set_lr(optimizer, .1)
    assert [group['lr'] for group in optimizer.param_groups] == pytest.approx([.025, .1])
