"""From the weights of a checkpoint to a model: exactly, or what fits of a pre-trained one."""
from util.errors import UserError
from util.input_size import grid_of
from util.log import logger
from util.pos_embed import resize_positions


def load_model(model, weights, path):
    """Fill `model` exactly.

    Raises:
        UserError: names or shapes differ; the first difference is named.
    """
    own = model.state_dict()
    head = weights.get('head.weight')
    if 'head.weight' in own and head is not None and head.dim() == 2 and len(head) != len(own['head.weight']):
        raise UserError('{}: was trained for {} classes, this run has {}; see --nb_classes and --data_path'
                        .format(path, len(head), len(own['head.weight'])))
    for name, script in (('head.weight', 'main_finetune.py'), ('head.1.weight', 'main_linprobe.py')):
        if name in weights and name not in own and 'cls_token' in own:
            raise UserError('{}: is a classifier of {}, which goes on with it and evaluates it'.format(path, script))
    for name in own:
        if name not in weights:
            raise UserError('{}: is of another model, it lacks {}; see --model, --global_pool and --cls_token'
                            .format(path, name))
    _check_shapes(own, weights, path)
    surplus = [name for name in weights if name not in own]
    if surplus:
        raise UserError('{}: is of another model, it also holds {}; see --model, --global_pool and --cls_token'
                        .format(path, surplus[0]))
    model.load_state_dict(weights)


def load_pretrained(model, weights, path, flags=None):
    """Start a classifier from the encoder of a pre-trained model, or from a classifier of other classes.

    Positions are interpolated to the model's grid. The decoder and a head of another size are left out; a head or
    fc_norm that the checkpoint lacks starts anew.
    Args:
        flags: of the training that the weights are from, where that is known.
    Returns:
        names left out, names that start anew.
    Raises:
        UserError: the encoder is not this model's.
    """
    own = model.state_dict()
    kept = {name: value for name, value in with_positions_for(model, weights, flags).items() if name in own}
    if any(name.startswith('head.') and value.shape != own[name].shape for name, value in kept.items()):
        kept = {name: value for name, value in kept.items() if not name.startswith('head.')}
    fresh = [name for name in own if name not in kept]
    foreign = [name for name in fresh if not name.startswith(('head.', 'fc_norm.', 'norm.'))]
    if foreign:
        raise UserError('{}: is of another model, it lacks {}; see --model'.format(path, foreign[0]))
    left_out = [name for name in weights if name not in kept]
    surplus = [name for name in left_out if name.startswith(('blocks.', 'patch_embed.'))]
    if surplus:         # layer scale, for one: without it the blocks compute something else
        raise UserError('{}: is of another model, it also holds {}; see --model'.format(path, surplus[0]))
    _check_shapes(own, kept, path)
    model.load_state_dict(kept, strict=False)
    return left_out, fresh


def load_for_pretraining(model, weights, path):
    """Start a masked autoencoder from an encoder, and from its decoder where that is whole and of this size.

    Positions are the model's own: fixed, and of its grid. A last norm that the checkpoint lacks, as a classifier of the
    mean does, starts anew.
    Returns:
        names left out, names that start anew.
    Raises:
        UserError: the encoder is not this model's.
    """
    own = model.state_dict()
    fixed = [name for name in own if name.endswith('pos_embed')]
    decoder = [name for name in own if _of_decoder(name) and name not in fixed]
    whole = all(name in weights and weights[name].shape == own[name].shape for name in decoder)
    wanted = [name for name in own if name not in fixed and (whole or name not in decoder)]
    kept = {name: weights[name] for name in wanted if name in weights}
    fresh = [name for name in own if name not in fixed and name not in kept]
    foreign = [name for name in fresh if name not in decoder and not name.startswith('norm.')]
    if foreign:
        raise UserError('{}: is of another model, it lacks {}; see --model'.format(path, foreign[0]))
    _check_shapes(own, kept, path)
    model.load_state_dict(kept, strict=False)
    return [name for name in weights if name not in kept and name not in fixed], fresh


def with_positions_for(model, weights, flags=None):
    """`weights` with pos_embed interpolated to the model's grid, from that of the training's flags or else a square."""
    table, own = weights.get('pos_embed'), model.pos_embed
    if table is None or table.dim() != 3 or not table.numel():
        return weights
    grid = _trained_grid(table, flags)
    if grid == model.grid_size or grid is None and table.shape == own.shape:
        return weights
    if grid is None:
        grid = (round((table.shape[1] - 1) ** .5),) * 2
    if grid[0] < 1 or table.shape != (1, 1 + grid[0] * grid[1], own.shape[-1]):
        return weights
    logger.info('positions interpolated from %d x %d to %d x %d patches', *grid, *model.grid_size)
    return {**weights, 'pos_embed': resize_positions(table.float(), grid, model.grid_size)}


def _trained_grid(table, flags):
    """(rows, columns) of the flags, where the table is as long."""
    grid = grid_of(flags)
    return grid if grid and table.shape[1] == 1 + grid[0] * grid[1] else None


def check_grid(model, weights, flags, path):
    """Raise UserError where weights fit the model in number of patches, but their positions are of another grid."""
    table = weights.get('pos_embed')
    grid = None if table is None or table.shape != model.pos_embed.shape else _trained_grid(table, flags)
    if grid not in (None, model.grid_size):
        raise UserError('{}: was trained on {} x {} patches, this run has {} x {}; see --input_size'
                        .format(path, *grid, *model.grid_size))


def _check_shapes(own, weights, path):
    for name, value in own.items():
        if name in weights and weights[name].shape != value.shape:
            raise UserError('{}: is of another model, {} is {} and not {}; see --model, --input_size, --patch_size '
                            'and --in_chans'.format(path, name, tuple(weights[name].shape), tuple(value.shape)))


def report_pretrained(path, left_out, fresh):
    """Say in two lines what load_pretrained or load_for_pretraining did."""
    logger.info('loaded %s; left out: %s', path, _listed(left_out))
    logger.info('starting from random weights: %s', _listed(fresh))


def _listed(names):
    others = [name for name in names if not _of_decoder(name)]
    return ', '.join(['the decoder'] * (len(others) < len(names)) + others) or 'nothing'


def _of_decoder(name):
    return name.startswith('decoder') or name == 'mask_token'
