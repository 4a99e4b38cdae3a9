"""Optimizer steps: parameter groups, learning-rate schedule, gradient accumulation and exchange, clipping, EMA."""
import math
from contextlib import nullcontext

import torch

from util.distributed.world import gradient_sync
from util.training.ema import EMA
from util.training.non_finite_steps import NonFiniteSteps


class OptimizerStep:
    """One optimizer step for each accumulation window of `accum_iter` iterations; the last window of an epoch may be
    shorter.

    A loss is divided by the number of iterations in its window, so that a step follows the mean over the window's
    images. If a loss or gradient is not finite on any process, all processes skip the step.

    Args:
        model: in DistributedDataParallel where there is more than one process.
        schedule: learning rate as a function of the fractional epoch; asked once for each window.
        clip_grad: 2-norm that a step's gradient is clipped to, or None.
        non_finite_steps: NonFiniteSteps, which counts skipped steps.
        ema: EMA of the weights, or None.
    """

    def __init__(self, model, optimizer, precision, schedule, accum_iter=1, clip_grad=None, non_finite_steps=None,
                 ema=None):
        self.model, self.optimizer, self.precision, self.schedule = model, optimizer, precision, schedule
        self.accum_iter, self.clip_grad = accum_iter, clip_grad
        self.non_finite_steps, self.ema = non_finite_steps or NonFiniteSteps(math.inf), ema
        self.lr = 0.
        self.first = 0              # iteration that the first window of this epoch opens at: not 0 after a resume
        self.due = True             # the iteration at hand is the last of its window
        self._weight, self._at = 1., (0, 0)

    def set_lr(self, epoch, i, iterations):
        """Begin iteration `i` of `iterations` in `epoch` (counted from 0); set the learning rate if it opens a window.
        """
        opened = i - (i - self.first) % self.accum_iter
        size = min(self.accum_iter, iterations - opened)
        self.due = i == opened + size - 1
        self._weight, self._at = 1. / size, (epoch, i)
        if i == opened:
            self.lr = self.schedule(epoch + i / iterations)
            for group in self.optimizer.param_groups:
                group['lr'] = self.lr * group.get('lr_scale', 1.)       # of layer-wise decay

    def gradient_sync(self):
        """Context of forward and backward pass: processes average gradients in the last iteration of a window only."""
        return gradient_sync(self.model, wanted=self.due or not self.precision.supports_no_sync)

    def backward(self, loss):
        """Add the gradients of this iteration's loss to those of the window."""
        self.non_finite_steps.remember(*self._at, self.lr, loss)
        finite = torch.isfinite(loss.detach())
        # A loss that is not finite can have finite gradients: make them NaN, and their exchange informs all processes.
        weight = torch.where(finite, torch.full_like(loss, self._weight), torch.full_like(loss, math.nan))
        self.precision.backward(loss * weight.detach(), self.optimizer)

    def update(self):
        """Step the optimizer and the EMA, or skip the step; clear the gradients."""
        skipped = self.precision.step(self.optimizer, self.clip_grad)
        self.non_finite_steps.add(skipped)
        if self.ema:
            self.ema.update(skipped)

    def ema_weights(self, model):
        """A context in which `model` has its EMA weights, if there are any."""
        return self.ema.within(model) if self.ema else nullcontext()


def build_optimizer_step(args, session, precision, resume, model, optimizer, lr, ema=None):
    """The OptimizerStep that the flags describe, with the peak learning rate `lr`, as the checkpoint left it."""
    non_finite_steps = NonFiniteSteps(args.max_bad_steps, resume.get('bad_steps_in_row') or 0)
    return OptimizerStep(session.wrap(model, precision), optimizer, precision,
                         lambda epoch: warmup_cosine(epoch, lr, args.epochs, args.warmup_epochs, args.min_lr),
                         args.accum_iter, args.clip_grad, non_finite_steps, ema)


def build_adamw_step(args, session, precision, resume, model, groups, betas, lr):
    """(model as its precision makes it, OptimizerStep by AdamW) of a model on its device, as the checkpoint left them.

    The order is that of apex: weights are loaded before `prepare`, which makes fp32 master weights of them; the
    optimizer's state is loaded after it, since it belongs to the master weights.
    """
    optimizer = precision.adamw(session.accelerator, groups, lr=lr, betas=betas)
    model, optimizer = precision.prepare(model, optimizer)
    session.speed_up(model, args.compile, args.grad_checkpoint)
    resume.restore_training(optimizer, precision)
    ema = None if args.ema is None else EMA(args.ema, precision.trained_weights(model, optimizer))
    if ema:
        resume.restore_ema(ema)
    return model, build_optimizer_step(args, session, precision, resume, model, optimizer, lr, ema)


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
