"""Image files with mutated headers and bodies, all from one seed: some still read, most are broken in some way."""
import io
import os
import random
import struct
import zlib

import numpy as np
from PIL import Image, features

FORMATS = {'jpg': 'JPEG', 'png': 'PNG', 'webp': 'WEBP'}


def write(folder, count, seed=0):
    """Write `count` files into `folder`; the same seed gives the same bytes on one Pillow.

    Returns:
        their paths; some of them are left as they are, about a quarter can still be read.
    """
    rng, originals, paths = random.Random(seed), _originals(), []
    for i in range(count):
        kind, data = originals[i % len(originals)]
        path = os.path.join(str(folder), '{:05d}.{}'.format(i, kind))
        with open(path, 'wb') as file:
            file.write(rng.choice(MUTATIONS)(rng, kind, data))
        paths.append(path)
    return paths


def _originals():
    """[(ending, bytes)] of whole files of 160 x 120 pixels, JPEG, PNG and WebP in turn."""
    pixels = np.random.RandomState(0).randint(0, 256, (6, 8, 3)).astype(np.uint8)
    rgb = Image.fromarray(pixels).resize((160, 120), 3)
    exif = b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0'
    grey16 = Image.fromarray(np.asarray(rgb.convert('L')).astype(np.uint16) * 257)
    jpegs = [('jpg', rgb, {}), ('jpg', rgb, {'progressive': True, 'exif': exif}), ('jpg', rgb.convert('CMYK'), {}),
             ('jpg', rgb.convert('L'), {})]
    pngs = [('png', rgb, {}), ('png', rgb.quantize(16), {'transparency': b'\0\x80'}), ('png', rgb.convert('RGBA'), {}),
            ('png', grey16, {})]
    webps = [('webp', rgb, {}), ('webp', rgb, {'lossless': True}), ('webp', rgb.convert('RGBA'), {}),
             ('webp', rgb, {'exif': exif})]
    rows = zip(jpegs, pngs, webps) if features.check('webp') else zip(jpegs, pngs)
    return [(kind, _saved(image, FORMATS[kind], options)) for row in rows for kind, image, options in row]


def _saved(image, name, options):
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


# Mutations: (generator, ending, bytes) -> bytes.

def chunk_bytes_with_right_checksums(rng, kind, data):
    """A PNG reader gives up at a wrong checksum, before it has parsed what is wrong."""
    return _mended(_overwritten(rng, data, 16, len(data), rng.randint(1, 4))) if kind == 'png' else _overwritten(
        rng, data, 64, len(data), rng.randint(1, 12))


def inside(change):
    """A mutation by change(generator, what stands before a place, what stands behind it)."""
    def mutation(rng, kind, data):
        place = rng.randrange(len(data))
        return change(rng, data[:place], data[place:])
    return mutation


def other_dimensions(rng, kind, data):
    """The header says 0, one more, a few thousand, or more pixels than anybody has."""
    width, height = (rng.choice([0, 1, 161, 3000, 65535, 2 ** 31 - 1]) for _ in range(2))
    if kind == 'png':
        return _mended(data[:16] + struct.pack('>II', width, height) + data[24:])
    if kind == 'webp':
        at = data.find(b'\x9d\x01\x2a')
        return data if at < 0 else data[:at + 3] + struct.pack('<HH', width & 65535, height & 65535) + data[at + 7:]
    at = max(data.find(b'\xff\xc0'), data.find(b'\xff\xc2'))
    return data[:at + 5] + struct.pack('>HH', height & 65535, width & 65535) + data[at + 9:]


MUTATIONS = [
    lambda rng, kind, data: data,
    *3 * [lambda rng, kind, data: _overwritten(rng, data, 0, 64, rng.randint(1, 4))],
    *3 * [lambda rng, kind, data: _overwritten(rng, data, 64, len(data), rng.randint(1, 12))],
    *2 * [chunk_bytes_with_right_checksums], *2 * [other_dimensions], *2 * [inside(lambda rng, before, behind: before)],
    inside(lambda rng, before, behind: before + bytes(min(len(behind), 200)) + behind[200:]),
    inside(lambda rng, before, behind: before + behind[rng.randint(1, 40):]),
    inside(lambda rng, before, behind: before + behind[:100] + behind),
    lambda rng, kind, data: data[:-rng.randint(1, 24)], lambda rng, kind, data: b'',
    lambda rng, kind, data: bytes(len(data)), lambda rng, kind, data: b'<html><body>404 Not Found</body></html>\n',
    lambda rng, kind, data: rng.getrandbits(8 * len(data)).to_bytes(len(data), 'big')]


def _overwritten(rng, data, start, end, count):
    changed = bytearray(data)
    for _ in range(count):
        changed[rng.randrange(start, min(end, len(data)))] = rng.randrange(256)
    return bytes(changed)


def _mended(png):
    """A PNG with the checksum of every chunk made right, as far as its lengths lead."""
    out, at = bytearray(png[:8]), 8
    while at + 12 <= len(png):
        length = struct.unpack('>I', png[at:at + 4])[0]
        body = png[at + 4:at + 8 + length]
        out += png[at:at + 4] + body + struct.pack('>I', zlib.crc32(body))
        at += 12 + length
    return bytes(out)
