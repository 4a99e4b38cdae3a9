"""Which of the program's models weights are, where no flags of a training say it: by their names and shapes."""
import re

from util.errors import UserError
from util.log import logger
from util.model_sizes import SIZES


def depth_of(weights, blocks='blocks'):
    """Number of transformer blocks, by the names."""
    numbers = [int(found.group(1)) for found in map(re.compile(r'%s\.(\d{1,4})\.' % blocks).match, weights) if found]
    return max(numbers) + 1 if numbers else 0


def recognise(weights, path, input_size=None):
    """The flags that build the model of `weights`, dict of tensors by this program's names.

    Args:
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
    encoder = width, depth_of(weights)
    found = next((size for size, row in SIZES.items() if (row.width, row.depth) == encoder), None)
    side = round(max(positions.shape[1] - 1, 0) ** .5)
    if found is None or patch != columns or not (input_size or side ** 2 == positions.shape[1] - 1):
        raise UserError('{}: a ViT of width {}, {} blocks, {} x {} patches and {} positions; no model here is that'
                        .format(path, *encoder, patch, columns, positions.shape[1]))
    name = 'vit_{}_patch{}'.format(found, SIZES[found].patch)
    if 'decoder_embed.weight' in weights:
        decoder, name = (len(weights['decoder_embed.weight']), depth_of(weights, 'decoder_blocks')), 'mae_' + name
        if decoder != SIZES[found].decoder[:2]:
            raise UserError('{}: its decoder has width {} and {} blocks, that of {} {} and {}'
                            .format(path, *decoder, name, *SIZES[found].decoder))
    return {'model': name, 'input_size': input_size or side * patch, 'patch_size': patch, 'in_chans': in_chans,
            'global_pool': 'fc_norm.weight' in weights}


def flags_of(weights, path):
    """`recognise`, with a warning of what was assumed."""
    flags = recognise(weights, path)
    part = (', taken as trained without --norm_pix_loss' if flags['model'].startswith('mae_') else
            '' if 'head.weight' in weights else ', the encoder alone')
    logger.warning('%s holds no flags of a training; by its shapes it is %s%s, input size %d, patch size %d', path,
                   flags['model'], part, flags['input_size'], flags['patch_size'])
    return flags
