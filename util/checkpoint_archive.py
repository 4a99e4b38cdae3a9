"""The two formats of torch.save, checked byte by byte before torch.load sees a file.

torch's own readers trust a file: they skip checksums, reserve whatever memory it asks for, take data from beyond a
record's end, run TorchScript and unpack tar archives. What passes here holds none of that.
"""
import os
import struct
import sys
import zipfile
import zlib

from util.checkpoint_pickle import Inspector, stand_in
from util.plain_values import plain_copy
from util.safe_pickle import UnpicklingError

MOST_DIRECTORY = 2 ** 23        # bytes of a zip archive's directory, about 100000 records
CHUNK = 2 ** 20                 # bytes that are read at once
MAGIC_NUMBER = 0x1950a86a20f9469cfc6c       # of the format before zip archives
PROTOCOL = 1001


def inspect(file, size):
    """Check a whole checkpoint: its structure, its checksums where it has any, and that its data is all there.

    Args:
        file: binary, at its beginning; left anywhere.
        size: of the file in bytes.
    Raises:
        UnpicklingError: the file is damaged, or not what torch.save writes of tensors and plain values.
    """
    start = file.read(4)
    file.seek(0)
    if start == b'PK\x03\x04':
        _inspect_zip(file, size)
    elif start[:1] == b'\x80':
        _inspect_legacy(file, size)
    else:
        raise UnpicklingError('it is cut off' if len(start) < 4 else 'it is no file of torch.save')


def check_fits(size):
    """Raise UnpicklingError where so many bytes are more than this machine's memory."""
    if size > os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'):
        raise UnpicklingError('it has {:.0f} GB, more than the memory of this machine'.format(size / 1e9))


def _inspect_zip(file, size):
    count, directory = _zip_end(file, size)
    try:
        with zipfile.ZipFile(file) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise UnpicklingError('a damaged zip archive, {}'.format(error)) from error
    records, position = {}, 0
    for info in infos:
        if info.header_offset != position:
            raise UnpicklingError('a damaged zip archive, its records do not follow each other')
        begin = _check_record(file, info, directory)
        # torch finds names without regard to upper and lower case
        records[info.orig_filename.lower()] = begin, info.file_size
        position = _after_descriptor(file, info, begin + info.file_size)
    if position != directory or len(records) != count:
        raise UnpicklingError('a damaged zip archive, its directory does not fit its records')
    _check_contents(file, records)


def _zip_end(file, size):
    """(records, where the directory begins), by the archive's last bytes, which must agree with the file's size."""
    file.seek(max(0, size - 98))
    tail = file.read(98)
    signature, disks, count, length, start, comment = struct.unpack('<4s4s2xH2LH', tail[-22:].rjust(22, b'\0'))
    if signature != b'PK\x05\x06' or disks != bytes(4) or comment:
        raise UnpicklingError('a zip archive that is cut off or has something behind its end')
    end = size - 22
    if tail[-42:-38] == b'PK\x06\x07':
        end = size - 98
        if tail[:4] != b'PK\x06\x06' or struct.unpack('<Q', tail[-34:-26]) != (end,):
            raise UnpicklingError('a damaged zip archive, its end is not where it should be')
        count64, length64, start64 = struct.unpack('<3Q', tail[32:56])
        for short, long, most in ((count, count64, 2 ** 16), (length, length64, 2 ** 32), (start, start64, 2 ** 32)):
            if short not in (long, most - 1):
                raise UnpicklingError('a damaged zip archive, its end contradicts itself')
        count, length, start = count64, length64, start64
    if start + length != end or length > MOST_DIRECTORY:
        raise UnpicklingError('a damaged zip archive, its directory is not where it should be')
    return count, start


