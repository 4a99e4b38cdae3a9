"""The two formats of torch.save, checked as a whole before torch.load reads a file.

torch's readers trust a file: they skip checksums, reserve whatever memory it asks for, take data from beyond a record's
end, run TorchScript and unpack tar archives. A pickle acts on a program through the objects that its names stand for,
and by setting attributes. So its operations are checked by pickletools, then it is read once with stand-ins, which make
no tensor. torch.load follows: by `weights_only` or, where that does not exist, with this module as its `pickle_module`.
"""
import io
import pickle
import pickletools
import struct
import sys
import zipfile
from pickle import UnpicklingError

MOST_DIRECTORY = 2 ** 23        # bytes of a zip archive's directory, about 100000 records
MOST_PICKLES = 2 ** 24          # bytes; ViT-H with its optimizer's state takes 2 ** 18
MAGIC_NUMBER = 0x1950a86a20f9469cfc6c       # of the format before zip archives
PROTOCOL = 1001
# What torch.save writes, and all that `weights_only` reads but for sets.
OPCODES = frozenset((
    'PROTO', 'STOP', 'MARK', 'NONE', 'NEWTRUE', 'NEWFALSE', 'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT',
    'BINUNICODE', 'SHORT_BINSTRING', 'EMPTY_TUPLE', 'TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3', 'EMPTY_LIST', 'APPEND',
    'APPENDS', 'EMPTY_DICT', 'SETITEM', 'SETITEMS', 'GLOBAL', 'REDUCE', 'NEWOBJ', 'BUILD', 'BINPERSID', 'BINGET',
    'LONG_BINGET', 'BINPUT', 'LONG_BINPUT'))
MOST_OPERATIONS = 2 ** 20       # ViT-H with its optimizer's state takes 2 ** 16
MOST_TUPLES = 2 ** 15           # so that they nest no deeper than Python's hash of a tuple can follow
LONGEST_LINE = 2 ** 10          # bytes, as a number in decimals may have millions
MOST_DIMENSIONS = 64            # that torch knows
ITEM_SIZES = {'DoubleStorage': 8, 'FloatStorage': 4, 'HalfStorage': 2, 'BFloat16Storage': 2, 'LongStorage': 8,
              'IntStorage': 4, 'ShortStorage': 2, 'CharStorage': 1, 'ByteStorage': 1, 'BoolStorage': 1}     # bytes


def inspect(file, size):
    """Check a checkpoint: its structure, its checksums where it has any, and that its data is all there.

    Args:
        file: binary, at its beginning; left anywhere.
        size: of the file in bytes.
    Raises:
        UnpicklingError or another error: it is damaged, or not what torch.save writes of tensors and plain values.
    """
    start = file.read(4)
    file.seek(0)
    if start == b'PK\x03\x04':
        _inspect_zip(file, size)
    elif start[:1] == b'\x80':
        _inspect_legacy(file, size)
    else:
        raise UnpicklingError('it is cut off' if len(start) < 4 else 'not a file of torch.save')


def _inspect_zip(file, size):
    count = _check_end(file, size)
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        # torch finds names without regard to upper and lower case
        names = {record.orig_filename.lower().split('/', 1)[-1]: record for record in records}
        if not len(names) == len(records) == count or 'data.pkl' not in names:
            raise UnpicklingError('a zip archive that torch.save did not write')
        if any(name == 'constants.pkl' or name.startswith('code/') for name in names):
            raise UnpicklingError('a TorchScript archive, which holds a program; only tensors are loaded')
        for record in records:
            if record.external_attr & 0x10:         # which torch.load would return as uninitialised memory
                raise UnpicklingError('a record of it is marked as a folder')
            file.seek(record.header_offset + 6)
            if record.compress_type or record.compress_size != record.file_size or file.read(4) != struct.pack(
                    '<2H', record.flag_bits & ~1, zipfile.ZIP_STORED):
                raise UnpicklingError('its records are compressed or encrypted')
        if sum(record.file_size for record in records) > size:
            raise UnpicklingError('its records overlap')
        damaged = archive.testzip()
        if damaged:
            raise UnpicklingError('the checksum of {} is wrong'.format(damaged.split('/', 1)[-1]))
        if 'byteorder' in names and archive.read(names['byteorder']) != sys.byteorder.encode():
            raise UnpicklingError('it was written on a machine of the other byte order')
        with archive.open(names['data.pkl']) as pickled:
            _, storages = _inspected(Content(pickled.read(MOST_PICKLES)))
    for key, (numel, item_size) in storages.items():
        record = names.get('data/' + key.lower())
        if record is None or record.file_size != numel * item_size:
            raise UnpicklingError('the data of a tensor is missing or of another size')


def _check_end(file, size):
    """Number of records by the end of a zip archive, which must be that of the file: else torch and zipfile could find
    two archives in it."""
    file.seek(max(0, size - 98))
    tail = file.read(98).rjust(98, b'\0')
    count, length, start, comment = struct.unpack('<H2LH', tail[86:])
    end = size - 22
    if tail[56:60] == b'PK\x06\x07':
        end = size - 98
        count, length, start = struct.unpack('<3Q', tail[32:56])
        if tail[:4] != b'PK\x06\x06' or struct.unpack('<Q', tail[64:72]) != (end,):
            raise UnpicklingError('a damaged zip archive, its end contradicts itself')
    if tail[76:80] != b'PK\x05\x06' or comment or start + length != end or length > MOST_DIRECTORY:
        raise UnpicklingError('a zip archive that is cut off or has something behind its end')
    return count


