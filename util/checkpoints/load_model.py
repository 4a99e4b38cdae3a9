"""Build a trained model from its checkpoint alone; the checkpoint keeps the flags of the training."""
from typing import Any, Container, Dict, List, NamedTuple, Optional

from torch import nn

from util.checkpoints import pth_file, schema, weights
from util.checkpoints.containers import check_tokens
from util.checkpoints.schema import Weights
from util.config.input_flags import COLOURED, InputSize, size_fault
from util.errors import UserError
from util.log import logger
from util.model_sizes import FINETUNE_MODELS, PRETRAIN_MODELS, decoder_fault, decoder_flags, infer_size
from util.models import linear_probe
from util.models.build import build_autoencoder, build_classifier


class LoadedModel(NamedTuple):
    """A model in evaluation mode, the flags of its training, and its class names by label if the file has them."""
    model: nn.Module
    flags: Dict[str, Any]
    classes: Optional[List[str]]


def load_autoencoder(path: str) -> LoadedModel:
    """Load the masked autoencoder from a checkpoint of main_pretrain.py; UserError for others."""
    return _load(path, PRETRAIN_MODELS, 'main_pretrain.py')


def load_classifier(path: str, input_size: Optional[InputSize] = None) -> LoadedModel:
    """Load the classifier from a checkpoint of main_finetune.py or main_linprobe.py; UserError for others.

    Position embeddings are interpolated to `input_size`, a multiple of the patch size, by default that of the training.
    """
    return _load(path, FINETUNE_MODELS, 'main_finetune.py', input_size)


def load_any(path: str, input_size: Optional[InputSize] = None) -> LoadedModel:
    """Like load_classifier, from a checkpoint of any main script; an encoder alone is a classifier without head."""
    return _load(path, {**PRETRAIN_MODELS, **FINETUNE_MODELS}, 'main_pretrain.py or main_finetune.py', input_size)


def _load(path: str, models: Container[str], scripts: str, input_size: Optional[InputSize] = None) -> LoadedModel:
    state = pth_file.load(path)
    with pth_file.checkpoint_errors(path):
        values = linear_probe.folded(state['model'])
        if models is FINETUNE_MODELS and 'cls_token' in values and 'head.weight' not in values:
            raise UserError('{0}: a pre-trained model without classes; fine-tune it first: '
                            'python main_finetune.py --finetune {0} --data_path ...'.format(path))
        flags = state.get('args') or {}
        if flags.get('model') not in {**PRETRAIN_MODELS, **FINETUNE_MODELS}:        # flags of another program
            flags = {**_inferred_flags(values, path), **{name: flags.get(name) for name in ('mean', 'std')}}
        if flags['model'] not in models:
            raise UserError('{}: not a checkpoint of {}{}'.format(
                path, scripts, '; it has no decoder for reconstructions' if models is PRETRAIN_MODELS else ''))
        schema.validate({name: state.get(name) for name in ('args', 'classes', 'labels')}, path)
        if flags.get('mean') is None and (flags.get('in_chans') or 3) not in COLOURED:
            raise UserError('{}: no mean and std for its {} channels; use the checkpoint of the training'
                            .format(path, flags['in_chans']))
        # The decoder is that of the weights: the flags of a damaged file could ask for any amount of memory.
        flags = {**flags, **decoder_flags(values)}
        built = {**flags, 'input_size': input_size} if input_size else flags
        if flags['model'] in PRETRAIN_MODELS:
            fault = decoder_fault(flags)
            if fault:
                raise UserError('{}: {}'.format(path, fault))
            model = build_autoencoder(built)
        else:
            head = values.get('head.weight')
            model = build_classifier({**built, 'drop_path': 0., 'global_pool': 'fc_norm.weight' in values},
                                     1 if head is None else len(head))
            model.head = nn.Identity() if head is None else model.head
        if input_size:
            fault = size_fault(input_size, model.patch_embed.proj.kernel_size[0])
            if fault:
                raise UserError('--input_size: {}'.format(fault))
            # The decoder's position embeddings are fixed: the model's own.
            own = {name: table for name, table in model.state_dict().items() if name == 'decoder_pos_embed'}
            values = {**weights.with_positions_for(model, values, flags), **own}
        weights.load_strict(model, values, path)
        return LoadedModel(model.eval(), built, state.get('classes', state.get('labels')))


def _inferred_flags(values: Weights, path: str) -> Dict[str, Any]:
    """Flags of weights without any, inferred from their shapes; a warning lists what is assumed."""
    check_tokens(values, path)
    flags = infer_size(values, path)
    assumed = '' if 'head.weight' in values else ', encoder only'
    if flags['model'] in PRETRAIN_MODELS:
        assumed = ', assumed without --norm_pix_loss, with {} heads in the decoder'.format(flags['decoder_num_heads'])
    logger.warning('%s: no training flags; inferred from the shapes: %s%s, input size %d, patch size %d', path,
                   flags['model'], assumed, flags['input_size'], flags['patch_size'])
    return flags
