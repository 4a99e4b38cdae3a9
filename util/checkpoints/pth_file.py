"""Checkpoint files: dicts of tensors and plain types, written whole, read without running anything that they hold."""
import argparse
import errno
import itertools
import json
import os
import re
import struct
from contextlib import contextmanager

import numpy as np
import safetensors.numpy  # its part for PyTorch does not load under torch 1.5 and 1.8
import torch

from util.checkpoints import download, hugging_face, pth_format
from util.compat import accepts
from util.config.weights_location import is_url
from util.errors import SystemFailure, UserError
from util.files import atomic_file, regular_file, write_atomically
from util.log import logger

MOST_HEADER = 2 ** 24       # bytes, of about 100000 tensors in a file of safetensors
KINDS = {'F64': 'f8', 'F32': 'f4', 'F16': 'f2', 'BF16': 'u2', 'I64': 'i8', 'I32': 'i4', 'I16': 'i2', 'I8': 'i1',
         'U8': 'u1', 'BOOL': 'u1'}              # numpy's, which has no BF16, the upper half of a float32
MOST_VALUES, MOST_LEVELS = 10 ** 6, 100     # some hundred lists within each other's places can mean endlessly many
# How opening a file fails by the user's mistake; by None, regular_file refuses what is not one.
MISTAKES = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP,
            errno.ENAMETOOLONG, errno.ENXIO, errno.EINVAL)
# How RuntimeErrors of a device, or of too little memory, differ from those of wrong values.
OF_THE_MACHINE = re.compile(r"out of memory|can't allocate|^\w+ error\b|error code", re.IGNORECASE)


@contextmanager
def loading(path):
    """The one boundary for what goes wrong while a checkpoint is read, checked or loaded into something.

    Raises:
        UserError: the checkpoint is to blame, whatever happened. SystemFailure: disk, memory or device are.
    """
    try:
        yield
    except (UserError, SystemFailure):
        raise
    except Exception as error:
        text = (getattr(error, 'strerror', None) or str(error)).strip().split('\n')[0][:300]
        reason = ': '.join(filter(None, (type(error).__name__, text)))
        fault = error.errno not in MISTAKES if isinstance(error, OSError) else isinstance(error, MemoryError)
        if fault or isinstance(error, RuntimeError) and OF_THE_MACHINE.search(str(error)):
            raise SystemFailure('{}: cannot be read here ({})'.format(path, reason)) from error
        raise UserError('{}: not a readable checkpoint ({})'.format(path, reason)) from error


def save(path, state):
    """Write a checkpoint at `path`, whole or not at all: a zip archive with a checksum for each tensor.

    Args:
        state: dict of tensors, on any device, and plain types.
    Raises:
        TypeError: it holds anything else, so that `load` would refuse it.
    """
    state = plain_copy(state, lambda value: torch.Tensor.detach(value).cpu())
    with atomic_file(path) as file:
        torch.save(state, file, _use_new_zipfile_serialization=True)    # PyTorch 1.5 knows it, but has another default


def save_safetensors(path, tensors, **metadata):
    """Write a dict of dense tensors, of types that numpy has, to a safetensors file, and strings by name."""
    values = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}
    write_atomically(path, safetensors.numpy.save(values, {'format': 'pt', **metadata}))


def plain_copy(value, leaf, levels=MOST_LEVELS, counter=None):
    """A copy of a tree in plain dicts, lists, tuples, numbers, strings and None; a Namespace becomes a dict.

    Args:
        leaf: makes of anything else what takes its place, or raises.
    Raises:
        ValueError: too many values or levels, a list that holds itself, a key that is no string and no number.
    """
    counter = counter or itertools.count()
    if next(counter) == MOST_VALUES or not levels:
        raise ValueError('it holds too many values, or values within values')
    if value is None or type(value) in (str, int, float, bool):
        return value
    value = vars(value) if type(value) is argparse.Namespace else value
    if isinstance(value, dict):             # not by its attributes, which a file can set on an OrderedDict
        if not all(key is None or type(key) in (str, int, float, bool) for key in dict.keys(value)):
            raise ValueError('it holds a dict with a key that is no string and no number')
        return {key: plain_copy(item, leaf, levels - 1, counter) for key, item in dict.items(value)}
    if isinstance(value, (list, tuple)):
        kind = list if isinstance(value, list) else tuple
        return kind(plain_copy(item, leaf, levels - 1, counter) for item in value)
    return str(value) if isinstance(value, torch.device) else leaf(value)


