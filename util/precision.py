"""Numeric precision of training behind one interface: fp32, native autocast with or without scaling, apex O2.

The loops call autocast, backward and step; only this module knows what stands behind them.
"""
import importlib
from contextlib import contextmanager

import torch

from util.errors import UserError
from util.features import accepts


@contextmanager
def nothing():
    """A context that does nothing (one that torch 1.5 and Python 3.7 share)."""
    yield


class FullPrecision:
    """fp32 throughout, and the interface of the others."""
    name = 'fp32'
    # False where every backward must exchange gradients, because they leave the model right after it, from the memory
    # that they were first in.
    gradients_stay_in_model = True

    def prepare(self, model, optimizer):
        """Convert a model on its device and its optimizer, before DistributedDataParallel wraps the model."""
        return model, optimizer

    def prepare_inference(self, model):
        """Convert a model on its device that will not be trained."""
        return model

    def adamw(self, accelerator, param_groups, **options):
        """The optimizer class that goes with this precision."""
        return accelerator.adamw(param_groups, **options)

    def autocast(self):
        """Context of the forward pass."""
        return nothing()

    def backward(self, loss, optimizer):
        """Add the gradients of `loss` to those of this accumulation window."""
        loss.backward()

    def step(self, optimizer, clip_grad=None):
        """Close the window: clip to a 2-norm of `clip_grad` if given, update the weights, clear the gradients."""
        self._clip(optimizer, clip_grad)
        optimizer.step()
        optimizer.zero_grad()

    def _clip(self, optimizer, clip_grad):
        if clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self._trained_parameters(optimizer), clip_grad)

    def _trained_parameters(self, optimizer):
        return [p for group in optimizer.param_groups for p in group['params']]

    @property
    def skipped_steps(self):
        """Optimizer steps that overflows have skipped since this run started; reading it may wait for the device."""
        return 0

    def model_state(self, model, optimizer):
        """state_dict of the bare model in fp32."""
        return model.state_dict()

    def state_dict(self):
        """What the loss scaler remembers; plain types."""
        return {}

    def load_state_dict(self, state):
        """Restore what state_dict gave."""


class StepCount:
    """How many of the steps asked for AdamW took, by the count in its state: it costs nothing until it is read."""

    def __init__(self):
        self._optimizer, self._asked, self._before = None, 0, 0

    def ask(self, optimizer):
        """Call this before each optimizer.step()."""
        if self._optimizer is None:
            self._optimizer, self._before = optimizer, self._taken(optimizer)
        self._asked += 1

    @property
    def skipped(self):
        """Steps asked for and not taken."""
        return self._asked - (self._taken(self._optimizer) - self._before) if self._asked else 0

    @staticmethod
    def _taken(optimizer):
        counts = [state['step'] for state in optimizer.state.values() if 'step' in state]
        if counts and torch.is_tensor(counts[0]):
            return int(torch.stack(counts).max())
        return max(counts, default=0)


class NativeAmp(FullPrecision):
    """PyTorch's autocast; with fp16 also its gradient scaler, dynamic or at a fixed scale."""

    def __init__(self, accelerator, dtype, loss_scale='dynamic'):
        self.name = 'native ' + ('bf16' if dtype == torch.bfloat16 else 'fp16')
        self._autocast = _autocast_factory(accelerator, dtype)
        self._scaler, self._steps = None, StepCount()
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
        self._steps.ask(optimizer)
        if clip_grad is not None:
            self._scaler.unscale_(optimizer)
            self._clip(optimizer, clip_grad)
        self._scaler.step(optimizer)
        self._scaler.update(self._fixed_scale)
        optimizer.zero_grad()

    @property
    def skipped_steps(self):
        return self._steps.skipped

    def state_dict(self):
        return self._scaler.state_dict() if self._scaler else {}

    def load_state_dict(self, state):
        if self._scaler and state:
            self._scaler.load_state_dict(state)


