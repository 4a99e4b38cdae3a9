"""Checkpoint files: dicts of tensors and plain values, written atomically, read without executing their content."""
import argparse
import itertools
import json
import os
import struct
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Optional

import safetensors.numpy  # safetensors.torch cannot be imported under torch 1.5 and 1.8
import torch

from util.checkpoints import containers, download, hugging_face, pth_format
from util.checkpoints.schema import State, Weights, is_state_dict
from util.config.parser import is_url
from util.errors import SystemFailure, UserError, is_system_failure
from util.files import atomic_file, open_regular, write_atomically
from util.log import logger

MOST_HEADER = 2 ** 24       # bytes of a safetensors header, about 100000 tensors
MOST_VALUES, MOST_LEVELS = 10 ** 6, 100     # a hundred nested lists that share items can expand without end


@contextmanager
def checkpoint_errors(path: str) -> Iterator[None]:
    """Error boundary for reading, validating and loading the checkpoint at `path`.

    Raises SystemFailure if disk, memory or device is at fault, and UserError for whatever else was raised.
    """
    try:
        yield
    except (UserError, SystemFailure):
        raise
    except Exception as error:
        text = (getattr(error, 'strerror', None) or str(error)).strip().split('\n')[0][:300]
        reason = ': '.join(filter(None, (type(error).__name__, text)))
        if is_system_failure(error):
            raise SystemFailure('{}: cannot be read here ({})'.format(path, reason)) from error
        raise UserError('{}: not a readable checkpoint ({})'.format(path, reason)) from error


def save(path: str, state: State) -> None:
    """Write tensors, on any device, and plain values atomically; TypeError for others, which `load` would reject."""
    state = plain_copy(state, lambda value: torch.Tensor.detach(value).cpu())
    with atomic_file(path) as file:
        torch.save(state, file, _use_new_zipfile_serialization=True)    # not the default of PyTorch 1.5


def save_safetensors(path: str, tensors: Weights) -> None:
    """Write dense tensors, of dtypes that numpy has, to a safetensors file."""
    values = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}
    write_atomically(path, safetensors.numpy.save(values, {'format': 'pt'}))


def plain_copy(value: Any, leaf: Callable[[Any], Any], levels: int = MOST_LEVELS,
               counter: Optional[Iterator[int]] = None) -> Any:
    """Copy nested values into plain dicts, lists, tuples, numbers, strings and None; a Namespace becomes a dict.

    `leaf` converts any other value, such as a tensor, or raises. Raises ValueError for too many values or levels, as
    a self-reference has, and for other dict keys.
    """
    counter = counter or itertools.count()
    if next(counter) == MOST_VALUES or not levels:
        raise ValueError('too many values or nesting levels')
    if value is None or type(value) in (str, int, float, bool):
        return value
    value = vars(value) if type(value) is argparse.Namespace else value
    if isinstance(value, dict):
        if not all(key is None or type(key) in (str, int, float, bool) for key in value):
            raise ValueError('a dict key that is neither a string nor a number')
        return {key: plain_copy(item, leaf, levels - 1, counter) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        kind = list if isinstance(value, list) else tuple
        return kind(plain_copy(item, leaf, levels - 1, counter) for item in value)
    return str(value) if isinstance(value, torch.device) else leaf(value)


def load(path: str, as_trained: bool = False) -> State:
    """Read a checkpoint of this program, a published one, or another library's weights; raises as checkpoint_errors.

    Args:
        path: file written by torch.save or safetensors, Hugging Face folder, or URL with a hash (see download.py).
        as_trained: keep 'model' and 'model_ema'; by default EMA weights (--ema) replace 'model', as in evaluation.
    Returns:
        dense tensors on the CPU and plain values, see util.checkpoints.schema; only 'model', 'model_ema' and the type
        of 'args' are validated here. A bare state_dict becomes 'model'.
    """
    with checkpoint_errors(path):
        local = download.fetch(path) if is_url(path) else path
        folder = hugging_face.folder_of(local)
        state = containers.unwrap(hugging_face.read_folder(folder, lambda part: _read(part).get('model')) if folder
                                  else _read(local), path)
    if type(state.get('args')) is not dict:
        state.pop('args', None)
    broken = [name for name, value in state['model'].items() if not torch.isfinite(value.sum(dtype=torch.float64))]
    if broken:
        logger.info('warning: %s: %d tensors have non-finite values, first %s', path, len(broken), broken[0])
    if not (is_state_dict(state.get('model_ema')) and state['model_ema']):
        state.pop('model_ema', None)
    return state if as_trained else prefer_ema_weights(state, path)


def prefer_ema_weights(state: State, path: str) -> State:
    """The checkpoint with its EMA weights, if any, as 'model'."""
    if 'model_ema' not in state:
        return state
    logger.info('%s: using its EMA weights (--ema)', path)
    return {**{name: value for name, value in state.items() if name != 'model_ema'}, 'model': state['model_ema']}


def _read(path: str) -> State:
    """Content of a file; a bare state_dict, or the tensors of a safetensors file, are under 'model'."""
    with open_regular(path) as file:
        size, head = os.fstat(file.fileno()).st_size, file.read(9)
        file.seek(0)
        if size > os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'):
            raise ValueError('{:.0f} GB, more than the memory of this machine'.format(size / 1e9))
        if head[8:] == b'{' and struct.unpack('<Q', head[:8])[0] <= MOST_HEADER:
            return _read_safetensors(file.read(size))
        state = plain_copy(*pth_format.parse(file, size))
    if type(state) is not dict:
        return {}
    return {'model': state} if 'model' not in state and state and is_state_dict(state) else state


def _read_safetensors(data: bytes) -> State:
    """Checkpoint from the content of a safetensors file, a JSON header followed by raw tensor data."""
    found = safetensors.deserialize(data)
    header = json.loads(data[8:8 + struct.unpack('<Q', data[:8])[0]].decode())
    # Metadata of files that earlier exports wrote: the flags that build the model, and its classes.
    metadata = {name: json.loads(text) for name, text in header.get('__metadata__', {}).items()
                if name in ('args', 'classes')}
    return {'model': {name: pth_format.elements(entry['dtype'], entry['data']).reshape(entry['shape'])
                      for name, entry in found}, **metadata}
