"""Optimizer steps: gradient accumulation, learning-rate schedule, clipping, EMA update; and parameter groups."""
import math
from argparse import Namespace
from contextlib import nullcontext
from typing import Any, Callable, ContextManager, Dict, List, Optional

import torch
from torch.nn.parallel import DistributedDataParallel

from util.devices.precision import FullPrecision
from util.distributed.world import World
from util.training.ema import EMA
from util.training.non_finite_steps import NonFiniteSteps


class OptimizerStep:
    """One optimizer step per accumulation window of `accum_iter` iterations; an epoch's last window may be shorter.

    A loss is divided by the number of iterations in its window, so that a step follows the mean over the window's
    images. If a loss or gradient is not finite on any process, all processes skip the step.

    Args:
        model: in DistributedDataParallel if there is more than one process.
        schedule: fractional epoch -> learning rate; evaluated once per window.
        clip_grad: maximum 2-norm of a step's gradient, or None.
    """

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, precision: FullPrecision,
                 schedule: Callable[[float], float], accum_iter: int = 1, clip_grad: Optional[float] = None,
                 non_finite_steps: Optional[NonFiniteSteps] = None, ema: Optional[EMA] = None):
        self.model, self.optimizer, self.precision, self.schedule = model, optimizer, precision, schedule
        self.accum_iter, self.clip_grad = accum_iter, clip_grad
        self.non_finite_steps, self.ema = non_finite_steps or NonFiniteSteps(math.inf), ema
        self.lr = 0.
        self.first_iteration = 0    # iteration at which the epoch's first window opens: not 0 after a resume within it
        self.due = True             # the current iteration is the last of its window
        self._loss_weight, self._place = 1., (0, 0)

    def set_lr(self, epoch: int, i: int, iterations: int) -> None:
        """Begin iteration `i` of `iterations` in `epoch`, from 0; if it opens a window, set the learning rate."""
        opened = i - (i - self.first_iteration) % self.accum_iter
        size = min(self.accum_iter, iterations - opened)
        self.due = i == opened + size - 1
        self._loss_weight, self._place = 1. / size, (epoch, i)
        if i == opened:
            self.precision.accelerator.clear_overflow()     # of what was computed since the last step
            self.lr = self.schedule(epoch + i / iterations)
            for group in self.optimizer.param_groups:
                group['lr'] = self.lr * group.get('lr_scale', 1.)       # layer-wise decay

    def gradient_sync(self) -> ContextManager:
        """Context of forward and backward pass: gradients are all-reduced in the last iteration of a window only."""
        deferred = isinstance(self.model, DistributedDataParallel) and self.precision.supports_no_sync and not self.due
        return self.model.no_sync() if deferred else nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradients of this iteration's loss."""
        self.non_finite_steps.record_iteration(*self._place, loss)
        # A non-finite loss can have finite gradients: make them NaN, so that the all-reduce informs all processes.
        weight = loss.detach() * 0 + self._loss_weight
        self.precision.backward(loss * weight, self.optimizer)

    def update(self) -> None:
        """Step the optimizer and update the EMA, or skip the step; clear the gradients."""
        skipped = self.precision.step(self.optimizer, self.clip_grad)
        self.non_finite_steps.add(skipped)
        if self.ema:
            self.ema.update(skipped)

    def ema_weights(self, model: torch.nn.Module) -> ContextManager:
        """Context in which `model` has the EMA weights; without EMA it keeps its own."""
        return self.ema.applied_to(model) if self.ema else nullcontext()


def effective_batch_size(args: Namespace, world: World) -> int:
    """Images per optimizer step, over all processes."""
    return args.batch_size * args.accum_iter * world.size


def peak_lr(args: Namespace, world: World) -> float:
    """Learning rate after warm-up: --blr per 256 images, or --lr; linear scaling as in arXiv:1706.02677."""
    batch = effective_batch_size(args, world)
    if args.lr is None:
        return args.blr * batch / 256
    return args.lr * batch / args.base_batch_size if args.auto_scale_lr else args.lr


def warmup_cosine(epoch: float, peak: float, epochs: int, warmup_epochs: float, floor: float = 0.) -> float:
    """Linear warm-up, then half a cosine (arXiv:2111.06377, appendix A.1; arXiv:1608.03983 without restarts).

    `epoch` is fractional, e.g. 2.5; `peak` is the learning rate after the warm-up, `floor` that at the end.
    """
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-12)
    return floor + (peak - floor) * .5 * (1. + math.cos(math.pi * progress))


def decay_groups(model: torch.nn.Module, weight_decay: float) -> List[Dict[str, Any]]:
    """Pre-training: no weight decay on 1-D tensors and biases (arXiv:2111.06377, appendix A.1)."""
    decay, no_decay = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (no_decay if parameter.ndim == 1 or name.endswith('.bias') else decay).append(parameter)
    return [{'params': no_decay, 'weight_decay': 0.}, {'params': decay, 'weight_decay': weight_decay}]


def layer_decay_groups(model: torch.nn.Module, weight_decay: float, layer_decay: float) -> List[Dict[str, Any]]:
    """Fine-tuning: layer-wise learning-rate decay (arXiv:2106.08254, appendix; arXiv:2003.10555).

    Layer 0 is the embedding, layer i + 1 is block i, depth + 1 the head; a layer's lr_scale is
    layer_decay ** (depth + 1 - layer). No weight decay on 1-D tensors, pos_embed and cls_token. The groups also have a
    'name', and go from the embedding to the head.
    """
    depth = len(model.blocks)
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        no_decay = parameter.ndim == 1 or name in model.no_weight_decay()
        layer = depth + 1
        if name.startswith('blocks.'):
            layer = int(name.split('.')[1]) + 1
        elif name.startswith(('pos_embed', 'cls_token', 'patch_embed.')):
            layer = 0
        key = 'layer_{}_{}'.format(layer, 'no_decay' if no_decay else 'decay')
        group = groups.setdefault(key, {'name': key, 'params': [], 'weight_decay': 0. if no_decay else weight_decay,
                                        'lr_scale': layer_decay ** (depth + 1 - layer)})
        group['params'].append(parameter)
    return list(groups.values())
