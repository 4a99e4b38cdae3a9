"""From the weights of a checkpoint to a model: exactly, or what fits of a pre-trained one."""
from util.checkpoints import pth_file, schema
from util.config.input_flags import grid_of
from util.config.normalization import adopt_statistics
from util.errors import UserError
from util.log import logger
from util.models.positions import resize_positions

CLASSIFIER_FLAGS = '--model, --global_pool and --cls_token'
SHAPE_FLAGS = '--model, --input_size, --patch_size and --in_chans'


def load_model(model, weights, path):
    """Fill `model` exactly.

    Raises:
        UserError: names or shapes differ; the first difference is named.
    """
    own, head = model.state_dict(), weights.get('head.weight')
    if 'head.weight' in own and head is not None and head.dim() == 2 and len(head) != len(own['head.weight']):
        raise UserError('{}: was trained for {} classes, this run has {}; see --nb_classes and --data_path'
                        .format(path, len(head), len(own['head.weight'])))
    for name, script in (('head.weight', 'main_finetune.py'), ('head.1.weight', 'main_linprobe.py')):
        if name in weights and name not in own and 'cls_token' in own:
            raise UserError('{}: is a classifier of {}, which resumes and evaluates it'.format(path, script))
    _refuse_any([name for name in own if name not in weights], 'lacks', path, CLASSIFIER_FLAGS)
    _check_shapes(own, weights, path)
    _refuse_any([name for name in weights if name not in own], 'also holds', path, CLASSIFIER_FLAGS)
    model.load_state_dict(weights)


def start_from(path, model, args, load):
    """Fill `model` by `load`, one of the next two functions, from the checkpoint at `path`; its mean and std go to
    `args`.

    Returns:
        names that start anew.
    Raises:
        UserError, SystemFailure: see util.checkpoints.pth_file.loading.
    """
    with pth_file.loading(path):
        saved = pth_file.load(path)
        flags = saved.get('args') or {}         # of any program: whatever else they say is none of this run's
        schema.check({'args': {name: flags.get(name) for name in ('in_chans', 'mean', 'std')}}, path)
        adopt_statistics(args, saved.get('args'), path)
        left_out, fresh = load(model, saved['model'], path, saved.get('args'))
    logger.info('loaded %s; left out: %s', path, _listed(left_out))
    logger.info('starting from random weights: %s', _listed(fresh))
    return fresh


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
    return _load_part(model, own, weights, kept, ('head.', 'fc_norm.', 'norm.'), path)


def load_for_pretraining(model, weights, path, flags=None):
    """Start a masked autoencoder from an encoder, and from its decoder where that is whole and of this size.

    Positions are the model's own: fixed, and of its grid. A last norm that the checkpoint lacks, as a classifier of the
    mean does, starts anew. Arguments, results and errors are those of load_pretrained.
    """
    own, weights = ({name: value for name, value in values.items() if not name.endswith('pos_embed')}
                    for values in (model.state_dict(), weights))
    decoder = [name for name in own if _of_decoder(name)]
    whole = all(name in weights and weights[name].shape == own[name].shape for name in decoder)
    kept = {name: weights[name] for name in own if name in weights and (whole or name not in decoder)}
    return _load_part(model, own, weights, kept, ('decoder', 'mask_token', 'norm.'), path)


def _load_part(model, own, weights, kept, optional, path):
    """Fill `own`, a model's weights, by those of `weights` that are `kept`; names with `optional` beginnings may lack.
    """
    left_out, fresh = [name for name in weights if name not in kept], [name for name in own if name not in kept]
    _refuse_any([name for name in fresh if not name.startswith(optional)], 'lacks', path)
    # layer scale, for one: without it the blocks compute something else
    _refuse_any([name for name in left_out if name.startswith(('blocks.', 'patch_embed.'))], 'also holds', path)
    _check_shapes(own, kept, path)
    model.load_state_dict(kept, strict=False)
    return left_out, fresh


def with_positions_for(model, weights, flags=None):
    """`weights` with pos_embed interpolated to the model's grid, from that of the training's flags or else a square."""
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


def check_grid(model, weights, flags, path):
    """Raise UserError where weights fit the model in number of patches, but their positions are of another grid."""
    table = weights.get('pos_embed')
    grid = None if table is None or table.shape != model.pos_embed.shape else _trained_grid(table, flags)
    if grid not in (None, model.grid_size):
        raise UserError('{}: was trained on {} x {} patches, this run has {} x {}; see --input_size'
                        .format(path, *grid, *model.grid_size))


def _trained_grid(table, flags):
    """(rows, columns) of the flags, where the table is as long."""
    grid = grid_of(flags)
    return grid if grid and table.shape[1] == 1 + grid[0] * grid[1] else None


def _refuse_any(names, verb, path, flags='--model'):
    if names:
        raise UserError('{}: is of another model, it {} {}; see {}'.format(path, verb, names[0], flags))


def _check_shapes(own, weights, path):
    for name, value in own.items():
        if name in weights and weights[name].shape != value.shape:
            raise UserError('{}: is of another model, {} is {} and not {}; see {}'.format(
                path, name, tuple(weights[name].shape), tuple(value.shape), SHAPE_FLAGS))


def _listed(names):
    others = [name for name in names if not _of_decoder(name)]
    return ', '.join(['the decoder'] * (len(others) < len(names)) + others) or 'nothing'


def _of_decoder(name):
    return name.startswith('decoder') or name == 'mask_token'
