"""Model sizes, one row each: for the constructors, --model and the recognition of weights by their shapes."""
import re
from typing import Any, Dict, List, NamedTuple, Tuple, Union

from util.errors import UserError

MASK_RATIO = .75        # default share of patches to hide


class Size(NamedTuple):
    """Encoder width, blocks and heads, patch side in pixels, decoder (width, blocks, heads), MLP width / width."""
    width: int
    depth: int
    heads: int
    patch: int
    decoder: Tuple[int, int, int]
    mlp_ratio: float = 4.

    @property
    def encoder_options(self) -> Dict[str, Any]:
        """Arguments of the constructors of both models."""
        return {'patch_size': self.patch, 'embed_dim': self.width, 'depth': self.depth, 'num_heads': self.heads,
                'mlp_ratio': self.mlp_ratio}


SIZES = {
    'nano': Size(128, 6, 4, 16, (64, 2, 2)),            # 1.4 M parameters, for tutorials and tests on a CPU
    'tiny': Size(192, 12, 3, 16, (192, 4, 3)),          # ViT-Ti, with a decoder of the same width; for small images
    'small': Size(384, 12, 6, 16, (256, 4, 8)),         # ViT-S, with a decoder narrower than the published one
    'base': Size(768, 12, 12, 16, (512, 8, 16)),
    'large': Size(1024, 24, 16, 16, (512, 8, 16)),
    'huge': Size(1280, 32, 16, 14, (512, 8, 16))}
# Size by model name; the published names of autoencoders end in _dec512d8b.
FINETUNE_MODELS = {'vit_{}_patch{}'.format(name, size.patch): size for name, size in SIZES.items()}
PRETRAIN_MODELS = {'mae_' + name: size for name, size in FINETUNE_MODELS.items()}
PRETRAIN_MODELS.update({'mae_{}_dec512d8b'.format(name): size for name, size in FINETUNE_MODELS.items()
                        if size.decoder[:2] == (512, 8)})


def visible_patches(patches: int, mask_ratio: float) -> int:
    """Number of patches that the encoder sees (arXiv:2111.06377, section 3)."""
    return int(patches * (1 - mask_ratio))


def infer_size(weights: Dict[str, Any], path: str, input_size: Union[int, List[int], None] = None) -> Dict[str, Any]:
    """The flags that build the model of `weights`, inferred from their names and shapes.

    Args:
        weights: tensors by the names of this program.
        input_size: pixels, if known; default: that of the position embedding, as a square.
    Returns:
        model (a classifier's name for an encoder without decoder and head), input_size, patch_size, in_chans and
        global_pool.
    Raises:
        UserError: no model has these shapes.
    """
    embedding, positions = weights.get('patch_embed.proj.weight'), weights.get('pos_embed')
    if embedding is None or embedding.dim() != 4 or positions is None or positions.dim() != 3:
        raise UserError('{}: neither a checkpoint of this program nor the weights of a ViT'.format(path))
    width, in_chans, patch, columns = embedding.shape
    blocks = [re.match(r'blocks\.(\d{1,4})\.', name) for name in weights]
    encoder = width, max((int(match.group(1)) + 1 for match in blocks if match), default=0)
    name = next((name for name, size in FINETUNE_MODELS.items() if (size.width, size.depth) == encoder), None)
    side = round(max(positions.shape[1] - 1, 0) ** .5)
    if name is None or patch != columns or not (input_size or side ** 2 == positions.shape[1] - 1):
        raise UserError('{}: not a supported size: width {}, {} blocks, {} x {} patches and {} positions'
                        .format(path, *encoder, patch, columns, positions.shape[1]))
    if 'decoder_embed.weight' in weights:
        name = 'mae_' + name
    return {'model': name, 'input_size': input_size or side * patch, 'patch_size': patch, 'in_chans': in_chans,
            'global_pool': 'fc_norm.weight' in weights}
