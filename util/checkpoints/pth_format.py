"""The two formats of torch.save, zip and legacy, read without torch.load and without executing their content.

torch.load trusts files: it skips checksums, allocates any size that a file claims, runs TorchScript and unpacks tar
archives, and only PyTorch 2.x has `weights_only`. Here a pickle of limited size can call NAMES only, which make plain
values, and stubs for tensors. Those become tensors from bytes whose number and checksum (zip format only) are right.
"""
import io
import pickle
import pickletools
import zipfile
from pickle import UnpicklingError
from typing import Any, BinaryIO, Callable, Dict, Tuple

import numpy as np
import torch

from util.checkpoints.containers import SAVE_WEIGHTS

MAGIC_NUMBER = 0x1950a86a20f9469cfc6c       # legacy format, before zip archives
PROTOCOL = 1001
MOST_PICKLES = 2 ** 24          # bytes; ViT-H with optimizer state takes 2 ** 18
MOST_OPERATIONS = 2 ** 20       # and 2 ** 16
MOST_TUPLES = 2 ** 15           # limits nesting, since hash() of a tuple recurses
MOST_DIMENSIONS = 64            # limit of torch
# numpy's by the names of safetensors; BF16, which numpy lacks, is the upper half of a float32.
DTYPES = {'F64': 'f8', 'F32': 'f4', 'F16': 'f2', 'BF16': 'u2', 'I64': 'i8', 'I32': 'i4', 'I16': 'i2', 'I8': 'i1',
          'U8': 'u1', 'BOOL': 'u1'}
STORAGES = {'DoubleStorage': 'F64', 'FloatStorage': 'F32', 'HalfStorage': 'F16', 'BFloat16Storage': 'BF16',
            'LongStorage': 'I64', 'IntStorage': 'I32', 'ShortStorage': 'I16', 'CharStorage': 'I8', 'ByteStorage': 'U8',
            'BoolStorage': 'BOOL'}


