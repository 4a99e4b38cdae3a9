"""Safetensors files: a JSON header of names, types, shapes and places, then the tensors' bytes; nothing in them runs.

The PyTorch part of the format's own library does not load under torch 1.5 and 1.8 (it names the device `meta`), and the
format is small. Here it is read more strictly: no byte may belong to two tensors or to none, no name may come twice.
Format: https://huggingface.co/docs/safetensors
"""
import json
import struct

import numpy as np
import torch

MOST_HEADER = 2 ** 24       # bytes, of about 100000 tensors
MOST_DIMENSIONS = 32        # that numpy knows
KINDS = {'F64': '<f8', 'F32': '<f4', 'F16': '<f2', 'BF16': '<u2', 'I64': '<i8', 'I32': '<i4', 'I16': '<i2', 'I8': 'i1',
         'U8': 'u1', 'BOOL': 'u1'}
CODES = {torch.float64: 'F64', torch.float32: 'F32', torch.float16: 'F16', torch.bfloat16: 'BF16', torch.int64: 'I64',
         torch.int32: 'I32', torch.int16: 'I16', torch.int8: 'I8', torch.uint8: 'U8', torch.bool: 'BOOL'}


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
        ValueError: the file is damaged or not of this format.
    """
    length = struct.unpack('<Q', file.read(8).ljust(8, b'\xff'))[0]
    if length > min(MOST_HEADER, size - 8):
        raise ValueError('its header is cut off or too long')
    header = json.loads(file.read(length).decode('utf-8'), object_pairs_hook=_once)
    if type(header) is not dict:
        raise ValueError('its header is no JSON object')
    metadata = header.pop('__metadata__', {})
    if type(metadata) is not dict or not all(type(text) is str for text in metadata.values()):
        raise ValueError('its metadata are no strings')
    places = sorted((*_place(entry), name, entry) for name, entry in header.items())
    position = 0
    for begin, end, name, _ in places:
        if begin != position:
            raise ValueError('the data of {!r} do not follow on those before'.format(name))
        position = end
    if position != size - 8 - length:
        raise ValueError('it is cut off or has something behind its end')
    return {name: _tensor(file, end - begin, entry) for begin, end, name, entry in places}, metadata


def _once(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError('a name comes twice')
    return found


def _is_counts(values):
    return type(values) is list and all(type(value) is int and 0 <= value < 2 ** 63 for value in values)


def _place(entry):
    """(begin, end) of an entry of the header, whose type and shape must need just that."""
    if type(entry) is not dict or entry.get('dtype') not in KINDS or not _is_counts(entry.get('shape')) \
            or not _is_counts(entry.get('data_offsets')) or len(entry['data_offsets']) != 2:
        raise ValueError('it holds a tensor of unknown type, shape or place')
    if len(entry['shape']) > MOST_DIMENSIONS:
        raise ValueError('it holds a tensor of {} dimensions'.format(len(entry['shape'])))
    count, (begin, end) = 1, entry['data_offsets']
    for side in entry['shape']:
        count *= side
    if end - begin != count * np.dtype(KINDS[entry['dtype']]).itemsize:
        raise ValueError('the size of a tensor is not that of its data')
    return begin, end


def _tensor(file, length, entry):
    data = bytearray(length)
    if file.readinto(data) != length:
        raise ValueError('it is cut off')
    kind = np.dtype(KINDS[entry['dtype']])
    values = np.frombuffer(data, kind).astype(kind.newbyteorder('='), copy=False)
    if entry['dtype'] == 'BF16':            # the upper half of a float32; numpy has no such type
        tensor = torch.from_numpy((values.astype(np.uint32) << 16).view(np.float32)).to(torch.bfloat16)
    else:
        tensor = torch.from_numpy(values != 0 if entry['dtype'] == 'BOOL' else values)
    return tensor.reshape(entry['shape'])


def write(sink, tensors, metadata=None):
    """Write tensors to a binary file, those of the largest type first, so that each is aligned.

    Args:
        tensors: dict of dense tensors by name; metadata: dict of strings by name.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, position = {'__metadata__': {'format': 'pt', **(metadata or {})}}, 0
    for name in order:
        tensor = tensors[name]
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {'dtype': CODES[tensor.dtype], 'shape': list(tensor.shape), 'data_offsets': [position, end]}
        position = end
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    sink.write(struct.pack('<Q', len(text)) + text)
    for name in order:
        sink.write(_bytes(tensors[name].detach().cpu().contiguous()))


def _bytes(tensor):
    if tensor.dtype == torch.bfloat16:
        values = tensor.float().numpy().view(np.uint32) >> 16
    else:
        values = tensor.numpy()
    return values.astype(KINDS[CODES[tensor.dtype]], copy=False).tobytes()
