"""Model sizes, one row each: for the constructors, --model and the recognition of weights by their shapes."""
import math
import re
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

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


def decoder_fault(flags: Dict[str, Any]) -> Optional[str]:
    """What is wrong with the decoder's flags, as an error message that begins with the flag; None if nothing is."""
    width, _, heads = PRETRAIN_MODELS[flags['model']].decoder
    width, heads = flags.get('decoder_embed_dim') or width, flags.get('decoder_num_heads') or heads
    if width % 4:
        return '--decoder_embed_dim: {} is not a multiple of 4, which the position embedding needs'.format(width)
    if width % heads:
        return '--decoder_num_heads: {} does not divide the width {} of the decoder'.format(heads, width)
    return None


def predicted_patches(hidden: int, predict_ratio: float) -> int:
    """Number of `hidden` patches that a training step predicts, at least 1 (arXiv:2401.14391)."""
    return max(1, int(hidden * predict_ratio))


def decoder_flags(weights: Dict[str, Any]) -> Dict[str, Optional[int]]:
    """decoder_embed_dim and decoder_depth, by the weights of the decoder; None each without a decoder."""
    embedding = weights.get('decoder_embed.weight')
    return {'decoder_embed_dim': None if embedding is None else len(embedding),
            'decoder_depth': _depth(weights, 'decoder_blocks') or None}


def _depth(weights, blocks):
    return len({match.group(1) for match in map(re.compile(blocks + r'\.(\d+)\.').match, weights) if match})


def infer_size(weights: Dict[str, Any], path: str, input_size: Union[int, List[int], None] = None) -> Dict[str, Any]:
    """The flags that build the model of `weights`, inferred from their names and shapes.

    Args:
        weights: tensors by the names of this program.
        input_size: pixels, if known; default: that of the position embedding, as a square.
    Returns:
        model (a classifier's name for an encoder without decoder and head), input_size, patch_size, in_chans,
        global_pool, and the decoder's flags of an autoencoder; its heads, which shapes do not show, are assumed: 16 if
        512 wide, as published, else the model's own.
    Raises:
        UserError: no model has these shapes.
    """
    embedding, positions = weights.get('patch_embed.proj.weight'), weights.get('pos_embed')
    if embedding is None or embedding.dim() != 4 or positions is None or positions.dim() != 3:
        raise UserError('{}: neither a checkpoint of this program nor the weights of a ViT'.format(path))
    width, in_chans, patch, columns = embedding.shape
    encoder = width, _depth(weights, 'blocks')
    name = next((name for name, size in FINETUNE_MODELS.items() if (size.width, size.depth) == encoder), None)
    side = round(max(positions.shape[1] - 1, 0) ** .5)
    if name is None or patch != columns or not (input_size or side ** 2 == positions.shape[1] - 1):
        raise UserError('{}: not a supported size: width {}, {} blocks, {} x {} patches and {} positions'
                        .format(path, *encoder, patch, columns, positions.shape[1]))
    decoder = decoder_flags(weights)
    if 'decoder_embed.weight' in weights:
        name, width = 'mae_' + name, decoder['decoder_embed_dim']
        decoder['decoder_num_heads'] = math.gcd(width, 16 if width == 512 else PRETRAIN_MODELS[name].decoder[2])
    return {'model': name, 'input_size': input_size or side * patch, 'patch_size': patch, 'in_chans': in_chans,
            'global_pool': 'fc_norm.weight' in weights, **decoder}
