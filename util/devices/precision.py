"""Numeric precision of training behind one interface: fp32, native autocast with or without scaling, apex O2.

The loops call autocast, backward and step; only this module knows what stands behind them.
"""
import importlib
from contextlib import nullcontext, suppress

import torch

from util.compat import accepts
from util.errors import UserError


class FullPrecision:
    """fp32 throughout, and the interface of the others."""
    name = 'fp32'
    # False where every backward must exchange gradients, because they leave the model right after it, from the memory
    # that they were first in.
    gradients_stay_in_model = True
    _skipper = None             # a gradient scaler, of scale 1, that lets a fused optimizer skip steps by itself

    def prepare(self, model, optimizer):
        """Convert a model on its device and its optimizer, before DistributedDataParallel wraps the model."""
        return model, optimizer

    def prepare_inference(self, model):
        """Convert a model on its device that will not be trained."""
        return model

    def adamw(self, accelerator, param_groups, **options):
        """The optimizer that goes with this precision."""
        optimizer = accelerator.adamw(param_groups, **options)
        if accelerator.is_accelerator and optimizer.defaults.get('fused'):
            self._skipper = _new_scaler(accelerator, 1.)
        return optimizer

    def autocast(self):
        """Context of the forward pass."""
        return nullcontext()

    def backward(self, loss, optimizer):
        """Add the gradients of `loss` to those of this accumulation window."""
        loss.backward()

    def step(self, optimizer, clip_grad=None):
        """Close the window: clip to a 2-norm of `clip_grad` if given, update the weights, clear the gradients.

        Nothing is updated where a gradient is not finite.
        Returns:
            1 where that was so, else 0; on a device whose optimizer decides by itself a tensor, which nobody waits for.
        """
        norm = self._clip(optimizer, clip_grad)
        finite = torch.isfinite(norm)
        if self._skipper is not None:
            bad = (~finite).int()
            # The scaler looks at the gradients themselves: one becomes NaN where their norm is not finite.
            next(p.grad for p in self._trained_parameters(optimizer) if p.grad is not None).add_(norm * 0)
            self._skipper.scale(norm)           # it takes no step before it has scaled something
            self._skipper.step(optimizer)
            self._skipper.update(1.)
        else:
            bad = int(not finite)
            if not bad:
                optimizer.step()
        optimizer.zero_grad()
        return bad

    def _clip(self, optimizer, clip_grad):
        """Clip if asked; returns the 2-norm before, a 0-dimensional tensor: not finite where a gradient is not."""
        parameters = self._trained_parameters(optimizer)
        if clip_grad is not None:
            return torch.nn.utils.clip_grad_norm_(parameters, clip_grad)
        gradients = [p.grad for p in parameters if p.grad is not None]
        if hasattr(torch.nn.utils, 'get_total_norm'):
            return torch.nn.utils.get_total_norm(gradients)
        return torch.norm(torch.stack([torch.norm(gradient) for gradient in gradients]))

    def _trained_parameters(self, optimizer):
        return [p for group in optimizer.param_groups for p in group['params']]

    @property
    def scale(self):
        """The loss scale of now."""
        return 1.

    def model_state(self, model, optimizer):
        """state_dict of the bare model in fp32."""
        return model.state_dict()

    def trained_weights(self, model, optimizer):
        """{name: the fp32 parameter that the optimizer updates}."""
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    def state_dict(self):
        """What the loss scaler remembers; plain types."""
        return {}

    def load_state_dict(self, state):
        """Restore what state_dict gave."""


def steps_taken(optimizer):
    """How many steps AdamW has taken, by the count in its state."""
    return max((int(state['step']) for state in optimizer.state.values() if 'step' in state), default=0)