def load(path, as_trained=False):
    """Read a checkpoint of ours, a published one, or another library's weights onto the CPU.

    A file of torch.save is read twice: first its structure and checksums are checked, which takes a third of a second a
    gigabyte.
    Args:
        path: of a file of torch.save or of safetensors; of a folder of Hugging Face; or a URL whose last part
            holds a hash, see util.checkpoints.download.
        as_trained: leave 'model' and 'model_ema' as they are; else averaged weights (--ema) take the place of those as
            trained, since they are what the training was judged by.
    Returns:
        a dict with 'model', a dict of tensors by this program's names; a bare state_dict is put under that key. 'args'
        is a dict where it is there. StreamCopy dense tensors on the CPU there are only plain values.
    Raises:
        UserError, SystemFailure: see `loading`.
    """
    with loading(path):
        local = download.fetch(path) if is_url(path) else path
        folder = hugging_face.folder_of(local)
        state = hugging_face.read_folder(folder, lambda part: _read(part).get('model')) if folder else _read(local)
        if not folder and _is_state_dict(state.get('model')) and hugging_face.is_foreign(state['model']):
            state = hugging_face.translate(state['model'], path)
    if not _is_state_dict(state.get('model')):
        raise UserError("{}: not a checkpoint, it holds no 'model'".format(path))
    if type(state.get('args')) is not dict:
        state.pop('args', None)
    broken = [name for name, value in state['model'].items() if not torch.isfinite(value.sum(dtype=torch.float64))]
    if broken:
        logger.info('warning: %s: %d of its tensors have values that are not finite, first %s', path, len(broken),
                    broken[0])
    if not (_is_state_dict(state.get('model_ema')) and state['model_ema']):
        state.pop('model_ema', None)
    return state if as_trained else prefer_ema_weights(state, path)


def prefer_ema_weights(state, path):
    """A checkpoint whose 'model' are its averaged weights, where it has some."""
    if 'model_ema' not in state:
        return state
    logger.info('%s: taking its averaged weights (--ema)', path)
    return {**{name: value for name, value in state.items() if name != 'model_ema'}, 'model': state['model_ema']}


def _read(path):
    """What a file holds, as a dict: of a bare state_dict, and of weights of safetensors, under 'model'."""
    with regular_file(path) as file:
        size, head = os.stat(file.raw.fileno()).st_size, file.read(9)
        file.seek(0)
        if size > os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'):
            raise ValueError('it has {:.0f} GB, more than the memory of this machine'.format(size / 1e9))
        if head[8:] == b'{' and struct.unpack('<Q', head[:8])[0] <= MOST_HEADER:
            return _read_safetensors(file.read(size))
        pth_format.inspect(file, size)
        file.seek(0)
        state = plain_copy(_torch_load(file), torch.Tensor.detach)
    if type(state) is not dict:
        return {}
    return {'model': state} if 'model' not in state and state and _is_state_dict(state) else state


def _read_safetensors(data):
    """A checkpoint of the bytes of a safetensors file: a JSON header, then the tensors' bytes; nothing in them runs."""
    found = safetensors.deserialize(data)
    header = json.loads(data[8:8 + struct.unpack('<Q', data[:8])[0]].decode())
    # What util.tools.export adds: the flags that build the model, and its classes.
    described = {name: json.loads(text) for name, text in header.get('__metadata__', {}).items()
                 if name in ('args', 'classes')}
    return {'model': {name: _tensor(**entry) for name, entry in found}, **described}


def _tensor(dtype, shape, data):
    values = np.frombuffer(data, KINDS[dtype])
    if dtype == 'BF16':
        return torch.from_numpy((values.astype(np.uint32) << 16).view(np.float32).reshape(shape)).to(torch.bfloat16)
    return torch.from_numpy((values != 0 if dtype == 'BOOL' else values).reshape(shape))


def _torch_load(file):
    if hasattr(torch.serialization, 'safe_globals'):
        with torch.serialization.safe_globals([argparse.Namespace]):      # in published checkpoints
            return torch.load(file, map_location='cpu', weights_only=True)
    options = {'weights_only': False} if accepts(torch.load, 'weights_only') else {}
    return torch.load(file, map_location='cpu', pickle_module=pth_format, **options)


def _is_state_dict(value):
    return type(value) is dict and all(type(name) is str and torch.is_tensor(tensor)
                                       for name, tensor in value.items())
