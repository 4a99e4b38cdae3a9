"""The pickle of a checkpoint: what torch.load may make of it, and what it says without making anything.

This module is the `pickle_module` of torch.load where weights_only does not exist.
"""
import torch

from util import safe_pickle
from util.safe_pickle import BoundedReader, UnpicklingError, new_namespace, ordered_dict

ITEM_SIZES = {'DoubleStorage': 8, 'FloatStorage': 4, 'HalfStorage': 2, 'BFloat16Storage': 2, 'LongStorage': 8,
              'IntStorage': 4, 'ShortStorage': 2, 'CharStorage': 1, 'ByteStorage': 1, 'BoolStorage': 1}     # bytes
MOST_DIMENSIONS = 64        # that torch knows
PLAIN = {('collections', 'OrderedDict'): ordered_dict, ('argparse', 'Namespace'): new_namespace}


def _size(numbers):
    return tuple(numbers)


def _device(*name):
    if not all(type(part) in (str, int) for part in name):
        raise UnpicklingError('it names a device that is none')
    return ':'.join(str(part) for part in name)


class StorageType:
    """The type of a storage that is not made."""

    def __init__(self, name):
        self.item_size = ITEM_SIZES[name]


class Storage:
    """A storage that is not made: its key in the file, its elements and bytes."""

    def __init__(self, key, kind, numel):
        self.key, self.kind, self.numel, self.bytes = key, kind, numel, numel * kind.item_size


class Tensor:
    """A tensor that is not made."""


def stand_in(value):
    """`value`, which must be a Tensor that is not made."""
    if type(value) is not Tensor:
        raise UnpicklingError('it holds what is neither a tensor nor a plain value')
    return value


def _is_count(*values):
    return all(type(value) is int and 0 <= value < 2 ** 63 for value in values)


def _check_tensor(storage, offset, size, stride, requires_grad=False, hooks=()):
    """Stands for torch._utils._rebuild_tensor and _rebuild_tensor_v2.

    Raises:
        UnpicklingError: the tensor has more elements than its storage, or some outside of it.
    """
    if type(storage) is not Storage or type(size) is not tuple or type(stride) is not tuple:
        raise UnpicklingError('it holds a tensor without a storage or shape')
    if not len(size) == len(stride) <= MOST_DIMENSIONS or not _is_count(offset, *size, *stride):
        raise UnpicklingError('it holds a tensor whose shape is no list of numbers')
    if type(requires_grad) is not bool or hooks:
        raise UnpicklingError('it holds a tensor with hooks')
    elements, last = 1, offset
    for length, step in zip(size, stride):
        elements *= length
        last += (length - 1) * step
    if offset > storage.numel or elements > storage.numel or (elements and last >= storage.numel):
        raise UnpicklingError('it holds a tensor that is larger than its data')
    return Tensor()


def _check_parameter(data, requires_grad, hooks):
    """Stands for torch._utils._rebuild_parameter."""
    if type(data) is not Tensor or type(requires_grad) is not bool or hooks:
        raise UnpicklingError('it holds a parameter that is no tensor')
    return data


class Inspector(safe_pickle.Unpickler):
    """Reads the pickle with stand-ins for tensors; `storages` then says which data it needs, by key."""

    names = {('torch._utils', '_rebuild_tensor'): _check_tensor, ('torch._utils', '_rebuild_tensor_v2'): _check_tensor,
             ('torch._utils', '_rebuild_parameter'): _check_parameter,
             ('torch', 'Size'): _size, ('torch', 'device'): _device,
             **{('torch', name): StorageType(name) for name in ITEM_SIZES}, **PLAIN}

    def __init__(self, file):
        super().__init__(BoundedReader(file), encoding='utf-8')
        self.storages = {}

    def persistent_load(self, saved_id):
        """The storage of an id ('storage', type, key, device, elements), in older files with None at the end."""
        if type(saved_id) is not tuple or saved_id[:1] != ('storage',) or saved_id[5:] not in ((), (None,)):
            raise UnpicklingError('it refers to what is no storage')
        kind, key, device, numel = saved_id[1:5]
        if type(kind) is not StorageType or type(key) is not str or type(device) is not str or not _is_count(numel):
            raise UnpicklingError('it refers to a storage of unknown type or size')
        storage = self.storages.setdefault(key, Storage(key, kind, numel))
        if (storage.kind, storage.numel) != (kind, numel):
            raise UnpicklingError('it has two sizes for the same data')
        return storage


class Unpickler(safe_pickle.Unpickler):
    """What torch.load calls; it sets `persistent_load`."""

    names = {**{('torch._utils', name): getattr(torch._utils, name)
                for name in ('_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_parameter')},
             ('torch', 'Size'): _size, ('torch', 'device'): _device,
             **{('torch', name): getattr(torch, name) for name in ITEM_SIZES}, **PLAIN}


def load(file, **options):
    """The next pickle of a file, as torch.load reads them one after the other."""
    return Unpickler(file, **options).load()
