"""Hugging Face transformers: read ViTMAE, ViT and BEiT folders, and translate weight names in both directions.

A folder holds config.json and model.safetensors or pytorch_model.bin, perhaps sharded with an index. The names are
those of transformers 4, and of 5 where they differ. A BEiT without relative positions and layer scale is a ViT without
key bias, and the only class of transformers that classifies the mean of the patch tokens.
"""
import json
import os
import re
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch

from util.checkpoints.schema import State, Weights
from util.config.input_flags import normalised_size, valid_statistics
from util.errors import UserError
from util.files import open_regular
from util.log import logger
from util.model_sizes import FINETUNE_MODELS, MASK_RATIO, infer_size

Config = Dict[str, Any]             # content of config.json
CONFIG, PREPROCESSOR = 'config.json', 'preprocessor_config.json'
WEIGHTS = ('model.safetensors', 'pytorch_model.bin')
OURS = 'mae_model'          # key that util.tools.export adds to config.json; id2label then holds class folder names
STATISTICS = ('mae_mean', 'mae_std')        # likewise, for mean and std that no class of transformers could apply
EPS = 1e-6                  # layer norm epsilon of this program
# Prefixes (theirs, ours), the first match counts; transformers 4, then 5 where it differs
STEM = [('embeddings.cls_token', 'cls_token'), ('embeddings.position_embeddings', 'pos_embed'),
        ('embeddings.patch_embeddings.projection.', 'patch_embed.proj.'), ('pooler.layernorm.', 'fc_norm.'),
        ('layernorm.', 'norm.'), ('encoder.layer.', 'blocks.'), ('layers.', 'blocks.'), ('classifier.', 'head.'),
        ('decoder.mask_token', 'mask_token'), ('decoder.decoder_layers.', 'decoder_blocks.'),
        ('decoder.decoder_encoder.layer.', 'decoder_blocks.'),         # transformers 5.24 saving the names of 4
        ('decoder.decoder_', 'decoder_')]
BLOCK = [('attention.attention.query.', 'attn.q.'), ('attention.attention.key.', 'attn.k.'),
         ('attention.attention.value.', 'attn.v.'), ('attention.output.dense.', 'attn.proj.'),
         ('layernorm_before.', 'norm1.'), ('layernorm_after.', 'norm2.'), ('intermediate.dense.', 'mlp.fc1.'),
         ('output.dense.', 'mlp.fc2.'), ('attention.q_proj.', 'attn.q.'), ('attention.k_proj.', 'attn.k.'),
         ('attention.v_proj.', 'attn.v.'), ('attention.o_proj.', 'attn.proj.'), ('mlp.', 'mlp.')]
UNUSED = ('pooler.dense.', 'embeddings.mask_token')         # without a counterpart here
SUPPORTED = {'vit': {}, 'vit_mae': {},
             'beit': {'use_mean_pooling': True, 'use_absolute_position_embeddings': True, 'layer_scale_init_value': 0.,
                      'use_relative_position_bias': False, 'use_shared_relative_position_bias': False}}


def folder_of(path: str) -> Optional[str]:
    """The Hugging Face folder, given its path or that of its weights; None for other files."""
    if os.path.isdir(path):
        return path
    folder, name = os.path.split(path)
    return folder or '.' if name in WEIGHTS and os.path.isfile(os.path.join(folder, CONFIG)) else None


def read_folder(folder: str, read_weights: Callable[[str], Weights]) -> State:
    """Read the folder of a model as a checkpoint of this program.

    Args:
        read_weights: reads the tensors of a file.
    Returns:
        dict with 'model', 'args' and perhaps 'classes' or 'labels' (class names that are not those of a data folder).
    Raises:
        UserError: not a model of this program. Other errors: it is damaged.
    """
    config, weights = _json(folder, CONFIG), _weights(folder, read_weights)
    # A config without model_type is timm's, whose weights have this program's names.
    state = translate(weights, folder, config) if 'model_type' in config else {'model': weights, 'args': {}}
    state['args'].update(_statistics(folder, config))
    return state


def translate(weights: Weights, path: str, config: Config) -> State:
    """Convert transformers' weights to a checkpoint of this program; see `read_folder`."""
    stems = {name: re.sub(r'^(vit|beit)\.', '', name) for name in weights}
    left_out = [name for name in weights if stems[name].startswith(UNUSED)]
    ours = _join_qkv({_our_name(stems[name]): value for name, value in weights.items() if name not in left_out})
    flags = _flags(config, ours, path)
    logger.info('%s: %d tensors of a Hugging Face %s read as %s; left out: %s', path, len(weights) - len(left_out),
                config['model_type'], flags['model'], ', '.join(left_out) or 'nothing')
    if flags['layer_norm_eps'] != EPS:
        logger.info('%s: visualize, main_predict.py and export keep its layer_norm_eps %s; training and --eval use %s, '
                    'so their outputs differ slightly', path, flags['layer_norm_eps'], EPS)
    state = {'model': ours, 'args': flags}
    labels = _labels(config, ours)
    if labels:
        state['classes' if OURS in config else 'labels'] = labels
    return state


