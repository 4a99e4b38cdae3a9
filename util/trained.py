"""Trained models as their checkpoints describe them: no flags of the training have to be said again."""
import argparse
from collections import namedtuple
from functools import partial

from torch import nn

import models_mae
import models_vit
from util import checkpoint_file, input_statistics, recognition, weights
from util.arguments import FINETUNE_MODELS, PRETRAIN_MODELS
from util.errors import UserError

LARGEST_SIZE = 2 ** 13              # pixels of an input
# model: in evaluation mode; flags: what it was trained with; classes: names by label, None where the file has none.
Trained = namedtuple('Trained', 'model flags classes')


def load_autoencoder(path):
    """The masked autoencoder of a checkpoint of main_pretrain.py, as Trained.

    Raises:
        UserError: the file is no such checkpoint.
    """
    return _load(path, PRETRAIN_MODELS, 'main_pretrain.py')


def load_classifier(path):
    """The classifier of a checkpoint of main_finetune.py, as Trained.

    Raises:
        UserError: the file is no such checkpoint.
    """
    return _load(path, FINETUNE_MODELS, 'main_finetune.py')


def load_either(path):
    """The model of a checkpoint of either script, or an encoder alone, as a classifier without head, as Trained.

    Raises:
        UserError: the file is no such checkpoint.
    """
    return _load(path, PRETRAIN_MODELS + FINETUNE_MODELS, 'main_pretrain.py or main_finetune.py')


def _load(path, models, scripts):
    state = checkpoint_file.load(path)
    flags = state.get('args')
    flags = vars(flags) if isinstance(flags, argparse.Namespace) else flags
    if not isinstance(flags, dict) or 'model' not in flags:
        flags = recognition.flags_of(state['model'], path)
    if flags['model'] not in models:
        raise UserError('{}: is no checkpoint of {}'.format(path, scripts))
    for name in ('input_size', 'patch_size', 'in_chans'):
        if not _is_size(flags.get(name), 2 if name == 'input_size' else 1):
            raise UserError('{}: was made with --{} {}?'.format(path, name, flags[name]))
    if not input_statistics.sound(flags):
        raise UserError('{}: was made with --mean {} --std {}?'.format(path, flags.get('mean'), flags.get('std')))
    if type(flags.get('mask_ratio', .75)) is not float or not 0 < flags.get('mask_ratio', .75) < 1:
        raise UserError('{}: was made with --mask_ratio {}?'.format(path, flags['mask_ratio']))
    if type(flags.get('layer_norm_eps', 1e-6)) is not float or not 0 < flags.get('layer_norm_eps', 1e-6) < 1:
        raise UserError('{}: has a layer_norm_eps of {}?'.format(path, flags['layer_norm_eps']))
    if flags['model'] in PRETRAIN_MODELS:
        model = _autoencoder(flags)
    elif 'head.weight' in state['model'] or models == FINETUNE_MODELS:
        model = _classifier(flags, state['model'], path)
    else:
        model = _encoder(flags, state['model'])
    weights.load_model(model, state['model'], path)
    classes = state.get('classes', state.get('labels'))
    if not isinstance(classes, (list, type(None))) or not all(isinstance(name, str) for name in classes or ()):
        raise UserError('{}: is no checkpoint of {}: its class names are no list of names'.format(path, scripts))
    return Trained(model.eval(), flags, classes)


def _is_size(value, most):
    """Whether a flag is a size, a list of `most` where that is more than one, or missing."""
    numbers = value if isinstance(value, list) and len(value) == most > 1 else [value or 1]
    return all(type(number) is int and 0 < number <= LARGEST_SIZE for number in numbers)


def _autoencoder(flags):
    return getattr(models_mae, flags['model'])(norm_pix_loss=bool(flags.get('norm_pix_loss')), **_size(flags))


def _classifier(flags, values, path):
    head = values.get('head.weight')
    if head is None or head.dim() != 2:
        raise UserError('{}: is no checkpoint of main_finetune.py: it has no head'.format(path))
    return getattr(models_vit, flags['model'])(global_pool=bool(flags.get('global_pool', True)), num_classes=len(head),
                                               **_size(flags))


def _encoder(flags, values):
    model = getattr(models_vit, flags['model'])(global_pool='fc_norm.weight' in values, num_classes=1, **_size(flags))
    model.head = nn.Identity()
    return model


def _size(flags):
    """What both kinds of model take of the flags."""
    size = {'patch_size': flags['patch_size']} if flags.get('patch_size') else {}
    if 'layer_norm_eps' in flags:           # of another library
        size['norm_layer'] = partial(nn.LayerNorm, eps=flags['layer_norm_eps'])
    return {'img_size': flags.get('input_size') or 224, 'in_chans': flags.get('in_chans') or 3, **size}
