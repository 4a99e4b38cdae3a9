"""apex.amp at O2, with the parameters that the program passes."""
import contextlib
from collections import OrderedDict

import torch

from .._masters import MasterWeights
from .._scaler import LossScaler

_scaler = []


def initialize(models, optimizers=None, opt_level='O1', loss_scale=None, verbosity=1, combine_grad=None):
    """Convert a model and its optimizer in place, and return them."""
    if opt_level != 'O2':
        raise NotImplementedError('the stand-in knows O2 only')
    _convert(models)
    _scaler[:] = [LossScaler('dynamic' if loss_scale is None else loss_scale)]
    if optimizers is None:
        return models
    if hasattr(optimizers, '_amp_stash'):
        raise RuntimeError('amp: this optimizer was initialized before')
    optimizers.load_state_dict(optimizers.state_dict())
    if MasterWeights(optimizers, combine_grad).combines:
        torch.nn.Module.zero_grad = _module_zero_grad           # for every module there is, as the original does
    return models, optimizers


def _convert(model):
    """fp16 inside, fp32 outside."""
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        raise RuntimeError('amp: initialize comes before the parallel wrapper')
    if any(parameter.dtype == torch.float16 for parameter in model.parameters()):
        raise RuntimeError('amp: the model is fp16 already')
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.affine:
            continue
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            if tensor.is_floating_point():
                tensor.data = tensor.data.half()
    forward = model.forward

    def half_forward(*args, **kwargs):
        return _cast(forward(*_cast(args, torch.float16), **_cast(kwargs, torch.float16)), torch.float32)
    model.forward = half_forward
    for module in model.modules():
        module._register_state_dict_hook(_to_fp32)


def _to_fp32(module, state, prefix, local_metadata):
    """What state_dict gives is of fp32, though rounded to fp16 before."""
    for name, value in state.items():
        if torch.is_tensor(value) and value.dtype == torch.float16:
            state[name] = value.float()


def _cast(value, dtype):
    """`value` with its floating-point tensors of another type."""
    if torch.is_tensor(value):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _cast(item, dtype) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_cast(item, dtype) for item in value)
    return value


def _module_zero_grad(self, set_to_none=False):
    assert set_to_none is False, 'amp: combined gradients are never set to None'
    for parameter in self.parameters():
        if parameter.grad is not None:
            parameter.grad.detach_().zero_()


@contextlib.contextmanager
def scale_loss(loss, optimizer):
    """Gives the scaled loss; its gradients are in the masters, unscaled, when the context ends."""
    scaler, = _scaler
    optimizer._amp_stash.before_backward()
    scaler.before_backward()
    yield loss.float() * scaler.loss_scale
    scaler.after_backward()
    optimizer._amp_stash.after_backward(scaler)
    if scaler.update_scale():
        optimizer._amp_stash.skips_next_step = True


def state_dict():
    """The scale and how long it has held."""
    scaler, = _scaler
    return OrderedDict(loss_scaler0={'loss_scale': scaler.loss_scale, 'unskipped': scaler.unskipped})


def load_state_dict(state_dict):
    """Restore what state_dict gave."""
    scaler, (saved,) = *_scaler, state_dict.values()
    scaler.loss_scale, scaler.unskipped = saved['loss_scale'], saved['unskipped']