class NativeAmp(FullPrecision):
    """PyTorch's autocast; with fp16 also its gradient scaler, dynamic or at a fixed scale."""

    def __init__(self, accelerator, dtype, loss_scale='dynamic'):
        self.name = 'native ' + ('bf16' if dtype == torch.bfloat16 else 'fp16')
        self._autocast = _autocast_factory(accelerator, dtype)
        self._scaler = None
        self._fixed_scale = None if loss_scale == 'dynamic' else float(loss_scale)
        if dtype == torch.float16:
            self._scaler = _new_scaler(accelerator, self._fixed_scale)
            self.name += ', loss scale {}'.format(loss_scale)

    def autocast(self):
        return self._autocast()

    def backward(self, loss, optimizer):
        (self._scaler.scale(loss) if self._scaler else loss).backward()

    def step(self, optimizer, clip_grad=None):
        if self._scaler is None:
            return super().step(optimizer, clip_grad)
        self._scaler.unscale_(optimizer)
        norm = self._clip(optimizer, clip_grad)
        fused = optimizer.defaults.get('fused')
        before = 0 if fused else steps_taken(optimizer)
        self._scaler.step(optimizer)
        # The scaler also knows overflows of chips that saturate instead of giving inf: the count tells.
        bad = (~torch.isfinite(norm)).int() if fused else 1 - (steps_taken(optimizer) - before)
        self._scaler.update(self._fixed_scale)
        optimizer.zero_grad()
        return bad

    @property
    def scale(self):
        return self.state_dict().get('scale', 1.)

    def state_dict(self):
        return self._scaler.state_dict() if self._scaler else {}

    def load_state_dict(self, state):
        if self._scaler and state:
            self._scaler.load_state_dict(state)


class ApexO2(FullPrecision):
    """apex O2: fp16 model, fp32 master weights inside the optimizer, scaled loss.

    apex itself skips steps under a dynamic loss scale only; under a static one the norm of the gradients decides here.
    """
    gradients_stay_in_model = False

    def __init__(self, apex, loss_scale='dynamic'):
        self.name = 'apex O2, loss scale {}'.format(loss_scale)
        self._apex, self._loss_scale = apex, loss_scale
        self._names, self._frozen = [], {}
        self._need_gradient = []

    def adamw(self, accelerator, param_groups, **options):
        optimizers = getattr(self._apex, 'optimizers', None)
        return getattr(optimizers, 'NpuFusedAdamW', torch.optim.AdamW)(param_groups, **options)

    def prepare(self, model, optimizer):
        amp = self._apex.amp
        trained, names = self._trained_parameters(optimizer), {id(p): name for name, p in model.named_parameters()}
        self._names = [names[id(p)] for p in trained]
        # apex rounds to fp16 before it makes its masters: keep what the weights were.
        exact = [p.detach().float().clone() for p in trained]
        self._frozen = {name: p.detach().float().clone() for name, p in model.named_parameters()
                        if name not in self._names}
        # combine_grad is Ascend's own: gradients lie in one buffer, which its fused optimizer needs. What has no
        # gradient at the first backward would be left out for good.
        combine = {'combine_grad': True} if accepts(amp.initialize, 'combine_grad') else {}
        self._need_gradient = trained if combine else []
        model, optimizer = amp.initialize(model, optimizer, opt_level='O2', loss_scale=self._loss_scale, verbosity=0,
                                          **combine)
        optimizer.zero_grad()       # makes the master weights now: loading the optimizer's state must come after
        with torch.no_grad():
            for master, value in zip(self._trained_parameters(optimizer), exact):
                master.copy_(value)
        return model, optimizer

    def prepare_inference(self, model):
        return self._apex.amp.initialize(model, opt_level='O2', verbosity=0)

    def backward(self, loss, optimizer):
        with self._apex.amp.scale_loss(loss, optimizer) as scaled:
            scaled.backward()
            for parameter in self._need_gradient:       # at the first backward
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self._need_gradient = []

    def step(self, optimizer, clip_grad=None):
        if self._loss_scale != 'dynamic':
            return super().step(optimizer, clip_grad)
        before = steps_taken(optimizer)
        if clip_grad is not None:
            self._clip(optimizer, clip_grad)
        optimizer.step()                    # after an overflow apex has replaced this call by one that changes nothing
        optimizer.zero_grad()
        return 1 - (steps_taken(optimizer) - before)

    @property
    def scale(self):
        return next(iter(self._apex.amp.state_dict().values()))['loss_scale']

    def model_state(self, model, optimizer):
        state = {name: value.float() if value.is_floating_point() else value
                 for name, value in model.state_dict().items()}
        state.update(self._frozen)
        state.update((name, p.detach()) for name, p in self.trained_weights(model, optimizer).items())
        return state

    def trained_weights(self, model, optimizer):
        return dict(zip(self._names, self._trained_parameters(optimizer)))

    def state_dict(self):
        return self._apex.amp.state_dict()

    def load_state_dict(self, state):
        if state:
            self._apex.amp.load_state_dict(state)


