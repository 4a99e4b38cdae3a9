"""Validation of the two torch.save formats, zip and legacy, before torch.load reads a file.

torch.load trusts files: it skips checksums, allocates any size that a file claims, reads past the end of a record, runs
TorchScript and unpacks tar archives. A pickle can call what its globals refer to and set attributes. So its opcodes are
checked with pickletools, then it is unpickled once with stubs that create no tensors. torch.load then reads the file
with `weights_only`, or with this module as `pickle_module` where that does not exist.
"""
import io
import pickle
import pickletools
import struct
import sys
import zipfile
from pickle import UnpicklingError
from typing import Any, BinaryIO, Callable, Dict, Tuple

from util.checkpoints.containers import SAVE_WEIGHTS

MOST_DIRECTORY = 2 ** 23        # bytes of the central directory, about 100000 records
MOST_PICKLES = 2 ** 24          # bytes; ViT-H with optimizer state takes 2 ** 18
MAGIC_NUMBER = 0x1950a86a20f9469cfc6c       # legacy format, before zip archives
PROTOCOL = 1001
# Written by torch.save; what `weights_only` allows, except sets.
OPCODES = frozenset((
    'PROTO', 'STOP', 'MARK', 'NONE', 'NEWTRUE', 'NEWFALSE', 'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT',
    'BINUNICODE', 'SHORT_BINSTRING', 'EMPTY_TUPLE', 'TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3', 'EMPTY_LIST', 'APPEND',
    'APPENDS', 'EMPTY_DICT', 'SETITEM', 'SETITEMS', 'GLOBAL', 'REDUCE', 'NEWOBJ', 'BUILD', 'BINPERSID', 'BINGET',
    'LONG_BINGET', 'BINPUT', 'LONG_BINPUT'))
MOST_OPERATIONS = 2 ** 20       # ViT-H with optimizer state takes 2 ** 16
MOST_TUPLES = 2 ** 15           # limits nesting, since hash() of a tuple recurses
LONGEST_LINE = 2 ** 10          # bytes; limits decimal numbers
MOST_DIMENSIONS = 64            # limit of torch
ITEM_SIZES = {'DoubleStorage': 8, 'FloatStorage': 4, 'HalfStorage': 2, 'BFloat16Storage': 2, 'LongStorage': 8,
              'IntStorage': 4, 'ShortStorage': 2, 'CharStorage': 1, 'ByteStorage': 1, 'BoolStorage': 1}     # bytes

Storages = Dict[str, Tuple[int, int]]           # key -> (elements, bytes per element)


def inspect(file: BinaryIO, size: int) -> None:
    """Validate structure, checksums (zip format only) and completeness of a checkpoint of `size` bytes.

    Raises UnpicklingError or another error if it is damaged, or holds more than tensors and plain values.
    """
    start = file.read(4)
    file.seek(0)
    if start == b'PK\x03\x04':
        _inspect_zip(file, size)
    elif start[:1] == b'\x80':
        _inspect_legacy(file, size)
    else:
        raise UnpicklingError('truncated' if len(start) < 4 else 'not written by torch.save')


def _inspect_zip(file: BinaryIO, size: int) -> None:
    count = _check_end(file, size)
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        # torch looks names up case-insensitively
        names = {record.orig_filename.lower().split('/', 1)[-1]: record for record in records}
        if not len(names) == len(records) == count or 'data.pkl' not in names:
            raise UnpicklingError('a zip archive not written by torch.save')
        if any(name == 'constants.pkl' or name.startswith('code/') for name in names):
            raise UnpicklingError('a TorchScript archive, which holds code')
        for record in records:
            if record.external_attr & 0x10:         # directory: torch.load would return uninitialised memory
                raise UnpicklingError('a record is marked as a directory')
            file.seek(record.header_offset + 6)
            if record.compress_type or record.compress_size != record.file_size or file.read(4) != struct.pack(
                    '<2H', record.flag_bits & ~1, zipfile.ZIP_STORED):
                raise UnpicklingError('records are compressed or encrypted')
        if sum(record.file_size for record in records) > size:
            raise UnpicklingError('records overlap')
        damaged = archive.testzip()
        if damaged:
            raise UnpicklingError('wrong checksum of {}'.format(damaged.split('/', 1)[-1]))
        if 'byteorder' in names and archive.read(names['byteorder']) != sys.byteorder.encode():
            raise UnpicklingError('written on a machine of the other byte order')
        with archive.open(names['data.pkl']) as pickled:
            _, storages = _inspected(Content(pickled.read(MOST_PICKLES)))
    for key, (numel, item_size) in storages.items():
        record = names.get('data/' + key.lower())
        if record is None or record.file_size != numel * item_size:
            raise UnpicklingError('the data of a tensor is missing or of another size')


def _check_end(file: BinaryIO, size: int) -> int:
    """Number of records in the end record, which must end the file: else torch and zipfile could see two archives."""
    file.seek(max(0, size - 98))
    tail = file.read(98).rjust(98, b'\0')
    count, length, start, comment = struct.unpack('<H2LH', tail[86:])
    end = size - 22
    if tail[56:60] == b'PK\x06\x07':
        end = size - 98
        count, length, start = struct.unpack('<3Q', tail[32:56])
        if tail[:4] != b'PK\x06\x06' or struct.unpack('<Q', tail[64:72]) != (end,):
            raise UnpicklingError('a damaged zip archive with an inconsistent end record')
    if tail[76:80] != b'PK\x05\x06' or comment or start + length != end or length > MOST_DIRECTORY:
        raise UnpicklingError('a zip archive that is truncated or has trailing data')
    return count


