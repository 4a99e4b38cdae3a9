"""Checkpoints: dicts of tensors and plain types, written whole, read without running anything that they hold."""
import argparse
import glob
import os
import pickle
import re

import torch

from util import safe_pickle
from util.errors import UserError
from util.features import accepts
from util.files import atomic_file
from util.log import logger
from util.pos_embed import resize_positions


def path_of(folder, epoch):
    """Where the checkpoint after `epoch` (counted from 0) lies."""
    return os.path.join(folder, 'checkpoint-{}.pth'.format(epoch))


def best(folder):
    """Where the checkpoint of highest accuracy lies."""
    return os.path.join(folder, 'checkpoint-best.pth')


def save(path, state):
    """Write a checkpoint at `path`, whole or not at all."""
    with atomic_file(path) as file:
        torch.save(state, file)


def load(path):
    """Read a checkpoint of ours or a published one onto the CPU.

    Returns:
        a dict with 'model'; a bare state_dict is put under that key.
    Raises:
        UserError: the file is no checkpoint, is damaged, or holds anything but tensors and plain values.
    """
    try:
        state = _torch_load(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError,
            TypeError, IndexError, ImportError, UnicodeDecodeError) as error:
        raise UserError('{}: not a readable checkpoint ({})'.format(path, str(error).strip().split('\n')[0])) from error
    if isinstance(state, dict) and 'model' not in state and all(torch.is_tensor(v) for v in state.values()) and state:
        state = {'model': state}
    if not isinstance(state, dict) or not isinstance(state.get('model'), dict):
        raise UserError("{}: holds no 'model'; is it a checkpoint?".format(path))
    return state


def _torch_load(path):
    if hasattr(torch.serialization, 'add_safe_globals'):
        torch.serialization.add_safe_globals([argparse.Namespace])      # in published checkpoints
        return torch.load(path, map_location='cpu', weights_only=True)
    options = {'weights_only': False} if accepts(torch.load, 'weights_only') else {}
    return torch.load(path, map_location='cpu', pickle_module=safe_pickle, **options)


def newest(folder):
    """The checkpoint-N.pth of highest N in `folder`, or None."""
    found = {}
    for path in glob.glob(os.path.join(glob.escape(folder), 'checkpoint-*.pth')):
        match = re.search(r'checkpoint-(\d+)\.pth$', path)
        if match:
            found[int(match.group(1))] = path
    return found[max(found)] if found else None


def resume_path(flag, folder):
    """What --resume names: a path, the newest checkpoint of `folder` for 'auto', or None."""
    return newest(folder) if flag == 'auto' else flag or None


def load_model(model, weights, path):
    """Fill `model` exactly.

    Raises:
        UserError: names or shapes differ; the first difference is named.
    """
    own = model.state_dict()
    if 'head.weight' in own and 'head.weight' in weights and len(own['head.weight']) != len(weights['head.weight']):
        raise UserError('{}: was trained for {} classes, this run has {}; see --nb_classes and --data_path'
                        .format(path, len(weights['head.weight']), len(own['head.weight'])))
    for name in own:
        if name not in weights:
            raise UserError('{}: is of another model, it lacks {}; see --model, --global_pool and --cls_token'
                            .format(path, name))
    _check_shapes(own, weights, path)
    surplus = [name for name in weights if name not in own]
    if surplus:
        raise UserError('{}: is of another model, it also holds {}; see --model, --global_pool and --cls_token'
                        .format(path, surplus[0]))
    model.load_state_dict(weights)


def load_pretrained(model, weights, path):
    """Start a classifier from the encoder of a pre-trained model, or from a classifier of other classes.

    Positions are interpolated to the model's grid. The decoder and a head of another size are left out; a head or
    fc_norm that the checkpoint lacks starts anew.
    Returns:
        names left out, names that start anew.
    Raises:
        UserError: the encoder is not this model's.
    """
    own = model.state_dict()
    kept = {name: value for name, value in with_positions_for(model, weights).items() if name in own}
    if any(name in kept and kept[name].shape != own[name].shape for name in ('head.weight', 'head.bias')):
        kept = {name: value for name, value in kept.items() if not name.startswith('head.')}
    fresh = [name for name in own if name not in kept]
    foreign = [name for name in fresh if not name.startswith(('head.', 'fc_norm.', 'norm.'))]
    if foreign:
        raise UserError('{}: is of another model, it lacks {}; see --model'.format(path, foreign[0]))
    _check_shapes(own, kept, path)
    model.load_state_dict(kept, strict=False)
    return [name for name in weights if name not in kept], fresh


