"""Build models from flags. The only module of util that imports models_mae and models_vit."""
from functools import partial
from typing import Any, Dict

from torch import nn

import models_mae
import models_vit

DECODER_FLAGS = ('decoder_embed_dim', 'decoder_depth', 'decoder_num_heads', 'predict_ratio')


def build_autoencoder(flags: Dict[str, Any]) -> models_mae.MaskedAutoencoderViT:
    """Randomly initialized masked autoencoder from the flags of main_pretrain.py or a checkpoint."""
    options = {**_sizes(flags), **{name: flags[name] for name in DECODER_FLAGS if flags.get(name)}}
    return getattr(models_mae, flags['model'])(norm_pix_loss=bool(flags.get('norm_pix_loss')), **options)


def build_classifier(flags: Dict[str, Any], classes: int) -> models_vit.VisionTransformer:
    """Randomly initialized classifier from the flags of main_finetune.py, main_linprobe.py or a checkpoint."""
    return getattr(models_vit, flags['model'])(global_pool=flags['global_pool'], num_classes=classes,
                                               drop_path_rate=flags.get('drop_path') or 0., **_sizes(flags))


def _sizes(flags: Dict[str, Any]) -> Dict[str, Any]:
    sizes = {'img_size': flags.get('input_size') or 224, 'in_chans': flags.get('in_chans') or 3}
    if flags.get('patch_size'):
        sizes['patch_size'] = flags['patch_size']
    if 'layer_norm_eps' in flags:           # weights from another library
        sizes['norm_layer'] = partial(nn.LayerNorm, eps=flags['layer_norm_eps'])
    return sizes
