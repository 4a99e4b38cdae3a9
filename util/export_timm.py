"""--to timm: a bare state_dict for timm.create_model, or for timm's VisionTransformer where no name fits."""
from functools import lru_cache, partial

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from util.errors import UserError
from util.exported_part import ENCODER, MAE
from util.features import accepts
from util.files import atomic_file


def write(part, path):
    """Write the file, load it in timm, and compare.

    Returns:
        lines that say what was compared.
    Raises:
        UserError: timm has no such model, or its outputs differ.
    """
    if part.kind == MAE:
        raise UserError('--to timm: timm has no masked autoencoder; add --part encoder, or give --to hf')
    if part.pools_mean and not accepts(VisionTransformer, 'global_pool'):
        raise UserError('--to timm: the ViT of timm {} has no mean pooling (--global_pool); install a newer timm, or '
                        'give --to hf'.format(timm.__version__))
    with atomic_file(path) as file:
        torch.save(part.weights(), file)
    name, options = _form(part)
    if name:
        model = timm.create_model(name, checkpoint_path=path, **options)
    else:
        model = VisionTransformer(**options)
        model.load_state_dict(torch.load(path))
    with torch.no_grad():
        found = model.eval()(part.inputs['imgs'])
    return [part.compare({part.output_names[0]: found}, 'timm {}, {}'.format(timm.__version__, name or 'a ViT'))]


@lru_cache(maxsize=1)       # it builds a model
def _form(part):
    """(name for timm.create_model, or None for VisionTransformer; keywords that differ from its defaults)."""
    options = {'num_classes': 0 if part.kind == ENCODER else part.model.head.out_features}
    if part.size != (224, 224):
        options['img_size'] = part.size
    if part.in_chans != 3:
        options['in_chans'] = part.in_chans
    if accepts(VisionTransformer, 'global_pool'):
        options['global_pool'] = 'avg' if part.pools_mean else 'token'
    if part.eps != 1e-6:
        options['norm_layer'] = partial(nn.LayerNorm, eps=part.eps)
    name = '{}_patch{}_224'.format(part.flags['model'].replace('mae_', '').split('_patch')[0], part.patch_size)
    if name in timm.list_models():
        own = {key: value.shape for key, value in timm.create_model(name, **options).state_dict().items()}
        if own == {key: value.shape for key, value in part.weights().items()}:      # timm 0.4.5 has another vit_small
            return name, options
    block = part.model.blocks[0]
    return None, {'patch_size': part.patch_size, 'embed_dim': part.model.cls_token.shape[-1],
                  'depth': len(part.model.blocks), 'num_heads': block.attn.num_heads, **options}


def loading(part, path):
    """Lines of Python that load it."""
    name, options = _form(part)
    words = ['{}={}'.format(key, 'partial(LayerNorm, eps={!r})'.format(part.eps) if key == 'norm_layer'
                            else repr(value)) for key, value in options.items()]
    imports = ['from functools import partial', 'from torch.nn import LayerNorm'] if 'norm_layer' in options else []
    if name:
        words = [repr(name), *words, 'checkpoint_path={!r}'.format(path)]
        return [*imports, 'import timm', 'model = timm.create_model({})'.format(', '.join(words))]
    return [*imports, 'import torch', 'from timm.models.vision_transformer import VisionTransformer',
            'model = VisionTransformer({})'.format(', '.join(words)),
            'model.load_state_dict(torch.load({!r}))'.format(path)]