def _check_record(file, info, limit):
    """Where the data of a record begins, whose header, size and checksum must be right."""
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b'PK\x03\x04':
        raise UnpicklingError('a damaged zip archive, a record has no header')
    name_length, extra = struct.unpack('<2H', header[26:])
    name = file.read(name_length)
    spelling = 'utf-8' if info.flag_bits & 0x800 else 'cp437'
    if name != info.orig_filename.encode(spelling, 'surrogateescape') or b'\0' in name:
        raise UnpicklingError('a damaged zip archive, a record has two names')
    if header[6:10] != struct.pack('<2H', info.flag_bits, info.compress_type):
        raise UnpicklingError('a damaged zip archive, a record contradicts itself')
    if info.compress_type or info.flag_bits & 1 or info.compress_size != info.file_size:
        raise UnpicklingError('its records are compressed or encrypted')
    begin = info.header_offset + 30 + name_length + extra
    if begin + info.file_size > limit:
        raise UnpicklingError('a damaged zip archive, a record is longer than the file')
    file.seek(begin)
    if _checksum(file, info.file_size) != info.CRC:
        raise UnpicklingError('the checksum of {} is wrong'.format(info.orig_filename.split('/', 1)[-1]))
    return begin


def _checksum(file, length):
    """CRC-32 of the next bytes."""
    buffer, value = memoryview(bytearray(min(CHUNK, length))), 0
    while length:
        count = file.readinto(buffer[:length])
        if not count:
            raise UnpicklingError('it is cut off')
        value, length = zlib.crc32(buffer[:count], value), length - count
    return value


def _after_descriptor(file, info, position):
    """Where the next record begins: torch repeats checksum and sizes behind the data, the sizes in 4 or 8 bytes."""
    if not info.flag_bits & 8:
        return position
    file.seek(position)
    found = file.read(24)
    for form in ('<4sLLL', '<4sLQQ') if info.file_size < 2 ** 32 else ('<4sLQQ',):
        expected = struct.pack(form, b'PK\x07\x08', info.CRC, info.file_size, info.file_size)
        if found[:len(expected)] == expected:
            return position + len(expected)
    raise UnpicklingError('a damaged zip archive, a record contradicts itself')


def _check_contents(file, records):
    """That the archive is one of torch.save, and each storage that its pickle refers to is as long as it says."""
    names = {name.split('/', 1)[-1]: found for name, found in records.items()}
    if len({name.split('/')[0] for name in records}) != 1 or 'data.pkl' not in names:
        raise UnpicklingError('a zip archive that torch.save did not write')
    if any(name == 'constants.pkl' or name.startswith('code/') for name in names):
        raise UnpicklingError('a TorchScript archive, which holds a program; only tensors are loaded')
    if 'byteorder' in names:
        file.seek(names['byteorder'][0])
        if file.read(names['byteorder'][1]) != sys.byteorder.encode():
            raise UnpicklingError('it was written on a machine of the other byte order')
    file.seek(names['data.pkl'][0])
    for key, storage in _storages(file).items():
        if names.get('data/' + key.lower(), (0, -1))[1] != storage.bytes:
            raise UnpicklingError('the data of a tensor is missing or of another size')


def _storages(file):
    """The storages, by key, that the pickle at the file's position refers to; it must hold plain values beside them."""
    inspector = Inspector(file)
    plain_copy(inspector.load(), stand_in)
    return inspector.storages


def _inspect_legacy(file, size):
    """The format before zip archives: pickles one after the other, then the data of one storage after the other."""
    magic_number, protocol, machine = (Inspector(file).load() for _ in range(3))
    if (magic_number, protocol) != (MAGIC_NUMBER, PROTOCOL) or type(machine) is not dict:
        raise UnpicklingError('a pickle that torch.save did not write')
    if machine.get('little_endian') is not (sys.byteorder == 'little'):
        raise UnpicklingError('it was written on a machine of the other byte order')
    storages, keys = _storages(file), Inspector(file).load()
    if type(keys) is not list or len(keys) != len(storages) or any(key not in storages for key in keys):
        raise UnpicklingError('it does not list its own data')
    position = file.tell()
    for key in keys:
        file.seek(position)
        if file.read(8) != storages[key].numel.to_bytes(8, sys.byteorder):
            raise UnpicklingError('the data of a tensor is missing or of another size')
        position += 8 + storages[key].bytes
    if position != size:
        raise UnpicklingError('it is cut off' if position > size else 'it has something behind its end')
