"""Checkpoint schema: every key of a checkpoint (CHECKPOINT, FLAGS), and validation of the types."""
from typing import Any, Dict, List, Tuple

import torch

from util.config.normalization import valid_statistics
from util.errors import UserError

State, Weights = Dict[str, Any], Dict[str, torch.Tensor]


def validate(state: State, path: str) -> None:
    """Raise UserError, naming the file at `path`, if a value of a checkpoint or of a part violates the schema."""
    for name, value in _violations(state, CHECKPOINT):
        raise UserError('{}: not a checkpoint of this program: {!r} is {!r:.60}'.format(path, name, value))
    if 'optimizer' in state and state.get('epoch') is None:
        raise UserError('{}: not a training checkpoint: it has an optimizer but no epoch'.format(path))
    flags = state.get('args') or {}
    for name, value in _violations(flags, FLAGS):
        raise UserError('{}: invalid flag in the checkpoint: --{} {!r:.60}'.format(path, name, value))
    if not valid_statistics(flags):
        raise UserError('{}: invalid flags in the checkpoint: --mean {} --std {}'.format(path, flags.get('mean'),
                                                                                        flags.get('std')))


def validate_optimizer(optimizer: torch.optim.Optimizer, saved: State, path: str) -> None:
    """Raise UserError if `saved` state, which passed `validate`, differs from the parameters in number, shape or dtype.

    Fused optimizers index by the parameter's shape, so a smaller moment would be written out of bounds.
    """
    groups = optimizer.param_groups
    if [len(group['params']) for group in groups] != [len(group['params']) for group in saved['param_groups']]:
        raise UserError('{}: the optimizer has different parameter groups, as with another --freeze; pass it to '
                        '--finetune instead of --resume'.format(path))
    keys = [key for group in saved['param_groups'] for key in group['params']]
    parameters = dict(zip(keys, (parameter for group in groups for parameter in group['params'])))
    if len(parameters) != len(keys) or not set(saved['state']) <= set(parameters):
        raise UserError('{}: inconsistent parameter indices in the optimizer state'.format(path))
    for key, moments in saved['state'].items():
        for name, value in moments.items():
            if name == 'step':
                fits = int(value) >= 0
            else:
                fits = value is None or torch.is_tensor(value) and (
                    value.shape, value.dtype) == (parameters[key].shape, parameters[key].dtype)
            if not fits:
                raise UserError('{}: {} in the optimizer state does not match a parameter of shape {}'.format(
                    path, name, tuple(parameters[key].shape)))


def is_state_dict(value: Any) -> bool:
    """Whether a value is a dict of tensors by name."""
    return type(value) is dict and all(type(name) is str and torch.is_tensor(tensor) for name, tensor in value.items())


def _violations(values: State, types: Dict[str, Any]) -> List[Tuple[str, Any]]:
    return [(name, values[name]) for name, kinds in types.items()
            if values.get(name) is not None and not isinstance(values[name], kinds)]


# Types of all keys, of which only 'model' is required.
CHECKPOINT = {
    'model': dict,                  # weights in fp32
    'model_ema': dict,              # --ema: averaged weights, under the names of 'model'
    'ema_updates': int,             # optimizer steps that 'model_ema' has averaged
    'optimizer': dict,              # its state_dict
    'scaler': dict,                 # loss scale
    'epoch': int,                   # last complete epoch, counted from 0
    'images': int,                  # images done in the next epoch
    'progress': dict,               # EpochMeter of the next epoch, if it has begun
    'args': dict,                   # flags of the training; FLAGS are validated
    'processes': int,               # world size
    'bad_steps_in_row': int,        # consecutive non-finite steps
    'log': list,                    # lines of log.txt
    'best': dict,                   # acc1, epoch
    'classes': list,                # names by label
    'labels': list,                 # as 'classes', but from another library
    'reconstructions': list}        # {epoch, of, jpegs} each, for the report
# Entries of 'args' that are read again.
FLAGS = {'model': str, 'patch_size': int, 'in_chans': int, 'mask_ratio': float, 'layer_norm_eps': float,
         'input_size': (int, list), 'freeze': (str, int), 'val_fraction': (int, float), 'val_seed': int}
