"""The pickle of a checkpoint: its operations are checked by pickletools, then it is read once without making a tensor.

torch.load follows, by `weights_only` or, where that does not exist, with this module as its `pickle_module`. A pickle
acts on a program through the objects that its names stand for, and by setting attributes; so few names are known, and
what stands for them here is Sealed.
"""
import argparse
import io
import itertools
import pickle
import pickletools

import torch

UnpicklingError = pickle.UnpicklingError

# What torch.save and pickle write in the protocols 2 to 4, but for sets, extension codes, numbers in decimals, and
# lengths of 8 bytes.
OPCODES = frozenset((
    'PROTO', 'FRAME', 'STOP', 'MARK', 'NONE', 'NEWTRUE', 'NEWFALSE', 'BININT', 'BININT1', 'BININT2', 'LONG1',
    'BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINSTRING', 'SHORT_BINSTRING', 'BINBYTES', 'SHORT_BINBYTES',
    'EMPTY_TUPLE', 'TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3', 'EMPTY_LIST', 'APPEND', 'APPENDS', 'EMPTY_DICT', 'SETITEM',
    'SETITEMS', 'GLOBAL', 'STACK_GLOBAL', 'REDUCE', 'NEWOBJ', 'BUILD', 'BINPERSID', 'BINGET', 'LONG_BINGET', 'BINPUT',
    'LONG_BINPUT', 'MEMOIZE'))
MOST_OPERATIONS = 2 ** 20       # ViT-H with its optimizer's state takes 2 ** 16
MOST_TUPLES = 2 ** 15           # so that they nest no deeper than Python's hash of a tuple can follow
LONGEST_LINE = 2 ** 10          # bytes, as a number in decimals may have millions
ITEM_SIZES = {'DoubleStorage': 8, 'FloatStorage': 4, 'HalfStorage': 2, 'BFloat16Storage': 2, 'LongStorage': 8,
              'IntStorage': 4, 'ShortStorage': 2, 'CharStorage': 1, 'ByteStorage': 1, 'BoolStorage': 1}     # bytes
MOST_DIMENSIONS = 64            # that torch knows
MOST_VALUES, MOST_LEVELS = 10 ** 6, 100     # some hundred lists within each other's places can mean endlessly many
KEYS = (str, bytes, int, float, bool, type(None))


class Content(io.BytesIO):
    """The bytes of pickles, in lines of LONGEST_LINE at most."""

    def readline(self, size=-1):
        return super().readline(LONGEST_LINE)


def scan(content):
    """Read one pickle without making anything of it.

    Args:
        content: Content, which is left at the pickle's end.
    Raises:
        UnpicklingError: it could run code or fill the memory. ValueError: it is damaged.
    """
    tuples = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name not in OPCODES:
            raise UnpicklingError('it needs {}, which no plain value does'.format(opcode.name))
        tuples += opcode.name.startswith('TUPLE')
        if count > MOST_OPERATIONS or tuples > MOST_TUPLES:
            raise UnpicklingError('it holds too many values')
        if opcode.name in ('FRAME', 'LONG_BINPUT') and argument > MOST_OPERATIONS:
            raise UnpicklingError('it reserves memory for values that it does not have')


class Sealed:
    """Has no attributes that a pickle could set: on an instance this raises, on the class the call lacks `self`."""
    __slots__ = ()

    def __setstate__(self, state):
        raise UnpicklingError('it sets attributes of {}'.format(type(self).__name__))


class Attributes(dict):
    """Stands for collections.OrderedDict and argparse.Namespace; their attributes become items."""
    __slots__ = ()

    def __setstate__(self, state):
        self.update(state)


class Arguments(Sealed, tuple):
    """Stands for torch.Size and torch.device, by what they are made of."""
    __slots__ = ()

    def __new__(cls, *arguments):
        return super().__new__(cls, arguments)


class StorageType(Sealed, int):
    """Stands for a type of storages, by the bytes of an element."""
    __slots__ = ()


class Storage(Sealed):
    """Stands for a storage: its type, elements and bytes."""

    def __init__(self, kind, numel):
        self.kind, self.numel, self.bytes = kind, numel, numel * kind


