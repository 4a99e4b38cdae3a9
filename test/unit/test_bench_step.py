"""The benchmarks of the training step: both sides run, both have the losses of the same mathematics."""
import json
import sys

import pytest
import torch
from conftest import ROOT, execute

import models_mae

sys.path.insert(0, str(ROOT / 'test' / 'bench'))
import bench_step

SMALL = ['--model', 'nano_patch16', '--input_size', '32', '--batch_size', '4', '--device', 'cpu']


@pytest.mark.slow
@pytest.mark.parametrize('task', ['pretrain', 'finetune'])
def test_the_benchmark_of_the_step_measures_both_sides(tmp_path, task):
    run = execute([sys.executable, ROOT / 'test' / 'bench' / 'bench_step.py', '--task', task, *SMALL, '--rounds', 2,
                   '--steps', 2, '--json', tmp_path / 'x.json'])
    assert run.status == 0 and '| ratio | |' in run.output, run.output
    found = json.loads((tmp_path / 'x.json').read_text())
    assert found['ratio'] > 0 and all(found[side]['memory'] > 0 for side in ('ours', 'baseline'))


def test_the_baseline_has_the_loss_and_gradients_of_our_model():
    torch.manual_seed(0)
    ours = models_mae.mae_vit_nano_patch16(img_size=32, patch_size=8, norm_pix_loss=True)
    theirs = models_mae.mae_vit_nano_patch16(img_size=32, patch_size=8, norm_pix_loss=True)
    theirs.load_state_dict(ours.state_dict())
    baseline = bench_step.PublishedMae(bench_step.with_explicit_attention(theirs))
    imgs, losses = torch.rand(4, 3, 32, 32), []
    for loss_of in (lambda: ours(imgs, .75, loss_only=True), lambda: baseline(imgs, .75)):
        torch.manual_seed(1)
        losses.append(loss_of())
        losses[-1].backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    for one, other in zip(ours.parameters(), theirs.parameters()):
        assert one.grad is None or torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('task, gflops', [('pretrain', 3 * 19.35), ('finetune', 3 * 35.1)])
def test_flops_are_counted_as_the_formula_says(task, gflops):
    """ViT-B: 17.5 GMACs forward are what others count too."""
    args = bench_step.parse(['--task', task])
    assert bench_step.flops(args) / 1e9 == pytest.approx(gflops, rel=.01)


@pytest.mark.slow
def test_loss_curves_are_compared(images):
    run = execute([sys.executable, ROOT / 'test' / 'bench' / 'loss_curves.py', images, *SMALL, '--steps', 40])
    if not hasattr(torch, 'autocast'):
        assert run.status == 0 and '| fp32, seed 0 | fp32, seed 1 | fp32, seed 0 |' in run.output, run.output
    assert run.status == 0 and '| mean difference from the first, step by step | | ' in run.output, run.output
