"""Trained models as their checkpoints describe them: no flags of the training have to be said again."""
import argparse
from collections import namedtuple

import models_mae
import models_vit
from util import checkpoint_file, linear_probe, weights
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
    """The classifier of a checkpoint of main_finetune.py or main_linprobe.py, as Trained.

    Raises:
        UserError: the file is no such checkpoint.
    """
    return _load(path, FINETUNE_MODELS, 'main_finetune.py')


def load_either(path):
    """The model of a checkpoint of any of the scripts, as Trained.

    Raises:
        UserError: the file is no such checkpoint.
    """
    return _load(path, PRETRAIN_MODELS + FINETUNE_MODELS, 'main_pretrain.py or main_finetune.py')


def _load(path, models, scripts):
    state = checkpoint_file.load(path)
    flags = state.get('args')
    flags = vars(flags) if isinstance(flags, argparse.Namespace) else flags
    if not isinstance(flags, dict) or flags.get('model') not in models:
        raise UserError('{}: is no checkpoint of {}'.format(path, scripts))
    for name in ('input_size', 'patch_size', 'in_chans'):
        if type(flags.get(name)) not in (int, type(None)) or not 0 < (flags.get(name) or 1) <= LARGEST_SIZE:
            raise UserError('{}: was made with --{} {}?'.format(path, name, flags[name]))
    if type(flags.get('mask_ratio', .75)) is not float or not 0 < flags.get('mask_ratio', .75) < 1:
        raise UserError('{}: was made with --mask_ratio {}?'.format(path, flags['mask_ratio']))
    build = _autoencoder if flags['model'] in PRETRAIN_MODELS else _classifier
    values = linear_probe.folded(state['model'])
    model = build(flags, values, path)
    weights.load_model(model, values, path)
    classes = state.get('classes')
    if not isinstance(classes, (list, type(None))) or not all(isinstance(name, str) for name in classes or ()):
        raise UserError('{}: is no checkpoint of {}: its class names are no list of names'.format(path, scripts))
    return Trained(model.eval(), flags, classes)


def _autoencoder(flags, values, path):
    return getattr(models_mae, flags['model'])(norm_pix_loss=bool(flags.get('norm_pix_loss')), **_size(flags))


def _classifier(flags, values, path):
    head = values.get('head.weight')
    if head is None or head.dim() != 2:
        raise UserError('{}: is no checkpoint of main_finetune.py: it has no head'.format(path))
    return getattr(models_vit, flags['model'])(global_pool=bool(flags.get('global_pool', True)), num_classes=len(head),
                                               **_size(flags))


def _size(flags):
    """What both kinds of model take of the flags."""
    size = {'patch_size': flags['patch_size']} if flags.get('patch_size') else {}
    return {'img_size': flags.get('input_size') or 224, 'in_chans': flags.get('in_chans') or 3, **size}
