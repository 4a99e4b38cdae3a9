"""--to hf: a folder for transformers' from_pretrained: config.json, weights, preprocessor_config.json.

The autoencoder becomes ViTMAEForPreTraining. A classifier of the class token becomes ViTForImageClassification, one of
the mean of the patch tokens BeitForImageClassification, and their encoders ViTModel and BeitModel; see
util.checkpoints.hugging_face.
"""
import json
import os

import torch

from util.checkpoints import hugging_face, pth_file
from util.config.input_flags import normalised_size
from util.data.transforms import EVAL_CROP
from util.errors import UserError
from util.files import write_atomically

try:
    import transformers
except ImportError:         # then nobody tries the folder
    transformers = None


def write(part, path):
    """Write the folder, and run it in transformers; results are those of util.tools.export.write_safetensors.

    Raises:
        UserError: transformers has no such model.
    """
    if part.kind == 'mae' and part.size[0] != part.size[1]:
        raise UserError("--to hf: transformers' ViTMAE takes square inputs, and this one has {} x {}; give "
                        '--part encoder'.format(*part.size))
    name, model_type, prefix = _form(part)
    os.mkdir(path)
    weights = hugging_face.their_names(part.weights(), prefix)
    if model_type == 'beit':
        # Attention is the same without: a bias of the keys adds the same to a query's products with all of them.
        weights = {key: value for key, value in weights.items() if not key.endswith('.key.bias')}
    # Releases before 4.25, which on Python 3.7 are the last, know safetensors too little to read a model of them.
    old = transformers and not hasattr(transformers, 'AutoImageProcessor')
    save = pth_file.save if old else pth_file.save_safetensors
    save(os.path.join(path, hugging_face.WEIGHTS[1 if old else 0]), weights)
    texts = {hugging_face.CONFIG: _config(part, name, model_type)}
    if _has_processor(part):
        texts[hugging_face.PREPROCESSOR] = _preprocessor(part)
    for file_name, value in texts.items():
        write_atomically(os.path.join(path, file_name), (json.dumps(value, indent=2) + '\n').encode())
    options = {'add_pooling_layer': False} if name == 'ViTModel' else {}
    loaded_by = 'transformers.{}.from_pretrained({{}}{})'.format(name, ', add_pooling_layer=False' if options else '')
    if not transformers or (name.startswith(('ViTModel', 'ViTFor')) and not hasattr(torch.nn.init, 'trunc_normal_')):
        return None, loaded_by
    transformers.logging.set_verbosity_error()
    return _outputs(part, getattr(transformers, name).from_pretrained(path, **options).eval()), loaded_by


def _form(part):
    """(name of transformers' class, model_type, prefix of the encoder's names)."""
    if part.kind == 'mae':
        return 'ViTMAEForPreTraining', 'vit_mae', 'vit.'
    family = 'Beit' if part.pools_mean else 'ViT'
    if part.kind == 'classifier':
        return family + 'ForImageClassification', family.lower(), family.lower() + '.'
    return family + 'Model', family.lower(), ''


def _config(part, name, model_type):
    model, block = part.model, part.model.blocks[0]
    config = {
        'architectures': [name], 'model_type': model_type,
        'image_size': normalised_size(part.size), 'patch_size': part.patch_size,
        'num_channels': part.in_chans, 'hidden_size': model.cls_token.shape[-1], 'num_hidden_layers': len(model.blocks),
        'num_attention_heads': block.attn.num_heads, 'intermediate_size': block.mlp.fc1.out_features,
        'layer_norm_eps': part.eps, hugging_face.OURS: part.description()['model']}
    if not _has_processor(part):
        config.update(zip(hugging_face.STATISTICS, (list(part.mean), list(part.std))))
    if model_type == 'beit':
        config.update(hugging_face.SUPPORTED['beit'], drop_path_rate=0., use_mask_token=False)
    if part.kind == 'mae':
        block = model.decoder_blocks[0]
        config.update(decoder_hidden_size=model.decoder_embed.out_features, mask_ratio=part.mask_ratio,
                      decoder_num_hidden_layers=len(model.decoder_blocks), norm_pix_loss=model.norm_pix_loss,
                      decoder_num_attention_heads=block.attn.num_heads,
                      decoder_intermediate_size=block.mlp.fc1.out_features)
    if part.kind == 'classifier':
        names = part.classes or ['LABEL_{}'.format(label) for label in range(model.head.out_features)]
        config.update(id2label={str(label): text for label, text in enumerate(names)},
                      label2id={text: label for label, text in enumerate(names)})
    return config


def _has_processor(part):
    """Of other inputs than square RGB images, no class of transformers makes what evaluation does."""
    return part.in_chans == 3 and part.size[0] == part.size[1]


def _preprocessor(part):
    """As evaluation does it: the short side resized, the centre cropped. Of transformers' classes, CLIP's does that."""
    side = part.size[0]
    return {'image_processor_type': 'CLIPImageProcessor', 'feature_extractor_type': 'CLIPFeatureExtractor',
            'do_resize': True, 'size': int(side / EVAL_CROP) if side <= 224 else side, 'resample': 3,
            'do_center_crop': True, 'crop_size': side, 'do_rescale': True, 'rescale_factor': 1 / 255,
            'do_normalize': True, 'image_mean': list(part.mean), 'image_std': list(part.std), 'do_convert_rgb': True}


@torch.no_grad()
def _outputs(part, model):
    imgs = part.inputs['imgs']
    if part.kind == 'mae':
        found = model(imgs, noise=part.inputs['noise'])
        return {'loss': found.loss, 'pred': found.logits, 'mask': found.mask}
    if part.kind == 'classifier':
        return {'logits': model(imgs).logits}
    found = model(imgs)
    features = found.pooler_output if part.pools_mean else found.last_hidden_state[:, 0]
    return {'features': features, 'tokens': found.last_hidden_state}
