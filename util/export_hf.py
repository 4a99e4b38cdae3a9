"""--to hf: a folder for transformers' from_pretrained: config.json, weights, preprocessor_config.json.

The autoencoder becomes ViTMAEForPreTraining. A classifier of the class token becomes ViTForImageClassification, one of
the mean of the patch tokens BeitForImageClassification, and their encoders ViTModel and BeitModel; see
util.hugging_face.
"""
import json
import os

import numpy as np
import torch
import transformers

from util import hugging_face, safetensors_file
from util.errors import UserError
from util.exported_part import CLASSIFIER, MAE, named
from util.files import atomic_file, write_atomically
from util.pictures import Picture
from util.preprocessing import of as preprocessing
from util.transforms import EVAL_CROP

# Of releases before 4.25, which on Python 3.7 are the last.
PROCESSOR = getattr(transformers, 'AutoImageProcessor', None) or transformers.AutoFeatureExtractor


def write(part, path):
    """Write the folder, load it by from_pretrained, and compare.

    Returns:
        lines that say what was compared.
    Raises:
        UserError: transformers misses weights, or its outputs differ.
    """
    name, prefix = _form(part)
    if part.kind == MAE and part.size[0] != part.size[1]:
        raise UserError("--to hf: transformers' ViTMAE takes square inputs, and this one has {} x {}; give "
                        '--part encoder'.format(*part.size))
    if name.startswith(('ViTModel', 'ViTFor')) and not hasattr(torch.nn.init, 'trunc_normal_'):
        raise UserError("--to hf: transformers' {} does not run on torch {}; take a newer one".format(
            name, torch.__version__))
    os.mkdir(path)
    config = _config(part, name)
    weights = hugging_face.their_names(part.weights(), prefix)
    if config['model_type'] == 'beit':
        # Attention is the same without: a bias of the keys adds the same to a query's products with all of them.
        weights = {key: value for key, value in weights.items() if not key.endswith('.key.bias')}
    with atomic_file(os.path.join(path, _weights_name())) as file:
        if _weights_name() == hugging_face.WEIGHTS[0]:
            safetensors_file.write(file, weights)
        else:
            torch.save(weights, file)
    _write_json(path, hugging_face.CONFIG, config)
    if _has_processor(part):
        _write_json(path, hugging_face.PREPROCESSOR, _preprocessor(part))
    transformers.logging.set_verbosity_error()
    model, info = getattr(transformers, name).from_pretrained(path, output_loading_info=True, **_options(name))
    if info['missing_keys'] or info['unexpected_keys']:
        raise UserError('--to hf: {} of transformers {} misses {} and does not know {}; nothing was written'.format(
            name, transformers.__version__, list(info['missing_keys']), list(info['unexpected_keys'])))
    checks = [part.compare(_outputs(part, model.eval()), 'transformers {}, {}'.format(transformers.__version__, name))]
    return checks + ([_compare_pixels(part, path)] if _has_processor(part) else [])


def _form(part):
    """(name of transformers' class, prefix of the encoder's names)."""
    if part.kind == MAE:
        return 'ViTMAEForPreTraining', 'vit.'
    family = 'Beit' if part.pools_mean else 'ViT'
    if part.kind == CLASSIFIER:
        return family + 'ForImageClassification', family.lower() + '.'
    return family + 'Model', ''


def _options(name):
    return {'add_pooling_layer': False} if name == 'ViTModel' else {}


def _weights_name():
    """Releases before 4.25 know safetensors too little to read a model of them; later ones bring the library."""
    return hugging_face.WEIGHTS[0 if hasattr(transformers, 'AutoImageProcessor') else 1]


