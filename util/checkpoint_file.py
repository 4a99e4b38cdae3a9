"""Checkpoint files: dicts of tensors and plain types, written whole, read without running anything that they hold."""
import argparse
import io
import os
import pickle
import stat

import torch

from util import checkpoint_pickle, download
from util.checkpoint_archive import inspect
from util.errors import UserError
from util.features import accepts
from util.files import atomic_file
from util.log import logger
from util.plain_values import plain_copy


def save(path, state):
    """Write a checkpoint at `path`, whole or not at all: a zip archive with a checksum for each tensor.

    Args:
        state: dict of tensors, on any device, and plain types.
    Raises:
        TypeError: it holds anything else, so that `load` would refuse it.
    """
    state = plain_copy(state, _to_cpu)
    with atomic_file(path) as file:
        torch.save(state, file, _use_new_zipfile_serialization=True)    # PyTorch 1.5 knows it, but has another default


def load(path, as_trained=False):
    """Read a checkpoint of ours or a published one onto the CPU.

    The file is read twice: first its structure and checksums are checked, which takes a third of a second a gigabyte.
    Args:
        path: of a file; or a URL whose last part holds a hash, see util.download.
        as_trained: leave 'model' and 'model_ema' as they are; else averaged weights (--ema) take the place of those as
            trained, since they are what the training was judged by.
    Returns:
        a dict with 'model', a dict of tensors by name; a bare state_dict is put under that key. Beside tensors, which
        are dense, there are only the types of util.plain_values.
    Raises:
        UserError: the file is no checkpoint, is damaged, or holds anything but tensors and plain values.
    """
    local = download.fetch(path) if download.is_url(path) else path
    try:
        with _opened(local) as file:
            inspect(file, os.stat(file.raw.fileno()).st_size)
            file.seek(0)
            state = plain_copy(_torch_load(file), _dense)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError,
            AssertionError, ArithmeticError, MemoryError) as error:
        raise UserError('{}: not a readable checkpoint ({})'.format(path, _reason(error))) from error
    if type(state) is dict and 'model' not in state and state and _is_state_dict(state):
        state = {'model': state}
    if type(state) is not dict or not _is_state_dict(state.get('model')):
        raise UserError("{}: holds no 'model'; is it a checkpoint?".format(path))
    unsound = [name for name, value in state['model'].items() if not _is_finite(value)]
    if unsound:
        logger.info('warning: %s: %d of its weights are not finite, the first is %s', path, len(unsound), unsound[0])
    if not (_is_state_dict(state.get('model_ema')) and state['model_ema']):
        state.pop('model_ema', None)
    return state if as_trained else judged_weights(state, path)


def judged_weights(state, path):
    """A checkpoint whose 'model' are its averaged weights, where it has some."""
    if 'model_ema' not in state:
        return state
    logger.info('%s: taking its averaged weights (--ema)', path)
    return {**{name: value for name, value in state.items() if name != 'model_ema'}, 'model': state['model_ema']}


class _Opened(io.BufferedReader):
    """A file that torch.load reads through Python: given its number, torch would first try it as a tar archive."""

    def fileno(self):
        raise io.UnsupportedOperation('fileno')


def _opened(path):
    # Opening a named pipe would wait for who writes into it, but for O_NONBLOCK.
    raw = io.FileIO(path, opener=lambda name, flags: os.open(name, flags | getattr(os, 'O_NONBLOCK', 0)))
    if not stat.S_ISREG(os.stat(raw.fileno()).st_mode):
        raw.close()
        raise OSError('a pipe or device')
    return _Opened(raw)


def _torch_load(file):
    if hasattr(torch.serialization, 'safe_globals'):
        with torch.serialization.safe_globals([argparse.Namespace]):      # in published checkpoints
            return torch.load(file, map_location='cpu', weights_only=True)
    options = {'weights_only': False} if accepts(torch.load, 'weights_only') else {}
    return torch.load(file, map_location='cpu', pickle_module=checkpoint_pickle, **options)


def _reason(error):
    if isinstance(error, MemoryError):
        return 'there is not enough memory for it'
    text = getattr(error, 'strerror', None) or str(error)
    return text.strip().split('\n')[0] or type(error).__name__


def _to_cpu(value):
    if not torch.is_tensor(value):
        raise TypeError('a checkpoint cannot hold {}'.format(type(value)))
    return value.detach().cpu()


def _dense(value):
    if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.layout != torch.strided or value.is_quantized \
            or value.device.type != 'cpu':
        raise pickle.UnpicklingError('it holds {}, which is neither a dense tensor nor a plain value'
                                     .format(type(value)))
    return value.detach()


def _is_state_dict(value):
    return type(value) is dict and all(type(name) is str and torch.is_tensor(tensor)
                                       for name, tensor in value.items())


def _is_finite(value):
    return not value.is_floating_point() or bool(torch.isfinite(value.double().sum()))
