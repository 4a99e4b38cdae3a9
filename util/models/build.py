"""Models from flags. The only module of util that imports models_mae and models_vit."""
from functools import partial

from torch import nn

import models_mae
import models_vit


def build_autoencoder(flags):
    """The masked autoencoder that flags describe, with random weights.

    Args:
        flags: {name: value} of main_pretrain.py, or of a checkpoint.
    """
    return getattr(models_mae, flags['model'])(norm_pix_loss=bool(flags.get('norm_pix_loss')), **_sizes(flags))


def build_classifier(flags, classes):
    """The classifier that flags describe, with random weights.

    Args:
        flags: {name: value} of main_finetune.py or main_linprobe.py, or of a checkpoint.
        classes: outputs of the head.
    """
    return getattr(models_vit, flags['model'])(global_pool=flags['global_pool'], num_classes=classes,
                                               drop_path_rate=flags.get('drop_path') or 0., **_sizes(flags))


def _sizes(flags):
    sizes = {'img_size': flags.get('input_size') or 224, 'in_chans': flags.get('in_chans') or 3}
    if flags.get('patch_size'):
        sizes['patch_size'] = flags['patch_size']
    if 'layer_norm_eps' in flags:           # of another library
        sizes['norm_layer'] = partial(nn.LayerNorm, eps=flags['layer_norm_eps'])
    return sizes
