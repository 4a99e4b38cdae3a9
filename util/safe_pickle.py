"""A pickle reader that can run nothing: few opcodes, plain values, and only the names that its user lists.

It reads CIFAR's batches here and checkpoints in util/checkpoint_pickle.py. A pickle acts on the program through the
objects that its names stand for, so those are functions that check their arguments, and never classes whose attributes
a pickle could set. Being Python's own unpickler written in Python, it is slower than the one in C, and has no memo that
a number in the file could make fill the memory.
"""
import argparse
import collections
import pickle
import re
import struct

UnpicklingError = pickle.UnpicklingError

# What torch.save and pickle write in the protocols 2 to 4, but for sets, extension codes, numbers in decimals, and
# lengths of 8 bytes.
OPCODES = ('PROTO', 'FRAME', 'STOP', 'MARK', 'NONE', 'NEWTRUE', 'NEWFALSE', 'BININT', 'BININT1', 'BININT2', 'LONG1',
           'BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINSTRING', 'SHORT_BINSTRING', 'BINBYTES', 'SHORT_BINBYTES',
           'EMPTY_TUPLE', 'TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3', 'EMPTY_LIST', 'APPEND', 'APPENDS', 'EMPTY_DICT',
           'SETITEM', 'SETITEMS', 'GLOBAL', 'STACK_GLOBAL', 'REDUCE', 'NEWOBJ', 'BUILD', 'BINPERSID', 'BINGET',
           'LONG_BINGET', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE')
KEYS = (str, bytes, int, float, bool, type(None))       # a tuple as a key could be nested deep enough to crash its hash
DAMAGE = (ArithmeticError, LookupError, AttributeError, TypeError, AssertionError, ValueError, EOFError, RecursionError,
          struct.error)
MOST_BYTES = 2 ** 24        # of a checkpoint's pickle; that of ViT-H with its optimizer's state has 2 ** 18


class Unpickler(pickle._Unpickler):
    """Reads one pickle. `names` says what each (module, name) that it may use stands for.

    load() raises UnpicklingError, whatever is wrong with the pickle.
    """

    names = {}
    dispatch = {getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in OPCODES}

    def load(self):
        try:
            return super().load()
        except DAMAGE as error:
            raise UnpicklingError('a damaged pickle, {}'.format(type(error).__name__)) from error

    def find_class(self, module, name):
        if (module, name) not in self.names:
            raise UnpicklingError('it holds {}.{}, which is neither a tensor nor a plain value'.format(module, name))
        return self.names[module, name]

    def build(self, instance, state):
        """What `instance` becomes by the `state` that the pickle has for it."""
        if type(instance) is collections.OrderedDict:
            return instance         # without the versions of its layers that a state_dict has, which nothing here needs
        if type(instance) is argparse.Namespace and type(state) is dict and all(type(key) is str for key in state):
            vars(instance).update(state)
            return instance
        raise UnpicklingError('it sets attributes of what is no Namespace')

    def _load_build(self):
        state = self.stack.pop()
        before = self.stack[-1]
        after = self.stack[-1] = self.build(before, state)
        if after is not before:
            self.memo.update({key: after for key, value in self.memo.items() if value is before})

    def _load_newobj(self):
        arguments, found = self.stack.pop(), self.stack.pop()
        if found is not new_namespace or arguments != ():
            raise UnpicklingError('it makes an object that is no Namespace')
        self.append(argparse.Namespace())

    def _load_append(self):
        value = self.stack.pop()
        self._target((list,)).append(value)

    def _load_appends(self):
        values = self.pop_mark()
        self._target((list,)).extend(values)

    def _load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._target((dict, collections.OrderedDict)).update(pairs([(key, value)]))

    def _load_setitems(self):
        items = self.pop_mark()
        self._target((dict, collections.OrderedDict)).update(pairs(zip(items[::2], items[1::2])))

    def _target(self, types):
        if type(self.stack[-1]) not in types:
            raise UnpicklingError('it puts items into what is no list or dict')
        return self.stack[-1]

    for _name in ('BUILD', 'NEWOBJ', 'APPEND', 'APPENDS', 'SETITEM', 'SETITEMS'):
        dispatch[getattr(pickle, _name)[0]] = locals()['_load_' + _name.lower()]


def pairs(items):
    """`items` as a list of (key, value), with keys that are safe to hash."""
    items = [(key, value) for key, value in items]
    if not all(type(key) in KEYS for key, _ in items):
        raise UnpicklingError('it holds a dict with a key that is no string and no number')
    return items


def ordered_dict(items=()):
    """Stands for collections.OrderedDict."""
    if type(items) not in (list, tuple):
        raise UnpicklingError('it holds a dict that is made of no list')
    return collections.OrderedDict(pairs(items))


def new_namespace():
    """Stands for argparse.Namespace, where published checkpoints keep their flags."""
    return argparse.Namespace()


class BoundedReader:
    """The next `limit` bytes of a binary file, for an unpickler that could be told to read and build without end."""

    def __init__(self, file, limit=MOST_BYTES):
        self._file, self._left = file, limit

    def read(self, count):
        if not 0 <= count <= self._left:
            raise UnpicklingError('its pickle is too long')
        self._left -= count
        return self._file.read(count)

    def readline(self):
        line = self._file.readline(min(self._left, 2 ** 10))
        self._left -= len(line)
        return line


class _Dtype:
    """A numpy dtype before its byte order is known."""

    def __init__(self, code, align=False, copy=True):
        if type(code) is bytes:
            code = code.decode('ascii')
        if not re.fullmatch('[biuf][1248]', code):
            raise UnpicklingError('it holds an array of neither numbers nor truth values')
        self.code = code


class _Array:
    """A numpy array before its content is known."""


def _reconstruct(kind, shape, code):
    return _Array()


def _ndarray():
    raise UnpicklingError('it makes an array without content')


def _latin1_only(text, encoding):
    """How Python 2 pickles spell bytes; other codecs stay closed, since some of them run code or decompress."""
    if encoding != 'latin1':
        raise UnpicklingError('codec {!r} is not allowed'.format(encoding))
    return text.encode('latin1')


def _dtype(*arguments):
    return _Dtype(*arguments)


class _BatchUnpickler(Unpickler):
    """Reads numpy arrays of numbers too."""

    names = {('numpy', 'ndarray'): _ndarray, ('numpy', 'dtype'): _dtype, ('_codecs', 'encode'): _latin1_only,
             ('numpy.core.multiarray', '_reconstruct'): _reconstruct,
             ('numpy._core.multiarray', '_reconstruct'): _reconstruct}

    def build(self, instance, state):
        import numpy
        if type(instance) is _Dtype:
            order = state[1].decode('ascii') if type(state[1]) is bytes else state[1]
            if order not in ('<', '>', '|', '=') or state[2:5] != (None, None, None):
                raise UnpicklingError('it holds an array of records')
            return numpy.dtype(order + instance.code)
        if type(instance) is _Array:
            _, shape, dtype, by_columns, content = state
            if not isinstance(dtype, numpy.dtype) or type(content) is not bytes:
                raise UnpicklingError('it holds an array of something else than numbers')
            return numpy.frombuffer(content, dtype).reshape(shape, order='F' if by_columns else 'C')
        return super().build(instance, state)


def load(file, **options):
    """Plain values and arrays of numbers from a pickle; takes `encoding` and `errors`, as pickle.load does.

    Raises:
        UnpicklingError: the pickle is damaged or holds anything else.
    """
    return _BatchUnpickler(file, **options).load()
