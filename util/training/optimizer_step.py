"""From losses to weight updates: parameter groups, schedule, accumulation, gradient exchange, scaling, clipping."""
import math
from contextlib import contextmanager, nullcontext

import torch

from util.distributed.world import gradient_sync
from util.training.non_finite_steps import BadSteps


class WeightUpdates:
    """One optimizer step per window of `accum_iter` iterations; the last window of an epoch may be shorter.

    Each loss counts as its share of the window at hand, so that a step follows the mean over the window's images. Where
    a loss or gradient is not finite, on whichever process, all processes skip the step.

    Args:
        schedule: learning rate as a function of the fractional epoch; asked once when a window opens.
        clip_grad: 2-norm that a step's gradient is clipped to, or None.
        bad_steps: BadSteps, told of every step.
        average: WeightAverage, told of every step, or None.
    """

    def __init__(self, model, optimizer, precision, schedule, accum_iter=1, clip_grad=None, bad_steps=None,
                 average=None):
        self.model, self.optimizer, self.precision, self.schedule = model, optimizer, precision, schedule
        self.accum_iter, self.clip_grad = accum_iter, clip_grad
        self.bad_steps, self.average = bad_steps or BadSteps(math.inf), average
        self.lr = 0.
        self.first = 0              # iteration that the first window of this epoch opens at: not 0 after a resume
        self.complete = True        # no window is open
        self._share, self._at = 1., (0, 0)

    @contextmanager
    def iteration(self, i, iterations, epoch):
        """The forward and backward pass of iteration `i` of `iterations` in `epoch` (counted from 0)."""
        opened = i - (i - self.first) % self.accum_iter
        size = min(self.accum_iter, iterations - opened)
        self.complete = i == opened + size - 1
        self._share, self._at = 1. / size, (epoch, i)
        if i == opened:
            self.lr = self.schedule(epoch + i / iterations)
            for group in self.optimizer.param_groups:
                group['lr'] = self.lr * group.get('lr_scale', 1.)       # of layer-wise decay
        with gradient_sync(self.model, wanted=self.complete or not self.precision.gradients_stay_in_model):
            yield
        if self.complete:
            skipped = self.precision.step(self.optimizer, self.clip_grad)
            self.bad_steps.add(skipped)
            if self.average:
                self.average.update(skipped)

    def backward(self, loss):
        """Add the gradients of this iteration's loss to the window's."""
        self.bad_steps.remember(*self._at, self.lr, loss)
        finite = torch.isfinite(loss.detach())
        # A loss that is not finite can have finite gradients: make them NaN, and their exchange tells all processes.
        share = torch.where(finite, torch.full_like(loss, self._share), torch.full_like(loss, math.nan))
        self.precision.backward(loss * share.detach(), self.optimizer)

    def averaged(self, model):
        """A context in which `model` has its averaged weights, where there are such."""
        return self.average.within(model) if self.average else nullcontext()


def weight_updates(args, runtime, precision, resumed, model, optimizer, lr, average=None):
    """The WeightUpdates that the flags describe, with the peak learning rate `lr`, as an earlier run left them."""
    bad_steps = BadSteps(args.max_bad_steps, resumed.get('bad_steps_in_row') or 0)
    return WeightUpdates(runtime.wrap(model, precision), optimizer, precision,
                         lambda epoch: warmup_cosine(epoch, lr, args.epochs, args.warmup_epochs, args.min_lr),
                         args.accum_iter, args.clip_grad, bad_steps, average)


def adamw_updates(args, runtime, precision, resumed, model, groups, betas, lr):
    """(model as its precision makes it, WeightUpdates by AdamW) of a model on its device, as an earlier run left them.
    """
    optimizer = precision.adamw(runtime.accelerator, groups, lr=lr, betas=betas)
    model, optimizer = precision.prepare(model, optimizer)
    runtime.speed_up(model, args.compile, args.grad_checkpoint)
    resumed.restore_training(optimizer, precision)
    average = resumed.average(args.ema, precision.trained_weights(model, optimizer))
    return model, weight_updates(args, runtime, precision, resumed, model, optimizer, lr, average)


def decay_groups(model, weight_decay):
    """Two groups for pre-training: no weight decay on 1-D tensors and biases (arXiv:2111.06377, appendix A.1)."""
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim == 1 or name.endswith('.bias') else decayed).append(parameter)
    return [{'params': plain, 'weight_decay': 0.}, {'params': decayed, 'weight_decay': weight_decay}]


def layer_decay_groups(model, weight_decay, layer_decay):
    """Groups for fine-tuning with layer-wise learning-rate decay (arXiv:2106.08254, appendix; arXiv:2003.10555).

    Layer 0 is the embedding, layer i + 1 is block i, depth + 1 the head; a layer's lr_scale is
    layer_decay ** (depth + 1 - layer). 1-D tensors, pos_embed and cls_token do not decay.

    Returns:
        groups with 'name', 'params', 'lr_scale' and 'weight_decay', from the embedding to the head.
    """
    depth = len(model.blocks)
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim == 1 or name in ('pos_embed', 'cls_token')
        layer = _layer_of(name, depth)
        key = 'layer_{}_{}'.format(layer, 'no_decay' if plain else 'decay')
        group = groups.setdefault(key, {'name': key, 'params': [], 'weight_decay': 0. if plain else weight_decay,
                                        'lr_scale': layer_decay ** (depth + 1 - layer)})
        group['params'].append(parameter)
    return list(groups.values())


def _layer_of(name, depth):
    """Layer number of a parameter of VisionTransformer, for layer-wise decay."""
    if name in ('pos_embed', 'cls_token') or name.startswith('patch_embed.'):
        return 0
    if name.startswith('blocks.'):
        return int(name.split('.')[1]) + 1
    return depth + 1


def warmup_cosine(epoch, peak, epochs, warmup_epochs, floor=0.):
    """Learning rate at a fractional epoch (arXiv:2111.06377, appendix A.1; arXiv:1608.03983 without restarts).

    Args:
        epoch: epochs done so far, e.g. 2.5.
        peak: learning rate at the end of the warm-up.
        floor: learning rate at the end of the last epoch.
    """
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-12)
    return floor + (peak - floor) * .5 * (1. + math.cos(math.pi * progress))