def their_names(weights: Weights, prefix: str) -> Weights:
    """Rename weights to transformers 4; `prefix` 'vit.' or 'beit.' is the encoder's, '' for the encoder alone."""
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


def _our_name(stem: str) -> str:
    """Translate a name of theirs without prefix; q, k and v stay separate."""
    block, rest = _in_block(_swapped(stem, STEM))
    return block + (_swapped(rest, BLOCK) if block else rest)


def _in_block(ours: str) -> Sequence[str]:
    """Split the name of a block's tensor, as into ('blocks.3.', 'attn.q.bias'); ('', name) for others."""
    return re.match(r'((?:decoder_)?blocks\.\d+\.)?(.*)', ours).groups(default='')


def _swapped(name: str, table: List[Tuple[str, str]], back: bool = False) -> str:
    """Replace the prefix of a name; `back`: from ours to theirs."""
    for pair in table:
        old, new = reversed(pair) if back else pair
        if name.startswith(old):
            return new + name[len(old):]
    raise ValueError('{}: not a weight of any model here'.format(name))


def _join_qkv(weights: Weights) -> Weights:
    """Concatenate queries, keys and values of each block; a missing bias becomes 0, which is equivalent."""
    for name in [name for name in weights if name.endswith('.attn.q.weight')]:
        stem = name[:-len('q.weight')]
        matrices = [weights.pop(stem + part + '.weight') for part in 'qkv']
        weights[stem + 'qkv.weight'] = torch.cat(matrices)
        weights[stem + 'qkv.bias'] = torch.cat([weights.pop(stem + part + '.bias', matrix.new_zeros(len(matrix)))
                                                for part, matrix in zip('qkv', matrices)])
    return weights


def _json(folder: str, name: str) -> Any:
    """Content of a JSON file in a folder."""
    with open_regular(os.path.join(folder, name)) as file:
        return json.loads(file.read().decode('utf-8'))


def _weights(folder: str, read_weights: Callable[[str], Weights]) -> Weights:
    """All weights in a folder, under the names of the files."""
    for name in WEIGHTS:
        if os.path.isfile(os.path.join(folder, name)):
            return read_weights(os.path.join(folder, name))
        if os.path.isfile(os.path.join(folder, name + '.index.json')):
            parts = sorted(set(_json(folder, name + '.index.json')['weight_map'].values()))
            return {name: tensor for part in parts
                    for name, tensor in read_weights(os.path.join(folder, os.path.basename(part))).items()}
    raise UserError('{}: not a model folder: none of {}'.format(folder, ', '.join(WEIGHTS)))


def _flags(config: Config, weights: Weights, path: str) -> Dict[str, Any]:
    """Flags that build the model of weights under our names, or UserError."""
    kind, size = config['model_type'], config.get('image_size', 224)
    if kind not in list(SUPPORTED):         # a list, since `kind` may be unhashable
        raise UserError('{}: a Hugging Face {}; supported are {}'.format(path, kind, ', '.join(SUPPORTED)))
    size = normalised_size(size) if type(size) is list and len(size) == 2 else size
    flags = {**infer_size(weights, path, size), 'layer_norm_eps': config.get('layer_norm_eps', 1e-12)}
    own = FINETUNE_MODELS[flags['model'].replace('mae_', '')]
    expected = {'hidden_act': 'gelu', **SUPPORTED[kind], 'num_attention_heads': own.heads,      # not visible in shapes
                'patch_size': flags['patch_size'], 'num_channels': flags['in_chans']}
    if flags['model'].startswith('mae_'):
        flags.update(decoder_num_heads=config.get('decoder_num_attention_heads', 16),     # their default
                     norm_pix_loss=config.get('norm_pix_loss') is True, mask_ratio=config.get('mask_ratio', MASK_RATIO),
                     predict_ratio=config.get('predict_ratio', 1.))      # ours only: transformers predicts all
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise UserError('{}: {} has {} {}, but {} has {}'.format(path, CONFIG, name, config[name], flags['model'],
                                                                     value))
    return flags


def _labels(config: Config, weights: Weights) -> Optional[List[str]]:
    """Class names; None if missing or the default LABEL_0, LABEL_1, ..."""
    names, head = config.get('id2label'), weights.get('head.weight')
    if type(names) is not dict or head is None or set(names) != {str(label) for label in range(len(head))}:
        return None
    names = [names[str(label)] for label in range(len(head))]
    return None if names == ['LABEL_%d' % label for label in range(len(head))] else names


def _statistics(folder: str, config: Config) -> Dict[str, Any]:
    """mean and std of the image normalisation as flags, if the folder has them."""
    source, names = config, STATISTICS
    if os.path.isfile(os.path.join(folder, PREPROCESSOR)):
        source, names = _json(folder, PREPROCESSOR), ('image_mean', 'image_std')
    elif type(config.get('pretrained_cfg')) is dict:            # timm's
        source, names = config['pretrained_cfg'], ('mean', 'std')
    flags = dict(zip(('mean', 'std'), map(source.get, names)))
    known = None not in flags.values() and valid_statistics({**flags, 'in_chans': len(flags['mean'])})
    return flags if known else {}
