"""Mixed precision: fp32, native autocast with or without loss scaling, and apex O2, behind one interface."""
import importlib
import math
from contextlib import nullcontext, suppress
from typing import Any, ContextManager, Dict, Optional, Tuple, Union

import torch
from torch import nn
from torch.optim import Optimizer

from util.compat import accepts
from util.devices.accelerator import Cpu
from util.devices.flat_adamw import FlatAdamW, LossScale
from util.errors import UserError


class FullPrecision:
    """fp32, and the interface of all precisions."""
    name = 'fp32'
    # False if each backward has to all-reduce, since the optimizer takes the gradients from the model right after it.
    supports_no_sync = True
    supports_bucket_view = True     # False if gradients must keep their first memory
    accelerator = Cpu()             # that of adamw
    _scaler: Optional[LossScale] = None

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> Tuple[nn.Module, Optimizer]:
        """Convert a model on its device and its optimizer, before DistributedDataParallel wraps the model."""
        return model, optimizer

    def prepare_inference(self, model: nn.Module) -> nn.Module:
        """Convert a model on its device for inference only."""
        return model

    def adamw(self, accelerator: Cpu, param_groups: Any, **options: Any) -> Optimizer:
        """AdamW for this precision and device."""
        self.accelerator = accelerator
        return accelerator.adamw(param_groups, **options)

    def autocast(self) -> ContextManager:
        """Context of the forward pass."""
        return nullcontext()

    def backward(self, loss: torch.Tensor, optimizer: Optimizer) -> None:
        """Accumulate the gradients of `loss`."""
        (self._scaler.scale(loss) if self._scaler else loss).backward()

    def step(self, optimizer: Optimizer, clip_grad: Optional[float] = None) -> Union[int, torch.Tensor]:
        """Clip the gradients to a 2-norm of `clip_grad` if given, update the weights, clear the gradients.

        Returns 1 if the update is skipped, since a gradient is not finite, else 0; a tensor on the device where a flat
        or fused optimizer decides, so that the host never waits.
        """
        if self._scaler:
            self._scaler.unscale_(optimizer)
        finite = self.accelerator.all_finite(self._clip(optimizer, clip_grad))
        skipped = (~finite).int()
        if isinstance(optimizer, FlatAdamW):
            optimizer.step(finite)
        elif self.accelerator.is_accelerator and optimizer.defaults.get('fused'):
            optimizer.found_inf = skipped.float()       # if 1, the step changes nothing
            optimizer.step()
        else:
            skipped = int(skipped)
            if not skipped:
                optimizer.step()
        optimizer.zero_grad()
        if self._scaler:
            self._scaler.update(skipped)
        return skipped

    def _clip(self, optimizer: Optimizer, clip_grad: Optional[float]) -> torch.Tensor:
        """Clip if requested; returns the 2-norm before, a 0-dimensional tensor, not finite if a gradient is not."""
        if isinstance(optimizer, FlatAdamW):
            return optimizer.clip_grad_norm_(clip_grad)
        if clip_grad is None and hasattr(nn.utils, 'get_total_norm'):
            return nn.utils.get_total_norm([p.grad for p in _parameters(optimizer) if p.grad is not None])
        return nn.utils.clip_grad_norm_(_parameters(optimizer), math.inf if clip_grad is None else clip_grad)

    def model_state(self, model: nn.Module, optimizer: Optimizer) -> Dict[str, torch.Tensor]:
        """state_dict of the unwrapped model in fp32."""
        return model.state_dict()

    def trained_weights(self, model: nn.Module, optimizer: Optional[Optimizer]) -> Dict[str, nn.Parameter]:
        """The fp32 parameters that the optimizer updates, by name."""
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    def state_dict(self) -> Dict[str, Any]:
        """State of the loss scaler, as plain types."""
        return self._scaler.state_dict() if self._scaler else {}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Restore the loss scaler."""
        if self._scaler and state:
            self._scaler.load_state_dict(state)

    @property
    def loss_scale(self) -> float:
        """The current one; synchronizes with the device."""
        return self.state_dict().get('scale', 1.)


def _parameters(optimizer):
    return [p for group in optimizer.param_groups for p in group['params']]


def _steps_taken(optimizer):
    return max((int(state['step']) for state in optimizer.state.values() if 'step' in state), default=0)


class NativeAmp(FullPrecision):
    """torch.autocast; with fp16 also a loss scale, dynamic or fixed."""

    def __init__(self, accelerator: Cpu, dtype: torch.dtype, loss_scale: Union[str, float] = 'dynamic'):
        self.name = 'native ' + ('bf16' if dtype == torch.bfloat16 else 'fp16')
        self.autocast = _autocast_factory(accelerator, dtype)
        if dtype == torch.float16:
            fixed = None if loss_scale == 'dynamic' else float(loss_scale)
            self._scaler = LossScale(torch.device(accelerator.type), fixed)
            self.name += ', loss scale {}'.format(loss_scale)


class ApexO2(FullPrecision):
    """apex O2: fp16 model, fp32 master weights in the optimizer, scaled loss."""
    supports_no_sync = False
    supports_bucket_view = False

    def __init__(self, apex: Any, loss_scale: Union[str, float] = 'dynamic'):
        self.name = 'apex O2, loss scale {}'.format(loss_scale)
        self._apex, self._scale_flag = apex, loss_scale
        self._names, self._frozen, self._zero_filled = [], {}, []

    def adamw(self, accelerator: Cpu, param_groups: Any, **options: Any) -> Optimizer:
        self.accelerator = accelerator
        optimizers = getattr(self._apex, 'optimizers', None)
        return getattr(optimizers, 'NpuFusedAdamW', torch.optim.AdamW)(param_groups, **options)

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> Tuple[nn.Module, Optimizer]:
        amp = self._apex.amp
        trained, names = _parameters(optimizer), {id(p): name for name, p in model.named_parameters()}
        self._names = [names[id(p)] for p in trained]
        # apex rounds to fp16 before it creates the master weights: keep the exact fp32 values.
        exact = [p.detach().float().clone() for p in trained]
        self._frozen = {name: p.detach().float().clone() for name, p in model.named_parameters()
                        if name not in self._names}
        # combine_grad exists in Ascend's apex only: one gradient buffer, which its fused optimizer requires. Parameters
        # without a gradient in the first backward would be left out of it for good, so backward fills in zeros.
        combine = {'combine_grad': True} if accepts(amp.initialize, 'combine_grad') else {}
        self._zero_filled = trained if combine else []
        model, optimizer = amp.initialize(model, optimizer, opt_level='O2', loss_scale=self._scale_flag, verbosity=0,
                                          **combine)
        optimizer.zero_grad()       # creates the master weights now: optimizer state must be loaded after this
        with torch.no_grad():
            for master, value in zip(_parameters(optimizer), exact):
                master.copy_(value)
        return model, optimizer

    def prepare_inference(self, model: nn.Module) -> nn.Module:
        return self._apex.amp.initialize(model, opt_level='O2', verbosity=0)

    def backward(self, loss: torch.Tensor, optimizer: Optimizer) -> None:
        with self._apex.amp.scale_loss(loss, optimizer) as scaled:
            scaled.backward()
            for parameter in self._zero_filled:       # in the first backward
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self._zero_filled = []

    def step(self, optimizer: Optimizer, clip_grad: Optional[float] = None) -> Union[int, torch.Tensor]:
        if self._scale_flag != 'dynamic':       # apex itself skips steps under a dynamic scale only
            return super().step(optimizer, clip_grad)
        before = _steps_taken(optimizer)
        if clip_grad is not None:
            self._clip(optimizer, clip_grad)
        optimizer.step()                    # after an overflow apex has patched this to change nothing
        optimizer.zero_grad()
        return 1 - (_steps_taken(optimizer) - before)

    @property
    def loss_scale(self) -> float:
        return next(iter(self._apex.amp.state_dict().values()))['loss_scale']

    def model_state(self, model: nn.Module, optimizer: Optimizer) -> Dict[str, torch.Tensor]:
        state = {name: value.float() if value.is_floating_point() else value
                 for name, value in model.state_dict().items()}
        state.update(self._frozen)
        state.update((name, p.detach()) for name, p in self.trained_weights(model, optimizer).items())
        return state

    def trained_weights(self, model: nn.Module, optimizer: Optimizer) -> Dict[str, nn.Parameter]:
        return dict(zip(self._names, _parameters(optimizer)))

    def state_dict(self) -> Dict[str, Any]:
        return self._apex.amp.state_dict()

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        if state:
            self._apex.amp.load_state_dict(state)


def choose_precision(accelerator: Cpu, amp: bool = False, backend: str = 'auto', dtype: str = 'auto',
                     loss_scale: Union[str, float] = 'dynamic') -> FullPrecision:
    """The precision selected by a device and the --amp flags.

    Args:
        amp: --amp; a backend ('apex', 'native') or dtype ('fp16', 'bf16') other than 'auto' implies it.
        loss_scale: 'dynamic' or a number, for fp16.
    Raises:
        UserError: the requested backend or dtype is not available.
    """
    explicit = backend in ('apex', 'native') or dtype != 'auto'
    if backend == 'none' or not (explicit or amp and accelerator.amp_is_faster()):
        return FullPrecision()
    if explicit:
        return (_apex_o2 if backend == 'apex' else _native)(accelerator, dtype, loss_scale)
    for build in (_apex_o2, _native) if accelerator.type == 'npu' else (_native, _apex_o2):
        with suppress(UserError):
            return build(accelerator, dtype, loss_scale)
    return FullPrecision()


def _native(accelerator, dtype, loss_scale):
    if not accelerator.is_accelerator and dtype == 'fp16':
        raise UserError('--amp_dtype fp16: requires an accelerator; use bf16 or omit it on a CPU')
    if dtype == 'bf16' and not accelerator.supports_bf16():
        raise UserError('--amp_dtype bf16: {} does not support it; use fp16'.format(accelerator.name))
    half = torch.bfloat16 if dtype != 'fp16' and accelerator.supports_bf16() else torch.float16
    if _autocast_factory(accelerator, half) is None:
        raise UserError('--amp_backend native: torch {} has no autocast for {}; use apex or none'
                        .format(torch.__version__, accelerator.type))
    return NativeAmp(accelerator, half, loss_scale)


def _apex_o2(accelerator, dtype, loss_scale):
    if not accelerator.is_accelerator:
        raise UserError('--amp_backend apex: requires an accelerator; omit it on a CPU')
    if dtype == 'bf16':
        raise UserError('--amp_dtype bf16: apex O2 supports fp16 only; use --amp_backend native')
    try:
        apex = importlib.import_module('apex')
        importlib.import_module('apex.amp').initialize      # noqa: B018  (missing in the unrelated apex of PyPI)
    except (AttributeError, ImportError, RuntimeError, OSError, SystemExit) as error:
        raise UserError("--amp_backend apex: apex.amp does not import ({}); install your vendor's build (the package "
                        "'apex' on PyPI is another project) or use --amp_backend native".format(error)) from error
    with suppress(ImportError):                             # an optional extension
        importlib.import_module('apex.optimizers')
    return ApexO2(apex, loss_scale)


def _autocast_factory(accelerator, dtype):
    """Constructor of autocast contexts; None if this torch has none for the device and dtype."""
    if hasattr(torch, 'autocast') and accepts(torch.autocast, 'device_type'):
        with suppress(RuntimeError):                # if this torch does not support the device type
            torch.autocast(accelerator.type, dtype=dtype)
            return lambda: torch.autocast(accelerator.type, dtype=dtype)
    autocast = getattr(getattr(getattr(accelerator, 'module', None), 'amp', None), 'autocast', None)
    if autocast is None:
        return None
    if accepts(autocast, 'dtype'):
        return lambda: autocast(dtype=dtype)
    return autocast if dtype == torch.float16 else None
