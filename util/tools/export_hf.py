"""--to hf: a folder for transformers' from_pretrained: config.json, weights, preprocessor_config.json.

An autoencoder becomes ViTMAEForPreTraining, a classifier of the class token ViTForImageClassification, one of the mean
of the patch tokens BeitForImageClassification, and their encoders ViTModel and BeitModel; see
util.checkpoints.hugging_face.
"""
import json
import os
from typing import Any, Dict, Optional, Tuple

import torch

from util.checkpoints import hugging_face, pth_file
from util.config.input_flags import normalised_size
from util.data.transforms import EVAL_CROP
from util.errors import UserError
from util.files import write_atomically
from util.text import first_line

try:
    import transformers
except ImportError:         # then outputs are not compared
    transformers = None


def write(exported: Any, path: str) -> Tuple[Optional[Dict[str, torch.Tensor]], str]:
    """Write the folder, and run it in transformers; returns and raises as util.tools.export.write_timm does."""
    name, model_type, prefix = _target(exported)
    os.mkdir(path)
    weights = hugging_face.their_names(exported.state_dict(), prefix)
    if model_type == 'beit':
        # Softmax cancels a bias of the keys: it adds the same to all products of a query.
        weights = {key: value for key, value in weights.items() if not key.endswith('.key.bias')}
    # Releases before 4.25 do not load models from safetensors.
    old = transformers and not hasattr(transformers, 'AutoImageProcessor')
    save = pth_file.save if old else pth_file.save_safetensors
    save(os.path.join(path, hugging_face.WEIGHTS[1 if old else 0]), weights)
    texts = {hugging_face.CONFIG: _config(exported, name, model_type)}
    if _has_processor(exported):
        texts[hugging_face.PREPROCESSOR] = _preprocessor(exported)
    for file_name, value in texts.items():
        write_atomically(os.path.join(path, file_name), (json.dumps(value, indent=2) + '\n').encode())
    options = {'add_pooling_layer': False} if name == 'ViTModel' else {}
    loaded_by = 'transformers.{}.from_pretrained({{}}{})'.format(name, ', add_pooling_layer=False' if options else '')
    if not transformers or (name.startswith(('ViTModel', 'ViTFor')) and not hasattr(torch.nn.init, 'trunc_normal_')):
        return None, loaded_by
    transformers.logging.set_verbosity_error()
    try:
        return _outputs(exported, getattr(transformers, name).from_pretrained(path, **options).eval()), loaded_by
    except (RuntimeError, ValueError) as error:         # e.g. ViTMAE for inputs that are not square
        raise UserError('--to hf: {} of transformers {} cannot run this model with {} x {} inputs ({}); give --to timm '
                        'or --to onnx'.format(name, transformers.__version__, *exported.size, first_line(error))
                        ) from error


def _target(exported):
    """(name of transformers' class, model_type, prefix of the encoder's names)."""
    if exported.part == 'mae':
        return 'ViTMAEForPreTraining', 'vit_mae', 'vit.'
    family = 'Beit' if exported.global_pool else 'ViT'
    if exported.part == 'classifier':
        return family + 'ForImageClassification', family.lower(), family.lower() + '.'
    return family + 'Model', family.lower(), ''


def _config(exported, name, model_type):
    model, block = exported.model, exported.model.blocks[0]
    config = {
        'architectures': [name], 'model_type': model_type,
        'image_size': normalised_size(exported.size), 'patch_size': exported.patch_size,
        'num_channels': exported.in_chans, 'hidden_size': model.cls_token.shape[-1],
        'num_hidden_layers': len(model.blocks),
        'num_attention_heads': block.attn.num_heads, 'intermediate_size': block.mlp.fc1.out_features,
        'layer_norm_eps': exported.eps, hugging_face.OURS: exported.flags['model']}
    if not _has_processor(exported):
        config.update(zip(hugging_face.STATISTICS, (list(exported.mean), list(exported.std))))
    if model_type == 'beit':
        config.update(hugging_face.SUPPORTED['beit'], drop_path_rate=0., use_mask_token=False)
    if exported.part == 'mae':
        block = model.decoder_blocks[0]
        config.update(decoder_hidden_size=model.decoder_embed.out_features, mask_ratio=exported.mask_ratio,
                      predict_ratio=exported.flags.get('predict_ratio', 1.),
                      decoder_num_hidden_layers=len(model.decoder_blocks), norm_pix_loss=model.norm_pix_loss,
                      decoder_num_attention_heads=block.attn.num_heads,
                      decoder_intermediate_size=block.mlp.fc1.out_features)
    if exported.part == 'classifier':
        known = exported.classes or []          # --nb_classes may be larger
        names = [*known, *map('LABEL_{}'.format, range(len(known), model.head.out_features))]
        config.update(id2label={str(label): text for label, text in enumerate(names)},
                      label2id={text: label for label, text in enumerate(names)})
    return config


def _has_processor(exported):
    """No image processor of transformers reproduces the evaluation transform for other than square RGB inputs."""
    return exported.in_chans == 3 and exported.size[0] == exported.size[1]


def _preprocessor(exported):
    """The evaluation transform: resize the short side, crop the centre. CLIP's processor does that."""
    side = exported.size[0]
    return {'image_processor_type': 'CLIPImageProcessor', 'feature_extractor_type': 'CLIPFeatureExtractor',
            'do_resize': True, 'size': int(side / EVAL_CROP) if side <= 224 else side, 'resample': 3,
            'do_center_crop': True, 'crop_size': side, 'do_rescale': True, 'rescale_factor': 1 / 255,
            'do_normalize': True, 'image_mean': list(exported.mean), 'image_std': list(exported.std),
            'do_convert_rgb': True}


@torch.no_grad()
def _outputs(exported, model):
    imgs = exported.inputs['imgs']
    if exported.part == 'mae':
        outputs = model(imgs, noise=exported.inputs['noise'])
        return {'loss': outputs.loss, 'pred': outputs.logits, 'mask': outputs.mask}
    if exported.part == 'classifier':
        return {'logits': model(imgs).logits}
    outputs = model(imgs)
    features = outputs.pooler_output if exported.global_pool else outputs.last_hidden_state[:, 0]
    return {'features': features, 'tokens': outputs.last_hidden_state}
