"""Load weights into a model: all of them, or what fits of a pre-trained model."""
from argparse import Namespace
from typing import Any, Callable, Dict, List, Optional, Tuple

from torch import Tensor, nn

from util.checkpoints import schema
from util.checkpoints.containers import check_tokens, not_a_vit
from util.checkpoints.pth_file import checkpoint_errors, load
from util.checkpoints.schema import Weights
from util.config.input_flags import adopt_statistics, grid_of
from util.errors import UserError
from util.log import logger
from util.model_sizes import PRETRAIN_MODELS
from util.models.positions import resize_positions

Flags = Optional[Dict[str, Any]]        # of the training that the weights come from, if known
Names = List[str]
CLASSIFIER_FLAGS = '--model, --global_pool and --cls_token'
SHAPE_FLAGS = '--model, --input_size, --patch_size and --in_chans'
DECODER_FLAGS = '--model, --decoder_embed_dim and --decoder_depth'


def load_strict(model: nn.Module, weights: Weights, path: str) -> None:
    """Load all weights of a model; UserError names the first difference in names or shapes."""
    own = model.state_dict()
    _check_vit(own, weights, path)
    if 'decoder_embed.weight' in own and 'decoder_embed.weight' not in weights:
        raise UserError('{0}: no decoder; start from its encoder by --init_from {0}, without --resume'.format(path))
    if [any(name.startswith('head.') for name in names) for names in (own, weights)] == [True, False]:
        raise UserError('{0}: pre-trained weights without a classifier; train one first by --finetune {0}, without '
                        '--resume and --eval'.format(path))
    for name, script in (('head.weight', 'main_finetune.py'), ('head.1.weight', 'main_linprobe.py')):
        if name in weights and name not in own and 'cls_token' in own:
            raise UserError('{}: a classifier of {}; use that script to resume or evaluate it'.format(path, script))
    _reject_any([name for name in own if name not in weights], 'lacks', path, CLASSIFIER_FLAGS)
    _check_shapes(own, weights, path)
    _reject_any([name for name in weights if name not in own], 'also has', path, CLASSIFIER_FLAGS)
    model.load_state_dict(weights)


def start_from(path: str, model: nn.Module, args: Namespace, load_part: Callable[..., Tuple[Names, Names]]) -> None:
    """Initialize a model from the checkpoint at `path`, and `args` with its mean and std.

    Args:
        load_part: load_pretrained or load_for_pretraining.
    Raises:
        UserError, SystemFailure: see checkpoint_errors.
    """
    with checkpoint_errors(path):
        saved = load(path)
        flags = saved.get('args') or {}         # of any program: only these are used
        schema.validate({'args': {name: flags.get(name) for name in ('in_chans', 'mean', 'std')}}, path)
        adopt_statistics(args, saved.get('args'), path)
        left_out, fresh = load_part(model, saved['model'], path, saved.get('args'))
    logger.info('loaded %s; left out: %s', path, _listed(left_out))
    logger.info('starting from random weights: %s', _listed(fresh))


def load_pretrained(model: nn.Module, weights: Weights, path: str, flags: Flags = None) -> Tuple[Names, Names]:
    """Initialize a classifier from a pre-trained encoder, or from a classifier with other classes.

    Position embeddings are interpolated to the model's grid. The decoder and a head of another size are left out; a
    missing head or fc_norm keeps its random initialization. Returns names left out and names that keep their random
    initialization; raises UserError if the encoder is another model.
    """
    own, weights = model.state_dict(), with_positions_for(model, weights, flags)
    kept = {name: value for name, value in weights.items() if name in own}
    if any(name.startswith('head.') and value.shape != own[name].shape for name, value in kept.items()):
        kept = {name: value for name, value in kept.items() if not name.startswith('head.')}
    return _load_part(model, own, weights, kept, ('head.', 'fc_norm.', 'norm.'), path)


def load_for_pretraining(model: nn.Module, weights: Weights, path: str, flags: Flags = None) -> Tuple[Names, Names]:
    """Initialize a masked autoencoder from an encoder, and from its decoder if complete and of the same size.

    Position embeddings are the model's own, which are fixed. A missing final norm, as in a classifier with global
    pooling, keeps its random initialization. Returns and raises as load_pretrained.
    """
    own, weights = ({name: value for name, value in values.items() if not name.endswith('pos_embed')}
                    for values in (model.state_dict(), weights))
    decoder, theirs = ({name: value.shape for name, value in values.items() if _in_decoder(name)}
                       for values in (own, weights))
    complete = decoder == theirs and not _other_heads(model, flags)
    kept = {name: weights[name] for name in own if name in weights and (complete or name not in decoder)}
    return _load_part(model, own, weights, kept, ('decoder', 'mask_token', 'norm.'), path)