def with_positions_for(model, weights):
    """`weights` with pos_embed interpolated from its square grid to the model's."""
    table = weights.get('pos_embed')
    if table is None or table.shape == model.pos_embed.shape or table.shape[-1] != model.pos_embed.shape[-1]:
        return weights
    side = round((table.shape[1] - 1) ** .5)
    logger.info('positions interpolated from %d x %d to %d x %d patches', side, side, *model.grid_size)
    return {**weights, 'pos_embed': resize_positions(table, (side, side), model.grid_size)}


def _check_shapes(own, weights, path):
    for name, value in own.items():
        if name in weights and weights[name].shape != value.shape:
            raise UserError('{}: is of another model, {} is {} and not {}; see --model, --input_size, --patch_size '
                            'and --in_chans'.format(path, name, tuple(weights[name].shape), tuple(value.shape)))


def optimizer_state(optimizer, saved, path):
    """A state for optimizer.load_state_dict: the saved moments under this run's own settings, so that flags win and
    checkpoints pass between devices and PyTorch generations.

    Raises:
        UserError: the saved optimizer had other parameter groups.
    """
    groups = optimizer.state_dict()['param_groups']
    if [len(group['params']) for group in groups] != [len(group['params']) for group in saved['param_groups']]:
        raise UserError('{}: its optimizer has other parameter groups; give it to --finetune instead of --resume'
                        .format(path))
    for group, saved_group in zip(groups, saved['param_groups']):
        group['params'] = saved_group['params']
    # Plain step counts suit every optimizer; Ascend's fused ones count a tensor up twice a step.
    state = {key: {name: int(value) if name == 'step' else value for name, value in moments.items()}
             for key, moments in saved['state'].items()}
    return {'state': state, 'param_groups': groups}


def report_pretrained(path, left_out, fresh):
    """Say in two lines what load_pretrained did."""
    decoder = [name for name in left_out if name.startswith('decoder') or name == 'mask_token']
    others = [name for name in left_out if name not in decoder]
    logger.info('loaded %s; left out: %s', path,
                ', '.join((['the decoder'] if decoder else []) + others) or 'nothing')
    logger.info('starting from random weights: %s', ', '.join(fresh) or 'nothing')


def training_state(model, optimizer, precision, epoch, args, **more):
    """All that a run needs to go on after `epoch`, in tensors and plain types.

    Args:
        model: not in DistributedDataParallel.
        more: further plain values, such as best and classes.
    """
    return {'model': precision.model_state(model, optimizer), 'optimizer': optimizer.state_dict(), 'epoch': epoch,
            'scaler': precision.state_dict(), 'args': dict(vars(args)), **more}


class Resumed:
    """The checkpoint that a run goes on from; where `path` is None, one that restores nothing."""

    def __init__(self, path):
        self.path, self.state = path, load(path) if path else {}

    def restore_model(self, model, fit_positions=False):
        """Fill the bare model, before its precision is set up.

        Args:
            fit_positions: interpolate the positions where the model takes another input size.
        """
        if self.path:
            weights = self.state['model']
            load_model(model, with_positions_for(model, weights) if fit_positions else weights, self.path)
            logger.info('loaded the weights of %s', self.path)

    def restore_training(self, optimizer, precision):
        """Fill optimizer and loss scaler, after the precision is set up."""
        if 'optimizer' in self.state:
            optimizer.load_state_dict(optimizer_state(optimizer, self.state['optimizer'], self.path))
            precision.load_state_dict(self.state.get('scaler'))
            logger.info('going on after epoch %d', self.next_epoch - 1)
        elif self.path:
            logger.info('%s holds no optimizer: starting at epoch 0 from its weights', self.path)

    @property
    def next_epoch(self):
        """First epoch to run, counted from 0."""
        return self.state['epoch'] + 1 if 'optimizer' in self.state else 0

    def get(self, name, default=None):
        """A further value of the checkpoint."""
        return self.state.get(name, default)
