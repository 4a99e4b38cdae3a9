"""Hugging Face transformers' ViTMAE, ViT and BEiT: folders read, and their names for weights in both directions.

A folder holds config.json and model.safetensors or pytorch_model.bin, or parts of these and an index. The names are
those of transformers 4, and of 5 where they differ. A BEiT without relative positions and layer scale is a ViT whose
keys have no bias, and the one class of transformers that classifies the mean of the patch tokens.
"""
import json
import os
import re

import torch

from util.config import normalization
from util.config.input_flags import normalised_size
from util.errors import UserError
from util.files import regular_file
from util.log import logger
from util.model_sizes import MASK_RATIO, infer_size, size_of

CONFIG, PREPROCESSOR = 'config.json', 'preprocessor_config.json'
WEIGHTS = ('model.safetensors', 'pytorch_model.bin')
OURS = 'mae_model'          # in a config.json that util.tools.export wrote; its labels are names of class folders
STATISTICS = ('mae_mean', 'mae_std')        # there, where no class of transformers could normalise by them
EPS = 1e-6                  # of this program's layer norms
# (theirs, ours), the first that fits; of transformers 4 and, where they differ, 5
STEM = [('embeddings.cls_token', 'cls_token'), ('embeddings.position_embeddings', 'pos_embed'),
        ('embeddings.patch_embeddings.projection.', 'patch_embed.proj.'), ('pooler.layernorm.', 'fc_norm.'),
        ('layernorm.', 'norm.'), ('encoder.layer.', 'blocks.'), ('layers.', 'blocks.'), ('classifier.', 'head.'),
        ('decoder.mask_token', 'mask_token'), ('decoder.decoder_layers.', 'decoder_blocks.'),
        ('decoder.decoder_encoder.layer.', 'decoder_blocks.'),         # as transformers 5.24 saves in 4's names
        ('decoder.decoder_', 'decoder_')]
BLOCK = [('attention.attention.query.', 'attn.q.'), ('attention.attention.key.', 'attn.k.'),
         ('attention.attention.value.', 'attn.v.'), ('attention.output.dense.', 'attn.proj.'),
         ('layernorm_before.', 'norm1.'), ('layernorm_after.', 'norm2.'), ('intermediate.dense.', 'mlp.fc1.'),
         ('output.dense.', 'mlp.fc2.'), ('attention.q_proj.', 'attn.q.'), ('attention.k_proj.', 'attn.k.'),
         ('attention.v_proj.', 'attn.v.'), ('attention.o_proj.', 'attn.proj.'), ('mlp.', 'mlp.')]
NEEDLESS = ('pooler.dense.', 'embeddings.mask_token')       # no ViT of this program has them
FITTING = {'vit': {}, 'vit_mae': {},
           'beit': {'use_mean_pooling': True, 'use_absolute_position_embeddings': True, 'layer_scale_init_value': 0.,
                    'use_relative_position_bias': False, 'use_shared_relative_position_bias': False}}


def is_foreign(names):
    """True for the names of transformers' weights."""
    return any(re.match(r'((vit|beit)\.)?embeddings\.patch_embeddings\.', name) for name in names)


def folder_of(path):
    """The folder that is meant by its own path or by that of its weights; None for any other file."""
    if os.path.isdir(path):
        return path
    folder, name = os.path.split(path)
    return folder or '.' if name in WEIGHTS and os.path.isfile(os.path.join(folder, CONFIG)) else None


def read_folder(folder, read_weights):
    """A folder's weights under this program's names, and what its config.json says of the model.

    Args:
        read_weights: gives the dict of tensors of a file.
    Returns:
        a checkpoint: dict with 'model' and, of transformers, 'args' and perhaps 'classes' or 'labels' (names for the
        classes that are not those of a data folder).
    Raises:
        UserError: it holds no model that this program has. Other errors: it is damaged.
    """
    config, weights = _json(folder, CONFIG), _weights(folder, read_weights)
    # Where there is no model_type, it is timm's, whose names are this program's.
    state = translate(weights, folder, config) if 'model_type' in config else {'model': weights, 'args': {}}
    state['args'].update(_statistics(folder, config))
    return state


def translate(weights, path, config=None):
    """transformers' weights as a checkpoint of this program; see `read_folder`.

    Args:
        config: content of config.json; None where there is only the file of weights.
    """
    config = config or {}
    stems = {name: re.sub(r'^(vit|beit)\.', '', name) for name in weights}
    left_out = [name for name in weights if stems[name].startswith(NEEDLESS)]
    ours = _join_qkv({_our_name(stems[name]): value for name, value in weights.items() if name not in left_out})
    flags = _flags(config, ours, path)
    logger.info('%s: %d tensors of a Hugging Face %s read as %s; left out: %s', path, len(weights) - len(left_out),
                config.get('model_type', 'model without its config.json'), flags['model'],
                ', '.join(left_out) or 'nothing')
    if flags['layer_norm_eps'] != EPS:
        logger.info('%s: layer_norm_eps %s, which visualize, main_predict.py and export keep; training and '
                    '--eval take %s, so their outputs differ a little', path, flags['layer_norm_eps'], EPS)
    state = {'model': ours, 'args': flags}
    labels = _labels(config, ours)
    if labels:
        state['classes' if OURS in config else 'labels'] = labels
    return state


