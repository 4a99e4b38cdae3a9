"""Weights within the checkpoints of other programs: containers (state_dict, teacher, ...) and prefixes of names."""
from typing import Any, Dict, Iterator, List, Tuple

from util.checkpoints.schema import State, Weights, is_state_dict
from util.errors import UserError
from util.log import logger
from util.text import listed

PREFERRED = ('model', 'state_dict', 'teacher', 'target_encoder')        # if a file has several containers
MOST_LEVELS = 3             # of containers within containers
ANCHOR = 'patch_embed.proj.weight'       # of every ViT in this program, timm and the published code
SAVE_WEIGHTS = 'save the weights alone: torch.save({"model": model.state_dict()}, FILE)'


def unwrap(content: Dict[str, Any], path: str) -> State:
    """Checkpoint with the weights of its ViT under 'model', by names without the prefix of a wrapper.

    Args:
        content: of the file at `path`; a bare state_dict is under 'model'.
    Raises:
        UserError: there is no state_dict of a ViT, or one of several.
    """
    containers = [pair for pair in _containers(content) if _prefixes(pair[1])]
    if not containers and is_state_dict(content.get('model')):
        return content                          # of another model: whoever loads it names what is missing
    if not containers:
        raise not_a_vit(path, content)
    order = {name: place for place, name in enumerate(PREFERRED)}
    (name, weights), *others = sorted(containers, key=lambda pair: order.get(pair[0], len(order)))
    prefix, *more = _prefixes(weights)
    if more:
        raise UserError('{}: several ViTs, with the prefixes {}; {}'.format(path, listed([prefix, *more]),
                                                                           SAVE_WEIGHTS))
    if name != 'model' or prefix:
        left_out = [other for other, _ in others] + [key for key in weights if not key.startswith(prefix)]
        logger.info('%s: using the weights in %r, whose names lose the prefix %r; left out: %s', path, name, prefix,
                    listed(left_out))
    state = {**content, 'model': _without(prefix, weights)}
    if is_state_dict(content.get('model_ema')):         # has the names of 'model'
        state['model_ema'] = _without(prefix, content['model_ema'])
    return state


def not_a_vit(path: str, names: Dict[str, Any]) -> UserError:
    """The error for a file whose content has other names than a ViT."""
    return UserError('{}: not a checkpoint of a ViT: it has {}; {}; of a Hugging Face model, give the folder'.format(
        path, listed(list(names)), SAVE_WEIGHTS))


def check_tokens(weights: Weights, path: str) -> None:
    """Raise UserError if a ViT, whose grid is taken for square, has other tokens than patches and a class token."""
    table = weights.get('pos_embed')
    positions = table.shape[1] if table is not None and table.dim() == 3 else 0
    fault = ''
    if 'dist_token' in weights or _is_square(positions - 2):
        fault = 'has a distillation token, which no model here has'
    elif 'cls_token' not in weights or _is_square(positions):
        fault = 'has no class token or no position for it, which the models here need'
    if fault:
        found = ' (pos_embed has {} positions)'.format(positions) if positions else ''
        raise UserError('{}: {}{}'.format(path, fault, found))


def _is_square(number: int) -> bool:
    return number > 0 and round(number ** .5) ** 2 == number


def _containers(values: Dict[str, Any], name: str = '', levels: int = MOST_LEVELS) -> Iterator[Tuple[str, Weights]]:
    """(name, state_dict) of the containers in a file."""
    if values and is_state_dict(values):
        yield name, values
    elif type(values) is dict and levels:
        for key, value in values.items():
            yield from _containers(value, str(key), levels - 1)


def _prefixes(weights: Weights) -> List[str]:
    """What precedes the names of each ViT in a state_dict."""
    return [name[:-len(ANCHOR)] for name in weights if name.endswith(ANCHOR)]


def _without(prefix: str, weights: Weights) -> Weights:
    """The weights whose names have a prefix, without it."""
    return {name[len(prefix):]: value for name, value in weights.items() if name.startswith(prefix)}
