"""Checkpoint files: dicts of tensors and plain types, written whole, read without running anything that they hold."""
import argparse
import pickle

import torch

from util import safe_pickle
from util.errors import UserError
from util.features import accepts
from util.files import atomic_file


def save(path, state):
    """Write a checkpoint at `path`, whole or not at all."""
    with atomic_file(path) as file:
        torch.save(state, file)


def load(path):
    """Read a checkpoint of ours or a published one onto the CPU.

    Returns:
        a dict with 'model'; a bare state_dict is put under that key.
    Raises:
        UserError: the file is no checkpoint, is damaged, or holds anything but tensors and plain values.
    """
    try:
        state = _torch_load(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError,
            TypeError, IndexError, ImportError, UnicodeDecodeError) as error:
        raise UserError('{}: not a readable checkpoint ({})'.format(path, str(error).strip().split('\n')[0])) from error
    if isinstance(state, dict) and 'model' not in state and all(torch.is_tensor(v) for v in state.values()) and state:
        state = {'model': state}
    if not isinstance(state, dict) or not isinstance(state.get('model'), dict):
        raise UserError("{}: holds no 'model'; is it a checkpoint?".format(path))
    return state


def _torch_load(path):
    if hasattr(torch.serialization, 'add_safe_globals'):
        torch.serialization.add_safe_globals([argparse.Namespace])      # in published checkpoints
        return torch.load(path, map_location='cpu', weights_only=True)
    options = {'weights_only': False} if accepts(torch.load, 'weights_only') else {}
    return torch.load(path, map_location='cpu', pickle_module=safe_pickle, **options)