def _inspect_legacy(file: BinaryIO, size: int) -> None:
    """Validate the legacy format: consecutive pickles, then the data of consecutive storages."""
    content = Content(file.read(MOST_PICKLES))
    (magic_number, _), (protocol, _), (machine, _) = (_inspected(content) for _ in range(3))
    if (magic_number, protocol) != (MAGIC_NUMBER, PROTOCOL) or type(machine) is not dict:
        raise UnpicklingError('a pickle not written by torch.save')
    if machine.get('little_endian') is not (sys.byteorder == 'little'):
        raise UnpicklingError('written on a machine of the other byte order')
    (_, storages), (keys, _) = _inspected(content), _inspected(content)
    if type(keys) is not list or sorted(keys) != sorted(storages):
        raise UnpicklingError('storage keys do not match the pickle')
    position = content.tell()
    for numel, item_size in map(storages.get, keys):
        file.seek(position)
        if file.read(8) != numel.to_bytes(8, sys.byteorder):
            raise UnpicklingError('the data of a tensor is missing or of another size')
        position += 8 + numel * item_size
    if position != size:
        raise UnpicklingError('truncated' if position > size else 'trailing data')


class Content(io.BytesIO):
    """Pickled bytes, with lines limited to LONGEST_LINE."""

    def readline(self, size: int = -1) -> bytes:
        return super().readline(LONGEST_LINE)


def _inspected(content: Content) -> Tuple[Any, Storages]:
    """Load the next pickle by Inspector, or raise any error if it could run code or exhaust memory, or is damaged."""
    begin, tuples = content.tell(), 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name not in OPCODES:
            raise UnpicklingError('opcode {}, which no plain value needs; {}'.format(opcode.name, SAVE_WEIGHTS))
        tuples += opcode.name.startswith('TUPLE')
        if count > MOST_OPERATIONS or tuples > MOST_TUPLES:
            raise UnpicklingError('too many values')
        if opcode.name == 'LONG_BINPUT' and argument > MOST_OPERATIONS:
            raise UnpicklingError('a memo index that is too large')
    content.seek(begin)
    inspector = Inspector(content, encoding='utf-8')
    return inspector.load(), inspector.storages


class Function:
    """Stub for a function or class that a pickle may call but not change."""
    __slots__ = ('_function',)

    def __init__(self, function: Callable):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state):
        raise UnpicklingError('attributes set on a function')


class Attributes(dict):
    """Stub for collections.OrderedDict and argparse.Namespace; `__setstate__` of the class itself fails."""
    __slots__ = ()

    def __setstate__(self, state):
        self.update(state)


def _check_tensor(numel: int, offset: int, size: Tuple, stride: Tuple, requires_grad: bool = False, hooks=()) -> None:
    """Stub for torch._utils._rebuild_tensor and its _v2: check that a tensor fits its storage of `numel` elements."""
    if type(requires_grad) is not bool or hooks:
        raise UnpicklingError('a tensor with hooks')
    if not len(size) == len(stride) <= MOST_DIMENSIONS or not _are_counts(numel, offset, *size, *stride):
        raise UnpicklingError('a tensor with an invalid shape')
    elements, last = 1, offset
    for length, step in zip(size, stride):
        elements *= length
        last += (length - 1) * step
    if offset > numel or elements > numel or (elements and last >= numel):
        raise UnpicklingError('a tensor larger than its data')


def _are_counts(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value < 2 ** 63 for value in values)


TENSOR, OTHER = Function(_check_tensor), Function(lambda *arguments: None)
NAMES = {('torch._utils', '_rebuild_tensor'): TENSOR, ('torch._utils', '_rebuild_tensor_v2'): TENSOR,
         ('torch._utils', '_rebuild_parameter'): OTHER, ('torch', 'Size'): OTHER, ('torch', 'device'): OTHER,
         ('collections', 'OrderedDict'): Attributes, ('argparse', 'Namespace'): Attributes,
         **{('torch', name): size for name, size in ITEM_SIZES.items()}}


class Unpickler(pickle.Unpickler):
    """Unpickler with an allow-list; torch.load uses it for files that passed `inspect`, and sets `persistent_load`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NAMES:
            raise UnpicklingError('{}.{} is neither a tensor nor a plain value; {}'.format(module, name, SAVE_WEIGHTS))
        return super().find_class(module, name)


def load(file: BinaryIO, **options: Any) -> Any:
    """Load the next pickle of a file; torch.load calls it as pickle_module.load."""
    return Unpickler(file, **options).load()


class Inspector(Unpickler):
    """Unpickler with stubs: a storage becomes its number of elements, a storage type its bytes per element."""

    def __init__(self, content: Content, **options: Any):
        super().__init__(content, **options)
        self.storages: Storages = {}

    def find_class(self, module: str, name: str) -> Any:
        super().find_class(module, name)
        return NAMES[module, name]

    def persistent_load(self, saved_id: Tuple) -> int:
        """Resolve a storage id ('storage', type, key, device, elements); older files append None."""
        word, item_size, key, device, numel, *more = saved_id
        if word != 'storage' or not type(key) is type(device) is str or more not in ([], [None]):
            raise UnpicklingError('an invalid storage reference')
        if not _are_counts(item_size, numel):
            raise UnpicklingError('a storage of unknown type or size')
        if self.storages.setdefault(key, (numel, item_size)) != (numel, item_size):
            raise UnpicklingError('two sizes for the same storage')
        return numel
