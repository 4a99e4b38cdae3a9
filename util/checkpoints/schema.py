"""What a checkpoint holds, key by key, and the check that values are such as a training writes.

Beside 'model', the weights in fp32 by name, which util.checkpoints.pth_file looks after. Any other key may be missing.
"""
import json
import sys

import torch

from util.config.normalization import valid_statistics
from util.errors import UserError

LARGEST_SIZE = 2 ** 13              # pixels of an input


def check(state, path):
    """Raise UserError where a value is not of the kind that this program and published code write.

    Args:
        state: of util.checkpoints.pth_file.load, or a part of it; path: it is from.
    """
    for name, value in _misfits(state, CHECKPOINT):
        raise UserError('{}: not a checkpoint of this program, its {!r} is {!r:.60}'.format(path, name, value))
    if 'optimizer' in state and state.get('epoch') is None:
        raise UserError('{}: not a checkpoint of a training, it has an optimizer and no epoch'.format(path))
    flags = state.get('args') or {}
    for name, value in _misfits(flags, FLAGS):
        raise UserError('{}: was made with --{} {!r:.60}?'.format(path, name, value))
    if not valid_statistics(flags):
        raise UserError('{}: was made with --mean {} --std {}?'.format(path, flags.get('mean'), flags.get('std')))


def check_optimizer(optimizer, saved, path):
    """Raise UserError where saved state does not fit the parameters of an optimizer, in number, shape or type.

    Some optimizers write by the parameters' shapes, whatever those of their own tensors are.
    Args:
        optimizer: of the run; saved: 'optimizer' of a checkpoint that `check` has passed.
    """
    groups = optimizer.param_groups
    if [len(group['params']) for group in groups] != [len(group['params']) for group in saved['param_groups']]:
        raise UserError('{}: its optimizer has other parameter groups, as with another --freeze; give it to --finetune '
                        'instead of --resume'.format(path))
    # What the optimizers of this program look up in a state that is not empty.
    needed = ('step', 'exp_avg', 'exp_avg_sq') if 'betas' in optimizer.defaults else \
        ('mu',) if 'trust_coefficient' in optimizer.defaults else ()
    keys = [key for group in saved['param_groups'] for key in group['params']]
    parameters = dict(zip(keys, (parameter for group in groups for parameter in group['params'])))
    if len(parameters) != len(keys) or not set(saved['state']) <= set(parameters):
        raise UserError('{}: its optimizer does not say which parameter is which'.format(path))
    for key, moments in saved['state'].items():
        for name, value in moments.items():
            fits = _is_step(value) if name == 'step' else value is None or torch.is_tensor(value) and (
                value.shape, value.dtype) == (parameters[key].shape, parameters[key].dtype)
            if not fits:
                raise UserError('{}: {} of its optimizer does not fit a parameter of shape {}'.format(
                    path, name, tuple(parameters[key].shape)))
        missing = [name for name in needed if moments and moments.get(name) is None]
        if missing:
            raise UserError('{}: its optimizer lacks {}'.format(path, missing[0]))


def _misfits(values, kinds):
    return [(name, values[name]) for name, fits in kinds.items()
            if values.get(name) is not None and not fits(values[name])]


def _is(*kinds, least=-sys.float_info.max, most=sys.float_info.max):
    """Whether a value is a number of one of these types and within these bounds, and so finite."""
    return lambda value: type(value) in kinds and least <= value <= most


COUNT, EPOCH = _is(int, least=0, most=2 ** 63 - 1), _is(int, least=-1, most=2 ** 63 - 1)
NUMBER, SHARE = _is(int, float), _is(float, least=1e-30, most=1 - 1e-9)
SIDE = _is(int, least=0, most=LARGEST_SIZE)         # 0 as None


def _text(value):
    return type(value) is str


def _list(fits, length=None):
    return lambda value: type(value) in (list, tuple) and length in (None, len(value)) and all(map(fits, value))


def _dict(**kinds):
    return lambda value: type(value) is dict and all(name in value and fits(value[name])
                                                     for name, fits in kinds.items())


def _is_step(value):
    return COUNT(int(value)) if torch.is_tensor(value) and value.numel() == 1 else COUNT(value)


def _is_moments(value):
    return type(value) is dict and all(type(moments) is dict for moments in value.values())


def _is_scaler(value):
    return all(map(_is_scaler, value.values())) if type(value) is dict else _is(int, float, least=0)(value)


def _is_record(line):
    record = json.loads(line) if _text(line) else None
    return type(record) is dict and COUNT(record.get('epoch', 0))


CHECKPOINT = {
    'ema_updates': COUNT,                           # how many steps 'model_ema', of names as 'model', has followed
    'optimizer': _dict(state=_is_moments, param_groups=_list(_dict(params=_list(COUNT)))),
    'scaler': _is_scaler,                           # of the loss
    'epoch': EPOCH,                                 # the last whole one, counted from 0
    'images': COUNT,                                # of the next epoch, that are done
    'progress': _dict(                              # of the next epoch, where some are
        loss=_dict(total=_list(NUMBER, 2), windows=_list(_list(NUMBER, 2))), skipped_steps=COUNT, lr=NUMBER,
        speed=_list(NUMBER, 3)),
    'processes': _is(int, least=1),
    'bad_steps_in_row': COUNT,
    'log': _list(_is_record),                       # the lines of log.txt
    'best': _dict(acc1=NUMBER, epoch=EPOCH),
    'classes': _list(_text),                        # names by label
    'labels': _list(_text),                         # as 'classes', of another library
    'reconstructions': _list(_dict(epoch=COUNT, of=_list(_text), jpegs=_list(_text)))}     # of util.tools.visualize
# Of 'args', the flags of the training, those that are read again.
FLAGS = {
    'model': _text, 'patch_size': SIDE, 'in_chans': SIDE, 'mask_ratio': SHARE, 'layer_norm_eps': SHARE,
    'input_size': lambda value: SIDE(value) or type(value) is list and _list(SIDE, 2)(value),
    'freeze': lambda value: value == 'all' or COUNT(value),
    'val_fraction': _is(int, float, least=0, most=1), 'val_seed': _is(int)}
