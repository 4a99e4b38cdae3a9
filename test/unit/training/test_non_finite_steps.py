"""Non-finite losses and gradients: their steps are skipped, counted, and listed on abort."""
import math
import re

import pytest
import torch
from conftest import pretrain

from util.devices import precision
from util.devices.accelerator import Cpu
from util.distributed.world import World
from util.errors import UserError
from util.training.non_finite_steps import NonFiniteSteps
from util.training.optimizer_step import OptimizerStep


class Device(Cpu):
    """The CPU with a fused optimizer that decides on the device which steps to skip, as on a GPU."""
    is_accelerator = True


@pytest.fixture(params=[Cpu, Device])
def optimizer_step(request):
    """OptimizerStep of one weight."""
    weight = torch.nn.Linear(1, 1, bias=False)
    chosen = precision.FullPrecision()
    optimizer = chosen.adamw(request.param(), weight.parameters(), lr=.1)
    if request.param is Device and not optimizer.defaults.get('fused'):
        pytest.skip('this torch has no fused AdamW for the CPU')
    return OptimizerStep(weight, optimizer, chosen, lambda epoch: .1, non_finite_steps=NonFiniteSteps(3))


def state_of(optimizer_step):
    held = [optimizer_step.model.weight, *optimizer_step.optimizer.state[optimizer_step.model.weight].values()]
    return [value.clone() if torch.is_tensor(value) else value for value in held]


def counts(optimizer_step):
    steps = optimizer_step.non_finite_steps
    return steps.skipped, steps.state_dict()['bad_steps_in_row']


def step(optimizer_step, factor, offset=0.):
    optimizer_step.set_lr(0, 0, 1)
    with optimizer_step.gradient_sync():
        optimizer_step.backward((optimizer_step.model(torch.ones(1, 1)) * factor).sum() + offset)
    if optimizer_step.due:
        optimizer_step.update()


@pytest.mark.compat
@pytest.mark.parametrize('factor, offset', [(math.nan, 0.), (math.inf, 0.), (1., math.inf)])   # last: of the loss only
def test_a_non_finite_step_changes_neither_weights_nor_moments_nor_the_step_count(optimizer_step, factor, offset):
    step(optimizer_step, 1.)
    before = state_of(optimizer_step)
    step(optimizer_step, factor, offset)
    assert all(torch.equal(*map(torch.as_tensor, pair)) for pair in zip(before, state_of(optimizer_step)))
    assert counts(optimizer_step) == (1, 1)
    step(optimizer_step, 1.)
    assert optimizer_step.model.weight != before[0]
    assert counts(optimizer_step) == (1, 0)


@pytest.mark.parametrize('clip_grad', [None, 1.])
def test_finite_gradients_whose_norm_overflows_are_skipped(clip_grad):
    chosen, weight = precision.FullPrecision(), torch.nn.Parameter(torch.ones(2))
    optimizer = chosen.adamw(Device(), [weight], lr=.1)
    weight.grad = torch.full((2,), 3e38)
    assert chosen.step(optimizer, clip_grad) == 1 and weight.tolist() == [1., 1.]


@pytest.mark.compat
def test_only_consecutive_steps_count_towards_the_limit(optimizer_step):
    for factor in (math.nan, math.nan, 1., math.nan, math.nan):
        step(optimizer_step, factor)
    assert not optimizer_step.non_finite_steps.limit_reached
    step(optimizer_step, math.nan)
    assert optimizer_step.non_finite_steps.limit_reached
    step(optimizer_step, 1.)
    assert optimizer_step.non_finite_steps.limit_reached           # also some steps later


@pytest.mark.parametrize('clip_grad', [None, 1.])
@pytest.mark.parametrize('optimizer_step, reads', [(Cpu, 3), (Device, 0)], indirect=['optimizer_step'])
def test_a_fused_optimizer_decides_without_the_host(optimizer_step, reads, clip_grad):
    optimizer_step.clip_grad = clip_grad
    with torch.autograd.profiler.profile() as operators:
        for factor in (1., math.nan, 1.):
            step(optimizer_step, factor)
    found = [event for event in operators.function_events if event.name in ('aten::item', 'aten::is_nonzero')
             and not event.cpu_parent]           # the CPU's fused kernel itself reads the learning rate
    assert counts(optimizer_step) == (1, 0) and len(found) == reads


def test_abort_names_the_first_skipped_iterations_their_losses_and_images(caplog):
    non_finite_steps = NonFiniteSteps(2)
    for i, (bad, loss) in enumerate([(1, 1.), (0, 1.), (1, math.nan), (1, 2.), (0, 1.)]):
        for part in (0, 1):
            non_finite_steps.record_iteration(7, 2 * i + part, torch.tensor(loss))
        non_finite_steps.add(bad)
    with pytest.raises(UserError, match=r'^2 steps .*epoch 7, iteration 4.*--blr '):
        non_finite_steps.abort(World(), 128., lambda rank, epoch, i: ['{}-{}.jpg'.format(rank, i)])
    losses, files = caplog.messages
    assert all(word in losses for word in ('epoch 7, iteration 4', 'nan, nan, 2, 2', '128')) and '0-4.jpg' in files


@pytest.mark.slow
def test_a_run_with_non_finite_losses_aborts_in_one_line_and_keeps_its_last_good_checkpoint(images, tmp_path):
    flags = ['--data_path', images, '--output_dir', tmp_path, '--save_every', 1]
    assert pretrain(*flags, '--epochs', 1).status == 0
    good = (tmp_path / 'checkpoint-0.pth').read_bytes()
    run = pretrain(*flags, '--epochs', 6, '--resume', 'auto', '--lr', '1e30', '--max_bad_steps', 5)
    assert run.status == 2 and 'Traceback' not in run.output
    last = run.output.strip().split('\n')[-1]
    assert re.match(r'error: \d+ steps in a row skipped, from epoch 1, iteration 1 ', last), last
    assert run.output.count(str(images / 'train')) >= 8, run.output         # the images of a batch
    assert (tmp_path / 'checkpoint-0.pth').read_bytes() == good