def _load_part(model: nn.Module, own: Weights, weights: Weights, kept: Weights, optional: tuple, path: str) -> tuple:
    """Load the `kept` part of `weights` into a model whose state_dict is `own`; only names with an `optional` prefix
    may be missing."""
    _check_vit(own, weights, path)
    left_out, fresh = [name for name in weights if name not in kept], [name for name in own if name not in kept]
    _reject_any([name for name in fresh if not name.startswith(optional)], 'lacks', path)
    # e.g. layer scale, without which the blocks would compute something else
    _reject_any([name for name in left_out if name.startswith(('blocks.', 'patch_embed.'))], 'also has', path)
    _check_shapes(own, kept, path)
    model.load_state_dict(kept, strict=False)
    return left_out, fresh


def with_positions_for(model: nn.Module, weights: Weights, flags: Flags = None) -> Weights:
    """Weights with pos_embed interpolated to the model's grid, from the grid of the flags or else a square one."""
    table, own = weights.get('pos_embed'), model.pos_embed
    if table is None or table.dim() != 3 or not table.numel():
        return weights
    grid = _trained_grid(table, flags)
    if grid == model.grid_size or grid is None and table.shape == own.shape:
        return weights
    grid = grid or (round((table.shape[1] - 1) ** .5),) * 2
    if grid[0] < 1 or table.shape != (1, 1 + grid[0] * grid[1], own.shape[-1]):
        return weights
    logger.info('positions interpolated from %d x %d to %d x %d patches', *grid, *model.grid_size)
    return {**weights, 'pos_embed': resize_positions(table.float(), grid, model.grid_size)}


def check_hidden_differences(model: nn.Module, weights: Weights, flags: Flags, path: str) -> None:
    """Raise UserError if weights have the model's shapes but another patch grid or number of heads in the decoder."""
    heads = _other_heads(model, flags)
    if heads:
        raise UserError('{}: trained with --decoder_num_heads {}'.format(path, heads))
    table = weights.get('pos_embed')
    grid = None if table is None or table.shape != model.pos_embed.shape else _trained_grid(table, flags)
    if grid not in (None, model.grid_size):
        raise UserError('{}: trained on {} x {} patches, but this run has {} x {}; see --input_size'
                        .format(path, *grid, *model.grid_size))


def _other_heads(model: nn.Module, flags: Flags) -> Optional[int]:
    """Heads of the decoder by the flags of the training, if the model has a decoder with another number."""
    size = PRETRAIN_MODELS.get((flags or {}).get('model'))
    heads = size and hasattr(model, 'decoder_blocks') and (flags.get('decoder_num_heads') or size.decoder[2])
    return heads if heads and heads != model.decoder_blocks[0].attn.num_heads else None


def _trained_grid(table: Tensor, flags: Flags) -> Optional[Tuple[int, int]]:
    """(rows, columns) from the flags, if it matches the length of the table."""
    grid = grid_of(flags)
    return grid if grid and table.shape[1] == 1 + grid[0] * grid[1] else None


def _check_vit(own: Weights, weights: Weights, path: str) -> None:
    """Raise UserError for weights of anything but a ViT with one class token; `own` is the state_dict of a model."""
    if 'cls_token' in own and 'patch_embed.proj.weight' not in weights:
        raise not_a_vit(path, weights)
    table = weights.get('pos_embed')
    fits = table is not None and 'pos_embed' in own and table.shape == own['pos_embed'].shape
    if not fits or 'dist_token' in weights:
        check_tokens(weights, path)


def _reject_any(names: Names, verb: str, path: str, flags: str = '--model') -> None:
    if names:
        raise UserError('{}: weights of another model, it {} {}; see {}'.format(
            path, verb, names[0], DECODER_FLAGS if _in_decoder(names[0]) else flags))


def _check_shapes(own: Weights, weights: Weights, path: str) -> None:
    for name, value in own.items():
        if name in weights and weights[name].shape != value.shape:
            raise UserError('{}: weights of another model, {} is {} instead of {}; see {}'.format(
                path, name, tuple(weights[name].shape), tuple(value.shape),
                DECODER_FLAGS if _in_decoder(name) else SHAPE_FLAGS))


def _listed(names: Names) -> str:
    others = [name for name in names if not _in_decoder(name)]
    return ', '.join(['the decoder'] * (len(others) < len(names)) + others) or 'nothing'


def _in_decoder(name: str) -> bool:
    return name.startswith('decoder') or name == 'mask_token'
