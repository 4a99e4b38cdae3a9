"""apex.amp at O2: initialize, scale_loss, master_params, state_dict and load_state_dict."""
import contextlib
from collections import OrderedDict

import torch

from .._masters import MasterWeights
from .._scaler import LossScaler

_scalers, _enabled = [], [False]


def initialize(models, optimizers=None, enabled=True, opt_level='O1', cast_model_type=None, patch_torch_functions=None,
               keep_batchnorm_fp32=None, master_weights=None, loss_scale=None, cast_model_outputs=None, num_losses=1,
               verbosity=1, dynamic_init_scale=2. ** 16, scale_growth_factor=2., scale_backoff_factor=.5,
               scale_window=2000, min_loss_scale=None, max_loss_scale=2. ** 24, combine_grad=None, combine_ddp=None,
               ddp_replica_count=4, user_cast_preferred=None, check_combined_tensors=None):
    """Convert models and optimizers in place, and return them in the shape that they came in."""
    _enabled[0] = enabled
    if not enabled:
        return models if optimizers is None else (models, optimizers)
    listed = optimizers if isinstance(optimizers, list) else [optimizers] if optimizers is not None else []
    if opt_level not in ('O1', 'O2') and any(getattr(o, 'is_npu_fused_optimizer', False) for o in listed):
        raise RuntimeError('amp: a fused NPU optimizer needs O1 or O2')
    if opt_level != 'O2' or any([cast_model_type, patch_torch_functions, master_weights is False, combine_ddp,
                                 user_cast_preferred, check_combined_tensors]):
        raise NotImplementedError('the stand-in knows O2 with master weights only')
    for model in models if isinstance(models, list) else [models]:
        _convert(model, keep_batchnorm_fp32 not in (False, 'False'), cast_model_outputs or torch.float32)
    for optimizer in listed:
        if hasattr(optimizer, '_amp_stash'):
            raise RuntimeError('amp: this optimizer was initialized before')
        optimizer.load_state_dict(optimizer.state_dict())
        MasterWeights(optimizer, combine_grad)
    _scalers[:] = [LossScaler('dynamic' if loss_scale is None else loss_scale, dynamic_init_scale, scale_growth_factor,
                              scale_backoff_factor, scale_window, min_loss_scale, max_loss_scale)
                   for _ in range(num_losses)]
    if combine_grad or any(optimizer._amp_stash.fused for optimizer in listed):
        torch.nn.Module.zero_grad = _module_zero_grad           # for every module there is, as the original does
    return models if optimizers is None else (models, optimizers)


def _convert(model, keeps_batchnorm, output_type):
    """fp16 inside, fp32 outside."""
    if isinstance(model, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        raise RuntimeError('amp: initialize comes before the parallel wrapper')
    if any(parameter.dtype == torch.float16 for parameter in model.parameters()):
        raise RuntimeError('amp: the model is fp16 already')
    for module in model.modules():
        if keeps_batchnorm and isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.affine:
            continue
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            if tensor.is_floating_point():
                tensor.data = tensor.data.half()
    forward = model.forward

    def half_forward(*args, **kwargs):
        return _cast(forward(*_cast(args, torch.float16), **_cast(kwargs, torch.float16)), output_type)
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
def scale_loss(loss, optimizers, loss_id=0, model=None, delay_unscale=False, delay_overflow_check=False):
    """Gives the scaled loss; its gradients are in the masters, unscaled, when the context ends."""
    if not _enabled[0]:
        yield loss
        return
    if delay_unscale or delay_overflow_check:
        raise NotImplementedError('the stand-in unscales after each backward')
    if not _scalers:
        raise RuntimeError('amp: scale_loss before initialize')
    scaler = _scalers[loss_id]
    listed = optimizers if isinstance(optimizers, list) else [optimizers]
    for optimizer in listed:
        optimizer._amp_stash.before_backward()
    scaler.before_backward()
    yield loss.float() * scaler.loss_scale()
    scaler.after_backward()
    for optimizer in listed:
        optimizer._amp_stash.after_backward(scaler)
    if scaler.update_scale():
        for optimizer in listed:
            optimizer._amp_stash.skips_next_step = True


def master_params(optimizer):
    """What the optimizer steps."""
    return (parameter for group in optimizer.param_groups for parameter in group['params'])


def state_dict(destination=None):
    """The scales and how long each has held."""
    destination = OrderedDict() if destination is None else destination
    for i, scaler in enumerate(_scalers):
        destination['loss_scaler{}'.format(i)] = {'loss_scale': scaler._loss_scale, 'unskipped': scaler._unskipped}
    return destination


def load_state_dict(state_dict):
    """Restore what state_dict gave."""
    foreign = [name for name in state_dict if 'loss_scaler' not in name]
    if foreign:
        raise RuntimeError('amp: unexpected keys {}'.format(foreign))
    for scaler, saved in zip(_scalers, state_dict.values()):
        scaler._loss_scale, scaler._unskipped = saved['loss_scale'], saved['unskipped']