def their_names(weights, prefix):
    """This program's weights under the names of transformers 4.

    Args:
        prefix: 'vit.' or 'beit.' before the encoder's names; '' where the model is the encoder alone.
    """
    found = {}
    for name, value in weights.items():
        parts = {name: value}
        if '.attn.qkv.' in name:
            parts = {name.replace('.qkv.', '.{}.'.format(part)): third for part, third in zip('qkv', value.chunk(3))}
        for ours, tensor in parts.items():
            block, rest = _in_block(ours)
            theirs = _swapped(block or rest, STEM, back=True) + (_swapped(rest, BLOCK, back=True) if block else '')
            found[('' if theirs.startswith(('decoder.', 'classifier.')) else prefix) + theirs] = tensor.clone()
    return found


def _our_name(stem):
    """Our name for one of theirs without its prefix, but for q, k and v, which are one tensor here."""
    block, rest = _in_block(_swapped(stem, STEM))
    return block + (_swapped(rest, BLOCK) if block else rest)


def _in_block(ours):
    """('blocks.3.', 'attn.q.bias') of a block's tensor, ('', name) of any other."""
    return re.match(r'((?:decoder_)?blocks\.\d+\.)?(.*)', ours).groups(default='')


def _swapped(name, table, back=False):
    """`name` with its beginning replaced; `back` from ours to theirs."""
    for pair in table:
        old, new = reversed(pair) if back else pair
        if name.startswith(old):
            return new + name[len(old):]
    raise ValueError('holds {}, which no model of this program has'.format(name))


def _join_qkv(weights):
    """Queries, keys and values of each block become one tensor; where a bias is missing, it is 0, which is the same."""
    for name in [name for name in weights if name.endswith('.attn.q.weight')]:
        stem = name[:-len('q.weight')]
        matrices = [weights.pop(stem + part + '.weight') for part in 'qkv']
        weights[stem + 'qkv.weight'] = torch.cat(matrices)
        weights[stem + 'qkv.bias'] = torch.cat([weights.pop(stem + part + '.bias', matrix.new_zeros(len(matrix)))
                                                for part, matrix in zip('qkv', matrices)])
    return weights


def _json(folder, name):
    """The value in a JSON file of a folder; whoever takes it for an object fails where it is none."""
    with regular_file(os.path.join(folder, name)) as file:
        return json.loads(file.read().decode('utf-8'))


def _weights(folder, read_weights):
    """All weights of a folder, as they are named there."""
    for name in WEIGHTS:
        if os.path.isfile(os.path.join(folder, name)):
            return read_weights(os.path.join(folder, name))
        if os.path.isfile(os.path.join(folder, name + '.index.json')):
            parts = sorted(set(_json(folder, name + '.index.json')['weight_map'].values()))
            return {name: tensor for part in parts
                    for name, tensor in read_weights(os.path.join(folder, os.path.basename(part))).items()}
    raise UserError('{}: holds none of {}'.format(folder, ', '.join(WEIGHTS)))


def _flags(config, weights, path):
    """The flags that build the model of weights under our names, and of its config.json, {} where there is none.

    Raises:
        UserError: no model of this program computes as it says.
    """
    kind, size = config.get('model_type', 'vit_mae'), config.get('image_size', 224 if config else None)
    if kind not in list(FITTING):
        raise UserError('{}: is a Hugging Face {}; known are {}'.format(path, kind, ', '.join(FITTING)))
    size = normalised_size(size) if type(size) is list and len(size) == 2 else size
    flags = {**infer_size(weights, path, size), 'layer_norm_eps': config.get('layer_norm_eps', 1e-12)}
    own = size_of(flags['model'])
    fitting = {'hidden_act': 'gelu', **FITTING[kind], 'num_attention_heads': own.heads,     # which no shape shows
               'patch_size': flags['patch_size'], 'num_channels': flags['in_chans']}
    if flags['model'].startswith('mae_'):
        fitting['decoder_num_attention_heads'] = own.decoder[2]
        if config:
            flags.update(norm_pix_loss=config.get('norm_pix_loss') is True,
                         mask_ratio=config.get('mask_ratio', MASK_RATIO))
    for name, value in fitting.items():
        if config.get(name, value) != value:
            raise UserError('{}: {} {} in its {}; {} has {}'.format(path, name, config[name], CONFIG, flags['model'],
                                                                    value))
    return flags


def _labels(config, weights):
    """The names of the classes; None where there are none."""
    names, head = config.get('id2label'), weights.get('head.weight')
    if type(names) is not dict or head is None or set(names) != {str(label) for label in range(len(head))}:
        return None
    names = [names[str(label)] for label in range(len(head))]
    return None if names == ['LABEL_%d' % label for label in range(len(head))] else names


def _statistics(folder, config):
    """mean and std as flags, where a folder says by which its images were normalised."""
    source, names = config, STATISTICS
    if os.path.isfile(os.path.join(folder, PREPROCESSOR)):
        source, names = _json(folder, PREPROCESSOR), ('image_mean', 'image_std')
    elif type(config.get('pretrained_cfg')) is dict:            # timm's
        source, names = config['pretrained_cfg'], ('mean', 'std')
    flags = dict(zip(('mean', 'std'), map(source.get, names)))
    known = None not in flags.values() and normalization.valid_statistics({**flags, 'in_chans': len(flags['mean'])})
    return flags if known else {}
