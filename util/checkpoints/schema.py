"""Checkpoint schema: every key of a checkpoint (CHECKPOINT, FLAGS), and validation of the values."""
import json
import sys
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch

from util.config.input_flags import MAX_SIDE, valid_statistics
from util.errors import UserError

State, Weights = Dict[str, Any], Dict[str, torch.Tensor]
Check = Callable[[Any], bool]


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
    # Entries that this program's optimizers read from a non-empty state.
    needed = ('step', 'exp_avg', 'exp_avg_sq') if 'betas' in optimizer.defaults else \
        ('mu',) if 'trust_coefficient' in optimizer.defaults else ()
    keys = [key for group in saved['param_groups'] for key in group['params']]
    parameters = dict(zip(keys, (parameter for group in groups for parameter in group['params'])))
    if len(parameters) != len(keys) or not set(saved['state']) <= set(parameters):
        raise UserError('{}: inconsistent parameter indices in the optimizer state'.format(path))
    for key, moments in saved['state'].items():
        for name, value in moments.items():
            fits = _is_step(value) if name == 'step' else value is None or torch.is_tensor(value) and (
                value.shape, value.dtype) == (parameters[key].shape, parameters[key].dtype)
            if not fits:
                raise UserError('{}: {} in the optimizer state does not match a parameter of shape {}'.format(
                    path, name, tuple(parameters[key].shape)))
        missing = [name for name in needed if moments and moments.get(name) is None]
        if missing:
            raise UserError('{}: the optimizer state lacks {}'.format(path, missing[0]))


def is_state_dict(value: Any) -> bool:
    """Whether a value is a dict of tensors by name."""
    return type(value) is dict and all(type(name) is str and torch.is_tensor(tensor) for name, tensor in value.items())


def _violations(values: State, checks: Dict[str, Check]) -> List[Tuple[str, Any]]:
    return [(name, values[name]) for name, check in checks.items()
            if values.get(name) is not None and not check(values[name])]


def _number(*types: type, least: float = -sys.float_info.max, most: float = sys.float_info.max) -> Check:
    """Check for a finite number of one of these types within these bounds."""
    return lambda value: type(value) in types and least <= value <= most


def _text(value: Any) -> bool:
    return type(value) is str


def _list(check: Check, length: Optional[int] = None) -> Check:
    return lambda value: type(value) in (list, tuple) and length in (None, len(value)) and all(map(check, value))


def _dict(**checks: Check) -> Check:
    return lambda value: type(value) is dict and all(name in value and check(value[name])
                                                     for name, check in checks.items())


COUNT, EPOCH = _number(int, least=0, most=2 ** 63 - 1), _number(int, least=-1, most=2 ** 63 - 1)
NUMBER, FRACTION = _number(int, float), _number(float, least=1e-30, most=1 - 1e-9)
SIDE = _number(int, least=0, most=MAX_SIDE)         # pixels; 0 means not given


def _is_step(value: Any) -> bool:
    return COUNT(int(value)) if torch.is_tensor(value) and value.numel() == 1 else COUNT(value)


def _is_moments(value: Any) -> bool:
    return type(value) is dict and all(type(moments) is dict for moments in value.values())


def _is_scaler(value: Any) -> bool:
    return all(map(_is_scaler, value.values())) if type(value) is dict else _number(int, float, least=0)(value)


def _is_record(line: Any) -> bool:
    record = json.loads(line) if _text(line) else None
    return type(record) is dict and COUNT(record.get('epoch', 0))


# All keys but 'model' are optional.
CHECKPOINT = {
    'model': is_state_dict,                         # weights in fp32
    'model_ema': is_state_dict,                     # --ema: averaged weights, under the names of 'model'
    'ema_updates': COUNT,                           # optimizer steps that 'model_ema' has averaged
    'optimizer': _dict(state=_is_moments, param_groups=_list(_dict(params=_list(COUNT)))),
    'scaler': _is_scaler,                           # loss scale
    'epoch': EPOCH,                                 # last complete epoch, counted from 0
    'images': COUNT,                                # images done in the next epoch
    'progress': _dict(                              # EpochMeter of the next epoch, if it has begun
        loss=_dict(total=_list(NUMBER, 2), windows=_list(_list(NUMBER, 2))), skipped_steps=COUNT, lr=NUMBER),
    'args': _dict(),                                # flags of the training; FLAGS are validated
    'processes': _number(int, least=1),             # world size
    'bad_steps_in_row': COUNT,                      # consecutive non-finite steps
    'log': _list(_is_record),                       # lines of log.txt
    'best': _dict(acc1=NUMBER, epoch=EPOCH),
    'classes': _list(_text),                        # names by label
    'labels': _list(_text),                         # as 'classes', but from another library
    'reconstructions': _list(_dict(epoch=COUNT, of=_list(_text), jpegs=_list(_text)))}      # for the report
# Entries of 'args' that are read again.
FLAGS = {
    'model': _text, 'patch_size': SIDE, 'in_chans': SIDE, 'mask_ratio': FRACTION, 'layer_norm_eps': FRACTION,
    **dict.fromkeys(('decoder_embed_dim', 'decoder_depth', 'decoder_num_heads'), SIDE),
    'predict_ratio': _number(int, float, least=0, most=1),
    'input_size': lambda value: SIDE(value) or type(value) is list and _list(SIDE, 2)(value),
    'freeze': lambda value: value == 'all' or COUNT(value),
    'val_fraction': _number(int, float, least=0, most=1), 'val_seed': _number(int)}
