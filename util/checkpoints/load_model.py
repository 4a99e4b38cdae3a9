"""Trained models as their checkpoints describe them: no flags of the training have to be said again."""
from collections import namedtuple

from torch import nn

from util.checkpoints import pth_file, schema, weights
from util.config.input_flags import COLOURED, size_fault
from util.config.train_flags import FINETUNE_MODELS, PRETRAIN_MODELS
from util.errors import UserError
from util.log import logger
from util.model_sizes import infer_size
from util.models import linear_probe
from util.models.build import build_autoencoder, build_classifier

# model: in evaluation mode; flags: what it was trained with; classes: names by label, None where the file has none.
LoadedModel = namedtuple('LoadedModel', 'model flags classes')


def load_autoencoder(path):
    """The masked autoencoder of a checkpoint of main_pretrain.py, as LoadedModel.

    Raises:
        UserError: the file is no such checkpoint.
    """
    return _load(path, PRETRAIN_MODELS, 'main_pretrain.py')


def load_classifier(path, input_size=None):
    """The classifier of a checkpoint of main_finetune.py or main_linprobe.py, as LoadedModel.

    Args:
        input_size: another one than that of the training, see util.config.input_flags; positions are interpolated.
    Raises:
        UserError: the file is no such checkpoint, or patches do not fit into input_size.
    """
    return _load(path, FINETUNE_MODELS, 'main_finetune.py', input_size)


def load_any(path, input_size=None):
    """The model of a checkpoint of any of the scripts, or an encoder alone as a classifier without head; see
    load_classifier."""
    return _load(path, PRETRAIN_MODELS + FINETUNE_MODELS, 'main_pretrain.py or main_finetune.py', input_size)


def _load(path, models, scripts, input_size=None):
    state = pth_file.load(path)
    with pth_file.loading(path):
        values = linear_probe.folded(state['model'])
        if models is FINETUNE_MODELS and 'cls_token' in values and 'head.weight' not in values:
            raise UserError('{0}: a pre-trained model, which knows no classes; fine-tune it first: '
                            'python main_finetune.py --finetune {0} --data_path ...'.format(path))
        flags = state.get('args') or {}
        if 'model' not in flags:
            flags = {**_recognised(values, path), **flags}
        if flags['model'] not in models:
            raise UserError('{}: not a checkpoint of {}{}'.format(
                path, scripts, '; it has no decoder to reconstruct with' if models is PRETRAIN_MODELS else ''))
        schema.check({name: state.get(name) for name in ('args', 'classes', 'labels')}, path)
        if flags.get('mean') is None and (flags.get('in_chans') or 3) not in COLOURED:
            raise UserError('{}: does not say by which mean and std its {} channels are normalised; name the '
                            'checkpoint of its training'.format(path, flags['in_chans']))
        built = {**flags, 'input_size': input_size} if input_size else flags
        model = _build(built, values.get('head.weight'), 'fc_norm.weight' in values)
        if input_size:
            fault = size_fault(input_size, model.patch_embed.proj.kernel_size[0])
            if fault:
                raise UserError('--input_size: {}'.format(fault))
            # The decoder's positions are fixed ones, and so the model's own.
            own = {name: table for name, table in model.state_dict().items() if name == 'decoder_pos_embed'}
            values = {**weights.with_positions_for(model, values, flags), **own}
        weights.load_model(model, values, path)
        return LoadedModel(model.eval(), built, state.get('classes', state.get('labels')))


def _recognised(values, path):
    """The flags of weights that come without any, with a warning of what is assumed."""
    flags = infer_size(values, path)
    part = (', taken as trained without --norm_pix_loss' if flags['model'].startswith('mae_') else
            '' if 'head.weight' in values else ', the encoder alone')
    logger.warning('%s holds no flags of a training; by its shapes it is %s%s, input size %d, patch size %d', path,
                   flags['model'], part, flags['input_size'], flags['patch_size'])
    return flags


def _build(flags, head, global_pool):
    if flags['model'] in PRETRAIN_MODELS:
        return build_autoencoder(flags)
    model = build_classifier({**flags, 'drop_path': 0., 'global_pool': global_pool}, 1 if head is None else len(head))
    if head is None:
        model.head = nn.Identity()
    return model