class ApexO2(FullPrecision):
    """apex O2: fp16 model, fp32 master weights inside the optimizer, scaled loss.

    A static loss scale looks for no overflow, as apex has it: only a dynamic one skips steps.
    """
    gradients_stay_in_model = False

    def __init__(self, apex, loss_scale='dynamic'):
        self.name = 'apex O2, loss scale {}'.format(loss_scale)
        self._apex, self._loss_scale = apex, loss_scale
        self._names, self._frozen, self._steps = [], {}, StepCount()
        self._need_gradient = []

    def adamw(self, accelerator, param_groups, **options):
        fused = getattr(getattr(self._apex, 'optimizers', None), 'NpuFusedAdamW', None)
        return (fused or torch.optim.AdamW)(param_groups, **options)

    def prepare(self, model, optimizer):
        amp = self._apex.amp
        trained, names = self._trained_parameters(optimizer), {id(p): name for name, p in model.named_parameters()}
        self._names = [names[id(p)] for p in trained]
        # apex rounds to fp16 before it makes its masters: keep what the weights were.
        exact = [p.detach().float().clone() for p in trained]
        self._frozen = {name: p.detach().float().clone() for name, p in model.named_parameters()
                        if name not in self._names}
        # combine_grad is Ascend's own: gradients lie in one buffer, which its fused optimizer needs.
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
            self._give_all_a_gradient()

    def _give_all_a_gradient(self):
        """At the first backward: combine_grad would leave out for good whatever has no gradient then."""
        for parameter in self._need_gradient:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._need_gradient = []

    def step(self, optimizer, clip_grad=None):
        self._steps.ask(optimizer)
        super().step(optimizer, clip_grad)

    @property
    def skipped_steps(self):
        return self._steps.skipped

    def model_state(self, model, optimizer):
        state = {name: value.float() if value.is_floating_point() else value
                 for name, value in model.state_dict().items()}
        state.update(self._frozen)
        state.update(zip(self._names, (p.detach() for p in self._trained_parameters(optimizer))))
        return state

    def state_dict(self):
        return self._apex.amp.state_dict()

    def load_state_dict(self, state):
        if state:
            self._apex.amp.load_state_dict(state)


def choose(accelerator, amp=False, backend='auto', dtype='auto', loss_scale='dynamic'):
    """The precision for a device and the --amp flags.

    Args:
        accelerator: from util.device.select.
        amp: --amp; naming a backend ('apex', 'native') or a dtype ('fp16', 'bf16') asks for it too.
        loss_scale: 'dynamic' or a number, for fp16.
    Raises:
        UserError: what was asked for by name does not exist here.
    """
    asked = backend in ('apex', 'native') or dtype != 'auto'
    if backend == 'none' or not (amp or asked):
        return FullPrecision()
    if backend == 'apex':
        return _apex_o2(accelerator, dtype, loss_scale)
    if backend == 'auto' and dtype == 'auto' and accelerator.type == 'npu':
        apex, _ = _import_apex()
        if apex:
            return ApexO2(apex, loss_scale)
    return _native(accelerator, asked, dtype, loss_scale)


def _native(accelerator, asked, dtype, loss_scale):
    if not accelerator.is_accelerator and not asked:
        return FullPrecision()                      # half precision makes a CPU slower
    if not accelerator.is_accelerator and dtype == 'fp16':
        raise UserError('--amp_dtype fp16: needs an accelerator; on a CPU use bf16 or leave it out')
    bf16 = dtype == 'bf16' or (dtype == 'auto' and accelerator.supports_bf16())
    if dtype == 'bf16' and not accelerator.supports_bf16():
        raise UserError('--amp_dtype bf16: {} does not support it; use fp16'.format(accelerator.name))
    if _autocast_factory(accelerator, torch.bfloat16 if bf16 else torch.float16) is None:
        if asked:
            raise UserError('--amp_backend native: torch {} has no autocast for {}; use apex or none'
                            .format(torch.__version__, accelerator.type))
        apex, _ = _import_apex()
        return ApexO2(apex, loss_scale) if apex else FullPrecision()
    return NativeAmp(accelerator, torch.bfloat16 if bf16 else torch.float16, loss_scale)


def _apex_o2(accelerator, dtype, loss_scale):
    if not accelerator.is_accelerator:
        raise UserError('--amp_backend apex: needs an accelerator; on a CPU leave it out')
    if dtype == 'bf16':
        raise UserError('--amp_dtype bf16: apex O2 knows fp16 only; use --amp_backend native')
    apex, why_not = _import_apex()
    if apex is None:
        raise UserError("--amp_backend apex: {}; install your vendor's build (the package 'apex' on PyPI is another "
                        'project) or use --amp_backend native'.format(why_not))
    return ApexO2(apex, loss_scale)


def _import_apex():
    """(apex, None) with amp and optimizers imported, or (None, why not)."""
    try:
        apex = importlib.import_module('apex')
        importlib.import_module('apex.amp')
    except (ImportError, RuntimeError, OSError, SystemExit) as error:
        return None, 'apex.amp does not import ({})'.format(error)
    if not hasattr(apex.amp, 'initialize'):
        return None, 'the installed apex has no amp'
    try:
        importlib.import_module('apex.optimizers')
    except ImportError:
        pass                                        # the optimizers are an optional extension
    return apex, None


def _autocast_factory(accelerator, dtype):
    """A function that makes an autocast context, or None where this torch has none for the device and type."""
    if hasattr(torch, 'autocast') and accepts(torch.autocast, 'device_type'):
        try:
            torch.autocast(accelerator.type, dtype=dtype)
            return lambda: torch.autocast(accelerator.type, dtype=dtype)
        except RuntimeError:
            pass                                    # this torch does not know the device by that name
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
