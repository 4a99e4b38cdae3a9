"""What a checkpoint may hold: tensors, numbers, strings, None, and dicts, lists, tuples and Namespaces of them."""
import argparse
import collections

import torch

from util.safe_pickle import KEYS, UnpicklingError

MOST_VALUES = 10 ** 6       # some hundred lists within each other's places can mean more values than a memory holds
MOST_LEVELS = 100


def plain_copy(value, tensor):
    """A copy of a tree, in dicts, lists, tuples and Namespaces that have no attributes but what the tree shows.

    Args:
        tensor: makes of each further leaf what takes its place, or raises.
    Raises:
        UnpicklingError: there are other types, too many values, too many levels, or a list that holds itself.
    """
    return _Copier(tensor).copy(value, MOST_LEVELS)


class _Copier:
    def __init__(self, tensor):
        self._tensor, self._left = tensor, MOST_VALUES

    def copy(self, value, levels):
        self._left -= 1
        if not self._left or not levels:
            raise UnpicklingError('it holds too many values, or values within values')
        kind = type(value)
        if value is None or kind in (str, int, float, bool):
            return value
        if kind is list or kind is tuple or kind is torch.Size:
            return (list if kind is list else tuple)(self.copy(item, levels - 1) for item in value)
        if kind is dict or kind is collections.OrderedDict:
            return self._copy_dict(kind.items(value), levels)
        if kind is argparse.Namespace:
            copied = argparse.Namespace()
            vars(copied).update(self._copy_dict(vars(value).items(), levels))
            return copied
        if kind is torch.device:
            return str(value)
        return self._tensor(value)

    def _copy_dict(self, items, levels):
        copied = {key: self.copy(value, levels - 1) for key, value in items}
        if not all(type(key) in KEYS for key in copied):
            raise UnpicklingError('it holds a dict with a key that is no string and no number')
        return copied
