"""--to timm: a bare state_dict for timm's VisionTransformer, and so for timm.create_model where it has the size."""
from functools import partial

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from util.errors import UserError
from util.exported_part import ENCODER, MAE
from util.features import accepts
from util.files import atomic_file


@torch.no_grad()
def write(part, path):
    """Write the file, and run it in timm.

    Returns:
        timm's outputs by name; code that loads the file, {} for its path.
    Raises:
        UserError: timm has no such model.
    """
    if part.kind == MAE:
        raise UserError('--to timm: timm has no masked autoencoder; add --part encoder, or give --to hf')
    if part.pools_mean and not accepts(VisionTransformer, 'global_pool'):
        raise UserError('--to timm: the ViT of timm {} has no mean pooling (--global_pool); install a newer timm, or '
                        'give --to hf'.format(timm.__version__))
    with atomic_file(path) as file:
        torch.save(part.weights(), file)
    options = {'img_size': part.size, 'patch_size': part.patch_size, 'in_chans': part.in_chans,
               'num_classes': 0 if part.kind == ENCODER else part.model.head.out_features,
               'embed_dim': part.model.cls_token.shape[-1], 'depth': len(part.model.blocks),
               'num_heads': part.model.blocks[0].attn.num_heads}
    if accepts(VisionTransformer, 'global_pool'):
        options['global_pool'] = 'avg' if part.pools_mean else 'token'
    model = VisionTransformer(norm_layer=partial(nn.LayerNorm, eps=part.eps), **options)
    model.load_state_dict(torch.load(path))
    loaded_by = 'model = timm.models.vision_transformer.VisionTransformer({}, norm_layer=functools.partial(' \
                'torch.nn.LayerNorm, eps={!r})); model.load_state_dict(torch.load({{}}))'.format(
                    ', '.join('{}={!r}'.format(*option) for option in options.items()), part.eps)
    return {part.output_names[0]: model.eval()(part.inputs['imgs'])}, loaded_by
