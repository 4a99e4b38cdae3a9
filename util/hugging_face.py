"""Hugging Face transformers' ViTMAE, ViT and BEiT: folders read, and their names for weights in both directions.

A folder holds config.json and model.safetensors or pytorch_model.bin, or parts of these and an index. The names are
those of transformers 4, and of 5 where they differ. A BEiT without relative positions and layer scale is a ViT whose
keys have no bias, and the one class of transformers that classifies the mean of the patch tokens.
"""
import json
import os
import re

import torch

from util import input_statistics
from util.errors import UserError
from util.files import regular_file
from util.input_size import plain, sides
from util.log import logger
from util.recognition import DECODERS, ENCODERS, recognise

CONFIG, PREPROCESSOR = 'config.json', 'preprocessor_config.json'
WEIGHTS = ('model.safetensors', 'pytorch_model.bin')
MOST_JSON = 2 ** 24         # bytes
OURS = 'mae_model'          # in a config.json that util.export wrote; its labels are names of class folders
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
        UserError: it holds no model that this program has. ValueError, OSError: it is damaged.
    """
    if not os.path.isfile(os.path.join(folder, CONFIG)):
        raise UserError('{}: is a folder without {}; name a checkpoint, or a folder of a Hugging Face ViTMAE or ViT'
                        .format(folder, CONFIG))
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
    flags = _checked(config, path) if config else {}
    left_out = [name for name in weights if _stem(name).startswith(NEEDLESS)]
    ours = join_qkv({_renamed(name, path): value for name, value in weights.items() if name not in left_out})
    found = recognise(ours, path, flags.get('input_size'))
    different = [name for name in flags if flags[name] != found.get(name, flags[name])]
    if different:
        raise UserError('{}: its weights do not fit its {}, by which {} is {}'.format(path, CONFIG, different[0],
                                                                                     flags[different[0]]))
    _check_heads(config or {}, found, path)
    logger.info('%s: %d tensors of a Hugging Face %s read as %s%s; left out: %s', path, len(weights) - len(left_out),
                (config or {}).get('model_type', 'model without its config.json'), found['model'],
                '' if {'head.weight', 'mask_token'} & set(ours) else ', the encoder alone',
                ', '.join(left_out) or 'nothing')
    eps = flags.get('layer_norm_eps', 1e-12)
    if eps != EPS:
        logger.info('%s: layer_norm_eps %g, which util.visualize, main_predict.py and util.export keep; training and '
                    '--eval take %g, so their outputs differ a little', path, eps, EPS)
    state = {'model': ours, 'args': {**flags, **found, 'layer_norm_eps': eps}}
    labels = _labels(config or {}, ours)
    if labels:
        state['classes' if OURS in config else 'labels'] = labels
    return state


def join_qkv(weights):
    """Queries, keys and values of each block become one tensor; where a bias is missing, it is 0, which is the same.

    Raises:
        ValueError: one of the three is missing.
    """
    joined = {name: value for name, value in weights.items() if not re.search(r'\.attn\.[qkv]\.', name)}
    for name in weights:
        if name.endswith('.attn.q.weight'):
            stem = name[:-len('q.weight')]
            missing = [stem + part + '.weight' for part in 'kv' if stem + part + '.weight' not in weights]
            if missing:
                raise ValueError('{} is missing'.format(missing[0]))
            matrices = [weights[stem + part + '.weight'] for part in 'qkv']
            joined[stem + 'qkv.weight'] = torch.cat(matrices)
            joined[stem + 'qkv.bias'] = torch.cat([weights.get(stem + part + '.bias', matrix.new_zeros(len(matrix)))
                                                   for part, matrix in zip('qkv', matrices)])
    return joined


def their_names(weights, prefix):
    """This program's weights under transformers' names.

    Args:
        prefix: 'vit.' or 'beit.' before the encoder's names; '' where the model is the encoder alone.
    """
    found = {}
    for name, value in weights.items():
        stem, number, rest = re.match(r'((?:decoder_)?blocks\.)?(\d+\.)?(.*)', name).groups()
        theirs = [_swapped(stem or rest, STEM)]
        values = [value]
        if stem and rest.startswith('attn.qkv.'):
            values = value.chunk(3)
            theirs = ['{}{}attention.attention.{}.{}'.format(theirs[0], number, part, rest[len('attn.qkv.'):])
                      for part in ('query', 'key', 'value')]
        elif stem:
            theirs = [theirs[0] + number + _swapped(rest, BLOCK)]
        outside = theirs[0].startswith(('decoder.', 'classifier.'))
        found.update({('' if outside else prefix) + key: part.clone() for key, part in zip(theirs, values)})
    return found


def _swapped(name, table):
    return next(theirs + name[len(ours):] for theirs, ours in table if name.startswith(ours))


def _stem(name):
    return re.sub(r'^(vit|beit)\.', '', name)


def _renamed(name, path):
    """Our name for one of theirs, but for q, k and v."""
    for theirs, ours in STEM:
        rest = _stem(name)[len(theirs):]
        if not _stem(name).startswith(theirs):
            continue
        if not ours.endswith('blocks.'):
            return ours + rest
        number, _, within = rest.partition('.')
        for their_part, our_part in BLOCK:
            if within.startswith(their_part):
                return '{}{}.{}{}'.format(ours, number, our_part, within[len(their_part):])
    raise UserError('{}: holds {}, which no model of this program has'.format(path, name))


def _json(folder, name):
    """The object in a JSON file of a folder."""
    with regular_file(os.path.join(folder, name)) as file:
        text = file.read(MOST_JSON + 1)
    if len(text) > MOST_JSON:
        raise ValueError('{} is too long'.format(name))
    value = json.loads(text.decode('utf-8'))
    if type(value) is not dict:
        raise ValueError('{} is no JSON object'.format(name))
    return value


def _weights(folder, read_weights):
    """All weights of a folder, as they are named there."""
    for name in WEIGHTS:
        index = name + '.index.json'
        if os.path.isfile(os.path.join(folder, name)):
            return read_weights(os.path.join(folder, name))
        if os.path.isfile(os.path.join(folder, index)):
            return _parts(folder, index, read_weights)
    raise UserError('{}: holds none of {}'.format(folder, ', '.join(WEIGHTS)))


def _parts(folder, index, read_weights):
    places = _json(folder, index).get('weight_map')
    if type(places) is not dict or not all(type(part) is str and part == os.path.basename(part) and part.strip('.')
                                           for part in places.values()):
        raise ValueError('{} names no files of its folder'.format(index))
    weights = {}
    for part in sorted(set(places.values())):
        found = read_weights(os.path.join(folder, part))
        if set(found) != {name for name in places if places[name] == part}:
            raise ValueError('{} holds other weights than {} says'.format(part, index))
        weights.update(found)
    return weights


def _checked(config, path):
    """What a config.json says of the model, as flags.

    Raises:
        UserError: no model of this program computes as it says.
    """
    kind = config.get('model_type')
    if type(kind) is not str or kind not in FITTING:
        raise UserError('{}: is a Hugging Face {}; known are {}'.format(path, kind, ', '.join(FITTING)))
    for name, fitting in {'hidden_act': 'gelu', **FITTING[kind]}.items():
        if config.get(name, fitting) != fitting:
            raise UserError("{}: {} {} in its {}; this program's models need {}"
                            .format(path, name, config[name], CONFIG, fitting))
    eps, ratio = config.get('layer_norm_eps', 1e-12), config.get('mask_ratio', .75)
    if type(eps) is not float or not 0 < eps < 1 or type(ratio) is not float or not 0 < ratio < 1:
        raise UserError('{}: layer_norm_eps {} and mask_ratio {} in its {}'.format(path, eps, ratio, CONFIG))
    flags = {'input_size': _size(config, 'image_size', 224, path), 'patch_size': _size(config, 'patch_size', 16, path),
             'in_chans': config.get('num_channels', 3), 'layer_norm_eps': eps}
    if kind == 'vit_mae':
        flags.update(norm_pix_loss=config.get('norm_pix_loss') is True, mask_ratio=ratio)
    return flags


def _size(config, name, default, path):
    value = config.get(name, default)
    if type(value) is list and len(value) == 2:
        value = plain(value)
    if any(type(side) is not int or not 0 < side < 2 ** 16 for side in sides(value)):
        raise UserError('{}: {} {} in its {}?'.format(path, name, value, CONFIG))
    return value


def _check_heads(config, flags, path):
    """The shapes of the weights do not show the number of heads."""
    name = flags['model'].replace('mae_', '').split('_')[1]
    expected = {'num_attention_heads': next(size.heads for size in ENCODERS.values() if size.size == name)}
    if flags['model'].startswith('mae_'):
        expected['decoder_num_attention_heads'] = DECODERS[name][2]
    for key, heads in expected.items():
        if config.get(key, heads) != heads:
            raise UserError('{}: {} {} in its {}; {} has {}'
                            .format(path, key, config[key], CONFIG, flags['model'], heads))


def _labels(config, weights):
    """The names of the classes; None where there are none."""
    names, head = config.get('id2label'), weights.get('head.weight')
    if type(names) is not dict or head is None or set(names) != {str(label) for label in range(len(head))}:
        return None
    names = [names[str(label)] for label in range(len(head))]
    if not all(type(name) is str for name in names) or names == ['LABEL_%d' % label for label in range(len(head))]:
        return None
    return names


def _statistics(folder, config):
    """mean and std as flags, where a folder says by which its images were normalised."""
    if os.path.isfile(os.path.join(folder, PREPROCESSOR)):
        found = _json(folder, PREPROCESSOR)
        found = found.get('image_mean'), found.get('image_std')
    elif type(config.get('pretrained_cfg')) is dict:            # timm's
        found = config['pretrained_cfg'].get('mean'), config['pretrained_cfg'].get('std')
    else:
        found = tuple(map(config.get, STATISTICS))
    flags = {'mean': found[0], 'std': found[1]}
    return flags if None not in found and input_statistics.sound({**flags, 'in_chans': len(found[0])}) else {}
