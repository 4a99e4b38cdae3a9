"""Safetensors files, by the format's own library: a JSON header, then the tensors' bytes; nothing in them runs.

The library's PyTorch part does not load under torch 1.5 and 1.8 (it names the device `meta`), so that bytes and tensors
are converted here.
"""
import json
import struct

import numpy as np
import safetensors.numpy
import torch

MOST_HEADER = 2 ** 24       # bytes, of about 100000 tensors
KINDS = {'F64': 'f8', 'F32': 'f4', 'F16': 'f2', 'BF16': 'u2', 'I64': 'i8', 'I32': 'i4', 'I16': 'i2', 'I8': 'i1',
         'U8': 'u1', 'BOOL': 'u1'}              # numpy's, which has no BF16, the upper half of a float32


def begins(head):
    """True where a file with the first bytes `head`, 9 or more, can be of this format."""
    return head[8:9] == b'{' and struct.unpack('<Q', head[:8])[0] <= MOST_HEADER


def read(file, size):
    """All tensors of a file.

    Args:
        file: binary, at its beginning; size: of it in bytes.
    Returns:
        dict of tensors by name, dict of the strings under __metadata__.
    Raises:
        SafetensorError, ValueError, KeyError: the file is damaged, or holds a type that is not one of KINDS.
    """
    data = file.read(size)
    found = safetensors.deserialize(data)
    header = json.loads(data[8:8 + struct.unpack('<Q', data[:8])[0]].decode(), object_pairs_hook=_once)
    return {name: _tensor(**entry) for name, entry in found}, header.get('__metadata__', {})


def _once(pairs):
    # Of a name that comes twice, the library takes the last.
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError('a name comes twice')
    return found


def _tensor(dtype, shape, data):
    values = np.frombuffer(data, KINDS[dtype])
    if dtype == 'BF16':
        return torch.from_numpy((values.astype(np.uint32) << 16).view(np.float32).reshape(shape)).to(torch.bfloat16)
    return torch.from_numpy((values != 0 if dtype == 'BOOL' else values).reshape(shape))


def write(sink, tensors, metadata=None):
    """Write tensors to a binary file.

    Args:
        tensors: dict of dense tensors by name, of types that numpy has; metadata: dict of strings by name.
    """
    values = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}
    sink.write(safetensors.numpy.save(values, {'format': 'pt', **(metadata or {})}))
