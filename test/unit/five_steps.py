"""Five optimizer steps on the emulated NPU, two of which overflow in the last process, in each precision of the chip.

    python five_steps.py RANK PROCESSES STORE       prints JSON, by precision
"""
import json
import sys

import torch

from util.devices import accelerator
from util.devices.precision import choose_precision
from util.distributed.world import World
from util.training.ema import EMA
from util.training.optimizer_step import OptimizerStep, decay_groups

BAD_STEPS, HUGE = (1, 3), 1e38
FP16 = {'backend': 'native', 'dtype': 'fp16'}
PRECISIONS = {'fp32': {}, 'fp32 clipped': {'clip_grad': .1}, 'bf16': {'dtype': 'bf16'}, 'fp16 dynamic': FP16,
              'fp16 static': {**FP16, 'loss_scale': 128.}, 'apex dynamic': {'backend': 'apex'},
              'apex static': {'backend': 'apex', 'loss_scale': 128.}}


def state_of(precision, model, optimizer):
    """Copies of weights, moments and step counts."""
    states = [precision.model_state(model, optimizer), *optimizer.state_dict()['state'].values()]
    return [torch.as_tensor(value).cpu().clone() for state in states for value in state.values()]


def five_steps(npu, world, device, clip_grad=None, **flags):
    """[steps skipped, updates of the EMA, finite losses, steps that changed nothing, loss scale]."""
    torch.manual_seed(0)
    precision = choose_precision(npu, **flags)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 1)).to(device)
    model, optimizer = precision.prepare(model, precision.adamw(npu, decay_groups(model, .05)))
    wrapped = world.wrap_ddp(model, device, precision.supports_bucket_view and npu.supports_bucket_view)
    ema = EMA(.9, precision.trained_weights(model, optimizer))
    step = OptimizerStep(wrapped, optimizer, precision, lambda epoch: .01, accum_iter=2, clip_grad=clip_grad, ema=ema)
    finite, unchanged = 0, []
    for i in range(10):
        images, before = torch.randn(4, 8).to(device), state_of(precision, model, optimizer)
        if i % 2 == 0:
            torch.full((), HUGE, device=device) * HUGE      # does not count: as in an evaluation between two steps
        step.set_lr(0, i, 10)
        with step.gradient_sync():
            with precision.autocast():
                loss = wrapped(images).float().pow(2).mean()
            if i in [2 * bad for bad in BAD_STEPS] and world.rank == world.size - 1:
                loss = loss * HUGE * HUGE
            step.backward(loss)
        if step.due:
            step.update()
        finite += int(torch.isfinite(loss))
        if step.due and all(map(torch.equal, before, state_of(precision, model, optimizer))):
            unchanged.append(i // 2)
    return [step.non_finite_steps.skipped, ema.state_dict()['ema_updates'], finite, unchanged, precision.loss_scale]


if __name__ == '__main__':
    world, npu = World(int(sys.argv[1]), int(sys.argv[2])), accelerator.select('npu')
    device = npu.use(world.rank)
    torch.distributed.init_process_group('hccl', init_method='file://' + sys.argv[3], rank=world.rank,
                                         world_size=world.size)
    print(json.dumps({name: five_steps(npu, world, device, **flags) for name, flags in PRECISIONS.items()
                      if name != 'bf16' or npu.supports_bf16()}))