def _config(part, name):
    model, block = part.model, part.model.blocks[0]
    config = {
        'architectures': [name], 'model_type': 'vit_mae' if part.kind == MAE else 'beit' if part.pools_mean else 'vit',
        'image_size': part.size[0] if part.size[0] == part.size[1] else list(part.size), 'patch_size': part.patch_size,
        'num_channels': part.in_chans, 'hidden_size': model.cls_token.shape[-1], 'num_hidden_layers': len(model.blocks),
        'num_attention_heads': block.attn.num_heads, 'intermediate_size': block.mlp.fc1.out_features,
        'hidden_act': 'gelu', 'hidden_dropout_prob': 0., 'attention_probs_dropout_prob': 0., 'qkv_bias': True,
        'layer_norm_eps': part.eps, hugging_face.OURS: part.description()['model']}
    if not _has_processor(part):
        config.update(zip(hugging_face.STATISTICS, map(list, part.statistics)))
    if config['model_type'] == 'beit':
        config.update(hugging_face.FITTING['beit'], drop_path_rate=0., use_mask_token=False)
    if part.kind == MAE:
        block = model.decoder_blocks[0]
        config.update(decoder_hidden_size=model.decoder_embed.out_features, mask_ratio=part.mask_ratio,
                      decoder_num_hidden_layers=len(model.decoder_blocks), norm_pix_loss=model.norm_pix_loss,
                      decoder_num_attention_heads=block.attn.num_heads,
                      decoder_intermediate_size=block.mlp.fc1.out_features)
    if part.kind == CLASSIFIER:
        names = part.classes or ['LABEL_{}'.format(label) for label in range(model.head.out_features)]
        config.update(id2label={str(label): text for label, text in enumerate(names)},
                      label2id={text: label for label, text in enumerate(names)})
    return config


def _has_processor(part):
    """Of other inputs than square RGB images, no class of transformers makes what evaluation does."""
    return part.in_chans == 3 and part.size[0] == part.size[1]


def _preprocessor(part):
    """As evaluation does it: the short side resized, the centre cropped. Of transformers' classes, CLIP's does that."""
    mean, std = part.statistics
    return {'image_processor_type': 'CLIPImageProcessor', 'feature_extractor_type': 'CLIPFeatureExtractor',
            'do_resize': True, 'size': _short_side(part), 'resample': 3, 'do_center_crop': True,
            'crop_size': part.size[0], 'do_rescale': True, 'rescale_factor': 1 / 255, 'do_normalize': True,
            'image_mean': list(mean), 'image_std': list(std), 'do_convert_rgb': True}


def _short_side(part):
    return int(part.size[0] / EVAL_CROP) if part.size[0] <= 224 else part.size[0]


def _write_json(folder, name, value):
    write_atomically(os.path.join(folder, name), (json.dumps(value, indent=2) + '\n').encode())


@torch.no_grad()
def _outputs(part, model):
    imgs = part.inputs['imgs']
    if part.kind == MAE:
        found = model(imgs, noise=part.inputs['noise'])
        return named(part.output_names, (found.loss, found.logits, found.mask))
    if part.kind == CLASSIFIER:
        return {'logits': model(imgs).logits}
    found = model(imgs)
    features = found.pooler_output if part.pools_mean else found.last_hidden_state[:, 0]
    return {'features': features, 'tokens': found.last_hidden_state}


def _compare_pixels(part, path):
    """Hold what the processor makes of a picture that needs no resizing to what evaluation makes of it.

    Raises:
        UserError: they differ.
    """
    side = _short_side(part)
    pixels = np.random.RandomState(0).randint(0, 256, (side, side, 3)).astype(np.uint8)
    transform, normalize = preprocessing(part.flags)
    expected = normalize(transform(Picture(pixels))[None])
    found = PROCESSOR.from_pretrained(path)(pixels, return_tensors='pt')['pixel_values']
    worst = float((found - expected).abs().max())
    if not worst < 1e-5:
        raise UserError("--to hf: transformers' image processor makes other pixels than evaluation does, by {:.2g}"
                        .format(worst))
    return 'pixels of an image by {} and by evaluation: greatest difference {:.1e}'.format(PROCESSOR.__name__, worst)


def loading(part, path):
    """Lines of Python that load it."""
    name = _form(part)[0]
    options = ''.join(', {}={!r}'.format(*option) for option in _options(name).items())
    lines = ['from transformers import {}{}'.format(name, ', ' + PROCESSOR.__name__ if _has_processor(part) else ''),
             'model = {}.from_pretrained({!r}{})'.format(name, path, options)]
    return lines + (['processor = {}.from_pretrained({!r})'.format(PROCESSOR.__name__, path)]
                    if _has_processor(part) else [])