def _inspect_legacy(file, size):
    """The format before zip archives: pickles one after the other, then the data of one storage after the other."""
    content = Content(file.read(MOST_PICKLES))
    (magic_number, _), (protocol, _), (machine, _) = (_inspected(content) for _ in range(3))
    if (magic_number, protocol) != (MAGIC_NUMBER, PROTOCOL) or type(machine) is not dict:
        raise UnpicklingError('a pickle that torch.save did not write')
    if machine.get('little_endian') is not (sys.byteorder == 'little'):
        raise UnpicklingError('it was written on a machine of the other byte order')
    (_, storages), (keys, _) = _inspected(content), _inspected(content)
    if type(keys) is not list or sorted(keys) != sorted(storages):
        raise UnpicklingError('it does not list its own data')
    position = content.tell()
    for numel, item_size in map(storages.get, keys):
        file.seek(position)
        if file.read(8) != numel.to_bytes(8, sys.byteorder):
            raise UnpicklingError('the data of a tensor is missing or of another size')
        position += 8 + numel * item_size
    if position != size:
        raise UnpicklingError('it is cut off' if position > size else 'it has something behind its end')


class Content(io.BytesIO):
    """The bytes of pickles, in lines of LONGEST_LINE at most."""

    def readline(self, size=-1):
        return super().readline(LONGEST_LINE)


def _inspected(content):
    """(value, storages) of the next pickle, see Inspector; its operations are checked first.

    Raises:
        UnpicklingError or another error: it could run code or fill the memory, or it is damaged.
    """
    begin, tuples = content.tell(), 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name not in OPCODES:
            raise UnpicklingError('it needs {}, which no plain value does'.format(opcode.name))
        tuples += opcode.name.startswith('TUPLE')
        if count > MOST_OPERATIONS or tuples > MOST_TUPLES:
            raise UnpicklingError('it holds too many values')
        if opcode.name == 'LONG_BINPUT' and argument > MOST_OPERATIONS:
            raise UnpicklingError('it reserves memory for values that it does not have')
    content.seek(begin)
    inspector = Inspector(content, encoding='utf-8')
    return inspector.load(), inspector.storages


class Function:
    """Stands for a function or class that a pickle may call, and whose attributes it may not set."""
    __slots__ = ('_function',)

    def __init__(self, function):
        self._function = function

    def __call__(self, *arguments):
        return self._function(*arguments)

    def __setstate__(self, state):
        raise UnpicklingError('it sets attributes of a function')


class Attributes(dict):
    """Stands for collections.OrderedDict and argparse.Namespace; on the class itself `__setstate__` fails."""
    __slots__ = ()

    def __setstate__(self, state):
        self.update(state)


def _check_tensor(numel, offset, size, stride, requires_grad=False, hooks=()):
    """Stands for torch._utils._rebuild_tensor and _rebuild_tensor_v2: is the tensor within `numel` elements?"""
    if type(requires_grad) is not bool or hooks:
        raise UnpicklingError('it holds a tensor with hooks')
    if not len(size) == len(stride) <= MOST_DIMENSIONS or not _are_counts(numel, offset, *size, *stride):
        raise UnpicklingError('it holds a tensor whose shape is no list of numbers')
    elements, last = 1, offset
    for length, step in zip(size, stride):
        elements *= length
        last += (length - 1) * step
    if offset > numel or elements > numel or (elements and last >= numel):
        raise UnpicklingError('it holds a tensor that is larger than its data')


def _are_counts(*values):
    return all(type(value) is int and 0 <= value < 2 ** 63 for value in values)


TENSOR, OTHER = Function(_check_tensor), Function(lambda *arguments: None)
NAMES = {('torch._utils', '_rebuild_tensor'): TENSOR, ('torch._utils', '_rebuild_tensor_v2'): TENSOR,
         ('torch._utils', '_rebuild_parameter'): OTHER, ('torch', 'Size'): OTHER, ('torch', 'device'): OTHER,
         ('collections', 'OrderedDict'): Attributes, ('argparse', 'Namespace'): Attributes,
         **{('torch', name): size for name, size in ITEM_SIZES.items()}}


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
    """Reads a pickle with stand-ins: a storage is its number of elements, its type the bytes of each.

    `storages` is {key: (elements, bytes of each)}.
    """

    def __init__(self, content, **options):
        super().__init__(content, **options)
        self.storages = {}

    def find_class(self, module, name):
        super().find_class(module, name)
        return NAMES[module, name]

    def persistent_load(self, saved_id):
        """The storage of an id ('storage', type, key, device, elements), in older files with None at the end."""
        word, item_size, key, device, numel, *more = saved_id
        if word != 'storage' or not type(key) is type(device) is str or more not in ([], [None]):
            raise UnpicklingError('it refers to what is no storage')
        if not _are_counts(item_size, numel):
            raise UnpicklingError('it refers to a storage of unknown type or size')
        if self.storages.setdefault(key, (numel, item_size)) != (numel, item_size):
            raise UnpicklingError('it has two sizes for the same data')
        return numel
