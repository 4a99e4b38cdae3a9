"""Trained models as their checkpoints describe them: no flags of the training have to be said again."""
import argparse
from collections import namedtuple
from functools import partial

from torch import nn

import models_mae
import models_vit
from util import checkpoint_file, input_statistics, linear_probe, recognition, weights
from util.arguments import FINETUNE_MODELS, PRETRAIN_MODELS
from util.errors import UserError
from util.input_arguments import COLOURED
from util.input_size import misfit, sides

LARGEST_SIZE = 2 ** 13              # pixels of an input
# model: in evaluation mode; flags: what it was trained with; classes: names by label, None where the file has none.
Trained = namedtuple('Trained', 'model flags classes')


def load_autoencoder(path):
    """The masked autoencoder of a checkpoint of main_pretrain.py, as Trained.

    Raises:
        UserError: the file is no such checkpoint.
    """
    return _load(path, PRETRAIN_MODELS, 'main_pretrain.py')


def load_classifier(path, input_size=None):
    """The classifier of a checkpoint of main_finetune.py or main_linprobe.py, as Trained.

    Args:
        input_size: another one than that of the training, see util.input_size; positions are interpolated.
    Raises:
        UserError: the file is no such checkpoint, or patches do not fit into input_size.
    """
    return _load(path, FINETUNE_MODELS, 'main_finetune.py', input_size)


def load_either(path, input_size=None):
    """The model of a checkpoint of any of the scripts, or an encoder alone as a classifier without head; see
    load_classifier."""
    return _load(path, PRETRAIN_MODELS + FINETUNE_MODELS, 'main_pretrain.py or main_finetune.py', input_size)


def _load(path, models, scripts, input_size=None):
    state = checkpoint_file.load(path)
    values = linear_probe.folded(state['model'])
    if models is FINETUNE_MODELS and 'cls_token' in values and 'head.weight' not in values:
        raise UserError('{0}: is a pre-trained model, which knows no classes; fine-tune it first: '
                        'python main_finetune.py --finetune {0} --data_path ...'.format(path))
    flags = state.get('args')
    flags = vars(flags) if isinstance(flags, argparse.Namespace) else flags
    if not isinstance(flags, dict) or 'model' not in flags:
        flags = {**recognition.flags_of(values, path), **(flags if isinstance(flags, dict) else {})}
    if flags['model'] not in models:
        raise UserError('{}: is no checkpoint of {}'.format(path, scripts))
    for name in ('input_size', 'patch_size', 'in_chans'):
        if not _is_size(flags.get(name), 2 if name == 'input_size' else 1):
            raise UserError('{}: was made with --{} {}?'.format(path, name, flags[name]))
    if not input_statistics.sound(flags):
        raise UserError('{}: was made with --mean {} --std {}?'.format(path, flags.get('mean'), flags.get('std')))
    if flags.get('mean') is None and (flags.get('in_chans') or 3) not in COLOURED:
        raise UserError('{}: does not say by which mean and std its {} channels are normalised; name the checkpoint of '
                        'its training'.format(path, flags['in_chans']))
    if type(flags.get('mask_ratio', .75)) is not float or not 0 < flags.get('mask_ratio', .75) < 1:
        raise UserError('{}: was made with --mask_ratio {}?'.format(path, flags['mask_ratio']))
    if type(flags.get('layer_norm_eps', 1e-6)) is not float or not 0 < flags.get('layer_norm_eps', 1e-6) < 1:
        raise UserError('{}: has a layer_norm_eps of {}?'.format(path, flags['layer_norm_eps']))
    before = flags
    if input_size:
        _check_size(input_size, values)
        flags = {**flags, 'input_size': input_size}
    if flags['model'] in PRETRAIN_MODELS:
        model = _autoencoder(flags)
    elif 'head.weight' in values or models is FINETUNE_MODELS:
        model = _classifier(flags, values, path)
    else:
        model = _encoder(flags, values)
    weights.load_model(model, _fitted(model, values, before) if input_size else values, path)
    classes = state.get('classes', state.get('labels'))
    if not isinstance(classes, (list, type(None))) or not all(isinstance(name, str) for name in classes or ()):
        raise UserError('{}: is no checkpoint of {}: its class names are no list of names'.format(path, scripts))
    return Trained(model.eval(), flags, classes)


def _is_size(value, most):
    """Whether a flag is a size, a list of `most` where that is more than one, or missing."""
    numbers = value if isinstance(value, list) and len(value) == most > 1 else [value or 1]
    return all(type(number) is int and 0 < number <= LARGEST_SIZE for number in numbers)


def _check_size(size, values):
    filters = values.get('patch_embed.proj.weight')
    side = filters.shape[-1] if filters is not None and filters.dim() == 4 else 1
    fault = misfit(size, side) or (None if max(sides(size)) <= LARGEST_SIZE else 'at most {}'.format(LARGEST_SIZE))
    if fault:
        raise UserError('--input_size: {}'.format(fault))


def _fitted(model, values, flags):
    """`values` with positions for the model's input size; the decoder's are fixed ones, and so the model's own."""
    own = {name: table for name, table in model.state_dict().items() if name == 'decoder_pos_embed'}
    return {**weights.with_positions_for(model, values, flags), **own}


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