def elements(dtype: str, data: bytearray) -> torch.Tensor:
    """1-D tensor of the little-endian values in `data`, of one of DTYPES."""
    values = np.frombuffer(data, DTYPES[dtype])
    if dtype == 'BF16':
        return torch.from_numpy((values.astype(np.uint32) << 16).view(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(values != 0 if dtype == 'BOOL' else values)


def parse(file: BinaryIO, size: int) -> Tuple[Any, Callable[[Any], torch.Tensor]]:
    """(content of a checkpoint of `size` bytes, function that converts the stubs in it to tensors while it is open).

    Raises UnpicklingError or another error if it is damaged, or holds more than tensors and plain values.
    """
    start = file.read(4)
    file.seek(0)
    if start == b'PK\x03\x04':
        return _parse_zip(file, size)
    if start[:1] == b'\x80':
        return _parse_legacy(file, size)
    raise UnpicklingError('truncated' if len(start) < 4 else 'not written by torch.save')


def _parse_zip(file: BinaryIO, size: int) -> Tuple[Any, Callable]:
    archive = zipfile.ZipFile(file)
    records = {record.filename.split('/', 1)[-1]: record for record in archive.infolist()}
    if 'data.pkl' not in records:
        raise UnpicklingError('a zip archive not written by torch.save')
    sizes = [record.file_size for record in records.values()]
    if any(record.compress_type for record in records.values()) or sum(sizes) > size:
        raise UnpicklingError('records are compressed or overlap')
    if 'byteorder' in records and archive.read(records['byteorder']) != b'little':
        raise UnpicklingError('written in the other byte order')
    reader = Reader(io.BytesIO(archive.open(records['data.pkl']).read(MOST_PICKLES)))
    return reader.load(), TensorReader(reader.storages, lambda key: archive.read(records['data/' + key]))


def _parse_legacy(file: BinaryIO, size: int) -> Tuple[Any, Callable]:
    """Consecutive pickles, then the number of elements and the data of consecutive storages."""
    pickles = io.BytesIO(file.read(MOST_PICKLES))
    magic_number, protocol, machine = (Reader(pickles).load() for _ in range(3))
    if (magic_number, protocol) != (MAGIC_NUMBER, PROTOCOL):
        raise UnpicklingError('a pickle not written by torch.save')
    if not machine['little_endian']:
        raise UnpicklingError('written in the other byte order')
    reader = Reader(pickles)
    content, keys, places = reader.load(), Reader(pickles).load(), {}
    position = pickles.tell()
    for key in keys:
        dtype, numel = reader.storages[key]
        places[key] = position, 8 + numel * np.dtype(DTYPES[dtype]).itemsize
        position += places[key][1]
    if position != size:
        raise UnpicklingError('truncated' if position > size else 'trailing data')

    def read(key):
        file.seek(places[key][0])
        data = file.read(places[key][1])
        if int.from_bytes(data[:8], 'little') != reader.storages[key][1]:
            raise UnpicklingError('the data of a tensor is of another size')
        return data[8:]
    return content, TensorReader(reader.storages, read)


class Items(dict):
    """Stub for collections.OrderedDict without its attributes; `__setstate__` of the class itself fails."""

    def __setstate__(self, state):
        pass


class Attributes(dict):
    """Stub for argparse.Namespace."""

    def __setstate__(self, state):
        self.update(state)


class SavedTensor:
    """Stub for torch._utils._rebuild_tensor and its _v2: its arguments, unchecked."""

    def __init__(self, key: str, offset: int, size: tuple, stride: tuple, *unused: Any):
        self.arguments = key, offset, size, stride

    def __setstate__(self, state):
        raise UnpicklingError('attributes set on a tensor')


class First:
    """Stub for a function: returns its first argument, uncopied, since a file can ask for any number of copies."""

    def __call__(self, value: Any, *unused: Any) -> Any:
        return value

    def __setstate__(self, state):
        raise UnpicklingError('attributes set on a function')


NAMES = {('torch._utils', '_rebuild_tensor'): SavedTensor, ('torch._utils', '_rebuild_tensor_v2'): SavedTensor,
         ('torch._utils', '_rebuild_parameter'): First(), ('torch', 'Size'): First(),
         ('torch', 'device'): torch.device,
         ('collections', 'OrderedDict'): Items, ('argparse', 'Namespace'): Attributes,
         **{('torch', name): dtype for name, dtype in STORAGES.items()}}


class Reader(pickle.Unpickler):
    """Unpickler with an allow-list; `storages` are the (dtype, number of elements) of those referred to, by key.

    Raises UnpicklingError for a pickle made to exhaust memory or the stack.
    """

    def __init__(self, file: BinaryIO):
        start, tuples = file.tell(), 0
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            tuples += opcode.name.startswith('TUPLE')
            # The memo takes memory by the largest index.
            if count > MOST_OPERATIONS or tuples > MOST_TUPLES or 'PUT' in opcode.name and argument > MOST_OPERATIONS:
                raise UnpicklingError('more values than a checkpoint has')
        file.seek(start)
        super().__init__(file, encoding='utf-8')
        self.storages: Dict[str, Tuple[str, int]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NAMES:
            raise UnpicklingError('{}.{} is neither a tensor nor a plain value; {}'.format(module, name, SAVE_WEIGHTS))
        return NAMES[module, name]

    def persistent_load(self, saved_id: Tuple) -> str:
        """Key of a storage ('storage', type, key, device, elements); older files append None."""
        word, dtype, key, _, numel, *view = saved_id
        if word != 'storage' or dtype not in DTYPES or view not in ([], [None]) or not _are_counts(numel):
            raise UnpicklingError('an invalid storage reference')
        if self.storages.setdefault(key, (dtype, numel)) != (dtype, numel):
            raise UnpicklingError('two sizes for the same storage')
        return key


class TensorReader:
    """Converts a SavedTensor to a tensor; those of the same storage share their memory, as when they were saved."""

    def __init__(self, storages: Dict[str, Tuple[str, int]], read: Callable[[str], bytes]):
        self._storages, self._read, self._loaded = storages, read, {}

    def __call__(self, value: Any) -> torch.Tensor:
        if type(value) is not SavedTensor:
            raise UnpicklingError('{} is neither a tensor nor a plain value'.format(type(value).__name__))
        key, offset, size, stride = value.arguments
        dtype, numel = self._storages[key]
        if not len(size) == len(stride) <= MOST_DIMENSIONS or not _are_counts(offset, *size, *stride):
            raise UnpicklingError('a tensor with an invalid shape')
        count, last = 1, offset
        for length, step in zip(size, stride):
            count *= length
            last += (length - 1) * step
        if offset > numel or count > numel or (count and last >= numel):
            raise UnpicklingError('a tensor larger than its data')
        if key not in self._loaded:
            self._loaded[key] = elements(dtype, bytearray(self._read(key)))
            if len(self._loaded[key]) != numel:
                raise UnpicklingError('the data of a tensor is of another size')
        return self._loaded[key].as_strided(size, stride, offset)


def _are_counts(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value < 2 ** 63 for value in values)
