"""The sizes of the models: one row each, for constructors, and to know weights by their shapes."""
import re
from collections import namedtuple

from util.errors import UserError

MASK_RATIO = .75        # default share of patches to hide
# Encoder's width, blocks and heads, side of a patch in pixels, decoder's (width, blocks, heads).
Size = namedtuple('Size', 'width depth heads patch decoder')

SIZES = {
    'nano': Size(128, 6, 4, 16, (64, 2, 2)),            # 1.4 M parameters, for lessons and tests on a CPU
    'tiny': Size(192, 12, 3, 16, (192, 4, 3)),          # ViT-Ti, with a decoder as narrow as itself; for small images
    'small': Size(384, 12, 6, 16, (256, 4, 8)),         # ViT-S, with a decoder narrower than the published one
    'base': Size(768, 12, 12, 16, (512, 8, 16)),
    'large': Size(1024, 24, 16, 16, (512, 8, 16)),
    'huge': Size(1280, 32, 16, 14, (512, 8, 16))}


def size_of(model):
    """The row of a model by its name, as mae_vit_base_patch16_dec512d8b."""
    return SIZES[model.replace('mae_', '').split('_')[1]]


def visible_patches(patches: int, mask_ratio: float) -> int:
    """Number of patches that the encoder sees (arXiv:2111.06377, section 3)."""
    return int(patches * (1 - mask_ratio))


def infer_size(weights, path, input_size=None):
    """The flags that build the model of `weights`, by their names and shapes.

    Args:
        weights: dict of tensors by this program's names.
        input_size: where it is known; default: that of the positions, taken as a square.
    Returns:
        dict with model, input_size, patch_size, in_chans and global_pool. What has neither decoder nor head goes by
        the name of a classifier.
    Raises:
        UserError: they are of none of the models.
    """
    embedding, positions = weights.get('patch_embed.proj.weight'), weights.get('pos_embed')
    if embedding is None or embedding.dim() != 4 or positions is None or positions.dim() != 3:
        raise UserError('{}: neither a checkpoint of this program nor the weights of a ViT'.format(path))
    width, in_chans, patch, columns = embedding.shape
    blocks = [re.match(r'blocks\.(\d{1,4})\.', name) for name in weights]
    encoder = width, max((int(match.group(1)) + 1 for match in blocks if match), default=0)
    found = next((size for size, row in SIZES.items() if (row.width, row.depth) == encoder), None)
    side = round(max(positions.shape[1] - 1, 0) ** .5)
    if found is None or patch != columns or not (input_size or side ** 2 == positions.shape[1] - 1):
        raise UserError('{}: a ViT of width {}, {} blocks, {} x {} patches and {} positions; no model here is that'
                        .format(path, *encoder, patch, columns, positions.shape[1]))
    name = 'vit_{}_patch{}'.format(found, SIZES[found].patch)
    if 'decoder_embed.weight' in weights:
        name = 'mae_' + name
    return {'model': name, 'input_size': input_size or side * patch, 'patch_size': patch, 'in_chans': in_chans,
            'global_pool': 'fc_norm.weight' in weights}