def choose_precision(accelerator, amp=False, backend='auto', dtype='auto', loss_scale='dynamic'):
    """The precision for a device and the --amp flags.

    Args:
        accelerator: from util.device.select.
        amp: --amp; naming a backend ('apex', 'native') or a dtype ('fp16', 'bf16') asks for it too.
        loss_scale: 'dynamic' or a number, for fp16.
    Raises:
        UserError: what was asked for by name does not exist here.
    """
    asked = backend in ('apex', 'native') or dtype != 'auto'
    if backend == 'none' or not (asked or amp and accelerator.amp_is_faster()):
        return FullPrecision()
    if asked:
        return (_apex_o2 if backend == 'apex' else _native)(accelerator, dtype, loss_scale)
    for kind in (_apex_o2, _native) if accelerator.type == 'npu' else (_native, _apex_o2):
        with suppress(UserError):
            return kind(accelerator, dtype, loss_scale)
    return FullPrecision()


def _native(accelerator, dtype, loss_scale):
    if not accelerator.is_accelerator and dtype == 'fp16':
        raise UserError('--amp_dtype fp16: needs an accelerator; on a CPU use bf16 or leave it out')
    if dtype == 'bf16' and not accelerator.supports_bf16():
        raise UserError('--amp_dtype bf16: {} does not support it; use fp16'.format(accelerator.name))
    half = torch.bfloat16 if dtype != 'fp16' and accelerator.supports_bf16() else torch.float16
    if _autocast_factory(accelerator, half) is None:
        raise UserError('--amp_backend native: torch {} has no autocast for {}; use apex or none'
                        .format(torch.__version__, accelerator.type))
    return NativeAmp(accelerator, half, loss_scale)


def _apex_o2(accelerator, dtype, loss_scale):
    if not accelerator.is_accelerator:
        raise UserError('--amp_backend apex: needs an accelerator; on a CPU leave it out')
    if dtype == 'bf16':
        raise UserError('--amp_dtype bf16: apex O2 knows fp16 only; use --amp_backend native')
    try:
        apex = importlib.import_module('apex')
        importlib.import_module('apex.amp').initialize      # noqa: B018  (another project's apex has none)
    except (AttributeError, ImportError, RuntimeError, OSError, SystemExit) as error:
        raise UserError("--amp_backend apex: apex.amp does not import ({}); install your vendor's build (the package "
                        "'apex' on PyPI is another project) or use --amp_backend native".format(error)) from error
    with suppress(ImportError):                             # the optimizers are an optional extension
        importlib.import_module('apex.optimizers')
    return ApexO2(apex, loss_scale)


def _autocast_factory(accelerator, dtype):
    """A function that makes an autocast context, or None where this torch has none for the device and type."""
    if hasattr(torch, 'autocast') and accepts(torch.autocast, 'device_type'):
        with suppress(RuntimeError):                # where this torch does not know the device by that name
            torch.autocast(accelerator.type, dtype=dtype)
            return lambda: torch.autocast(accelerator.type, dtype=dtype)
    autocast = getattr(getattr(getattr(accelerator, 'module', None), 'amp', None), 'autocast', None)
    if autocast is None:
        return None
    if accepts(autocast, 'dtype'):
        return lambda: autocast(dtype=dtype)
    return autocast if dtype == torch.float16 else None


def _new_scaler(accelerator, fixed_scale):
    options = {} if fixed_scale is None else {'init_scale': fixed_scale}
    # torch_npu's own scaler also notices the overflows of chips that saturate instead of giving inf.
    if accelerator.type != 'npu' and hasattr(getattr(torch, 'amp', None), 'GradScaler'):
        return torch.amp.GradScaler(accelerator.type, **options)
    return accelerator.module.amp.GradScaler(**options)
