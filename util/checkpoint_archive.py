"""The two formats of torch.save, checked as a whole before torch.load sees a file.

torch's own readers trust a file: they skip checksums, reserve whatever memory it asks for, take data from beyond a
record's end, run TorchScript and unpack tar archives. What passes here holds none of that.
"""
import os
import struct
import sys
import zipfile

from util.checkpoint_pickle import Content, Inspector, Tensor, UnpicklingError, plain_copy, scan

MOST_DIRECTORY = 2 ** 23        # bytes of a zip archive's directory, about 100000 records
MOST_PICKLES = 2 ** 24          # bytes; ViT-H with its optimizer's state takes 2 ** 18
MAGIC_NUMBER = 0x1950a86a20f9469cfc6c       # of the format before zip archives
PROTOCOL = 1001


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


def check_fits(size):
    """Raise UnpicklingError where so many bytes are more than this machine's memory."""
    if size > os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'):
        raise UnpicklingError('it has {:.0f} GB, more than the memory of this machine'.format(size / 1e9))


def _inspect_zip(file, size):
    count = _check_end(file, size)
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        # torch finds names without regard to upper and lower case
        names = {record.orig_filename.lower().split('/', 1)[-1]: record for record in records}
        folders = {record.orig_filename.split('/')[0] for record in records}
        if not len(names) == len(records) == count or len(folders) != 1 or 'data.pkl' not in names:
            raise UnpicklingError('a zip archive that torch.save did not write')
        if any(name == 'constants.pkl' or name.startswith('code/') for name in names):
            raise UnpicklingError('a TorchScript archive, which holds a program; only tensors are loaded')
        for record in records:
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
    for key, storage in storages.items():
        if 'data/' + key.lower() not in names or names['data/' + key.lower()].file_size != storage.bytes:
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


def _inspected(content):
    """(value with stand-ins for tensors, its storages by key) of the next pickle, which holds plain values else."""
    begin = content.tell()
    scan(content)
    end = content.tell()
    content.seek(begin)
    inspector = Inspector(content)
    value = plain_copy(inspector.load(), _stand_in)
    content.seek(end)
    return value, inspector.storages


def _stand_in(value):
    if type(value) is not Tensor:
        raise UnpicklingError('it holds what is neither a tensor nor a plain value')
    return value


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
    for key in keys:
        file.seek(position)
        if file.read(8) != storages[key].numel.to_bytes(8, sys.byteorder):
            raise UnpicklingError('the data of a tensor is missing or of another size')
        position += 8 + storages[key].bytes
    if position != size:
        raise UnpicklingError('it is cut off' if position > size else 'it has something behind its end')