class Tensor(Sealed):
    """Stands for torch._utils._rebuild_tensor and _rebuild_tensor_v2, and for a tensor that lies in its storage."""

    def __new__(cls, storage, offset, size, stride, requires_grad=False, hooks=()):
        if type(storage) is not Storage or type(requires_grad) is not bool or hooks:
            raise UnpicklingError('it holds a tensor without a storage, or with hooks')
        if not len(size) == len(stride) <= MOST_DIMENSIONS or not _are_counts(offset, *size, *stride):
            raise UnpicklingError('it holds a tensor whose shape is no list of numbers')
        elements, last = 1, offset
        for length, step in zip(size, stride):
            elements *= length
            last += (length - 1) * step
        if offset > storage.numel or elements > storage.numel or (elements and last >= storage.numel):
            raise UnpicklingError('it holds a tensor that is larger than its data')
        return super().__new__(cls)


class Parameter(Sealed):
    """Stands for torch._utils._rebuild_parameter, which makes a tensor of a tensor."""

    def __new__(cls, data, requires_grad, hooks):
        if type(data) is not Tensor or type(requires_grad) is not bool or hooks:
            raise UnpicklingError('it holds a parameter that is no tensor')
        return data


def _are_counts(*values):
    return all(type(value) is int and 0 <= value < 2 ** 63 for value in values)


NAMES = {('torch._utils', '_rebuild_tensor'): Tensor, ('torch._utils', '_rebuild_tensor_v2'): Tensor,
         ('torch._utils', '_rebuild_parameter'): Parameter, ('torch', 'Size'): Arguments,
         ('torch', 'device'): Arguments, ('collections', 'OrderedDict'): Attributes,
         ('argparse', 'Namespace'): Attributes,
         **{('torch', name): StorageType(size) for name, size in ITEM_SIZES.items()}}


class Unpickler(pickle.Unpickler):
    """What torch.load calls, for a file that has passed an Inspector; it sets `persistent_load`."""

    def find_class(self, module, name):
        if (module, name) not in NAMES:
            raise UnpicklingError('it holds {}.{}, which is neither a tensor nor a plain value'.format(module, name))
        return super().find_class(module, name)


def load(file, **options):
    """The next pickle of a file, as torch.load reads them one after the other."""
    return Unpickler(file, **options).load()


class Inspector(Unpickler):
    """Reads a pickle that `scan` has passed with stand-ins for all names; `storages` says which data it needs, by key.
    """

    def __init__(self, content):
        super().__init__(content, encoding='utf-8')
        self.storages = {}

    def find_class(self, module, name):
        super().find_class(module, name)
        return NAMES[module, name]

    def persistent_load(self, saved_id):
        """The storage of an id ('storage', type, key, device, elements), in older files with None at the end."""
        if type(saved_id) is not tuple or saved_id[:1] != ('storage',) or saved_id[5:] not in ((), (None,)):
            raise UnpicklingError('it refers to what is no storage')
        kind, key, device, numel = saved_id[1:5]
        if type(kind) is not StorageType or type(key) is not str or type(device) is not str or not _are_counts(numel):
            raise UnpicklingError('it refers to a storage of unknown type or size')
        storage = self.storages.setdefault(key, Storage(kind, numel))
        if (storage.kind, storage.numel) != (kind, numel):
            raise UnpicklingError('it has two sizes for the same data')
        return storage


def plain_copy(value, leaf, levels=MOST_LEVELS, counter=None):
    """A copy of a tree in plain dicts, lists, tuples, numbers, strings and None; a Namespace becomes a dict.

    Args:
        leaf: makes of anything else what takes its place, or raises.
    Raises:
        UnpicklingError: too many values or levels, a list that holds itself, a key that is no string and no number.
    """
    counter = counter or itertools.count()
    if next(counter) == MOST_VALUES or not levels:
        raise UnpicklingError('it holds too many values, or values within values')
    if value is None or type(value) in (str, int, float, bool):
        return value
    value = vars(value) if type(value) is argparse.Namespace else value
    if isinstance(value, dict):             # not by its attributes, which a file can set on an OrderedDict
        if not all(type(key) in KEYS for key in dict.keys(value)):
            raise UnpicklingError('it holds a dict with a key that is no string and no number')
        return {key: plain_copy(item, leaf, levels - 1, counter) for key, item in dict.items(value)}
    if isinstance(value, (list, tuple)):
        kind = list if isinstance(value, list) else tuple
        return kind(plain_copy(item, leaf, levels - 1, counter) for item in value)
    return str(value) if isinstance(value, torch.device) else leaf(value)
