"""Image files with mutated headers and bodies, all from one seed: some still read, most are broken in some way."""
import io
import os
import random
import struct
import zlib

import numpy as np
from PIL import Image, features


def write(folder, count, seed=0):
    """Write `count` files into `folder`; returns their paths. The same seed gives the same bytes on one Pillow."""
    rng, originals, paths = random.Random(seed), _originals(), []
    for i in range(count):
        kind, data = originals[i % len(originals)]
        paths.append(os.path.join(str(folder), '{:05d}.{}'.format(i, kind)))
        with open(paths[-1], 'wb') as file:
            file.write(rng.choice(MUTATIONS)(rng, kind, data))
    return paths


def _originals():
    """[(ending, bytes)] of whole files of 160 x 120 pixels."""
    pixels, found = np.random.RandomState(0).randint(0, 256, (6, 8, 3)).astype(np.uint8), []
    rgb = Image.fromarray(pixels).resize((160, 120), 3)
    exif = b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0'
    grey16 = Image.fromarray(np.asarray(rgb.convert('L')).astype(np.uint16) * 257)
    for kind, image, options in [
            ('jpeg', rgb, {}), ('png', rgb, {}), ('webp', rgb, {}), ('jpeg', rgb, {'progressive': True, 'exif': exif}),
            ('png', grey16, {}), ('webp', rgb.convert('RGBA'), {'exif': exif, 'lossless': True})]:
        if kind != 'webp' or features.check('webp'):
            file = io.BytesIO()
            image.save(file, kind, **options)
            found.append((kind, file.getvalue()))
    return found


# Mutations: (generator, ending, bytes) -> bytes.

def overwritten(start, end):
    """Some bytes between two places get other values; the checksums of a PNG may stay right, so that it is read on."""
    def mutation(rng, kind, data):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(start, min(end, len(data)))] = rng.randrange(256)
        return _mended(bytes(changed)) if kind == 'png' and rng.random() < .5 else bytes(changed)
    return mutation


def other_dimensions(rng, kind, data):
    """The header of a JPEG or PNG says 0, one more, a few thousand, or more pixels than anybody has."""
    width, height = (rng.choice([0, 1, 161, 3000, 65535, 2 ** 31 - 1]) for _ in range(2))
    if kind == 'png':
        return _mended(data[:16] + struct.pack('>II', width, height) + data[24:])
    at = max(data.find(b'\xff\xc0'), data.find(b'\xff\xc2'))
    return data[:at + 5] + struct.pack('>HH', height & 65535, width & 65535) + data[at + 9:]


def cut_or_moved(rng, kind, data):
    """The end is missing, or what stands behind a place has moved."""
    place = rng.randrange(len(data))
    return data[:place] + rng.choice([b'', data[place + 20:], data[place:place + 100] + data[place:]])


def _mended(png):
    """A PNG with the checksum of every chunk made right, as far as its lengths lead."""
    out, at = bytearray(png[:8]), 8
    while at + 12 <= len(png):
        length = struct.unpack('>I', png[at:at + 4])[0]
        body = png[at + 4:at + 8 + length]
        out += png[at:at + 4] + body + struct.pack('>I', zlib.crc32(body))
        at += 12 + length
    return bytes(out)


MUTATIONS = [lambda rng, kind, data: data, *3 * [overwritten(0, 64)], *4 * [overwritten(64, 10 ** 9)],
             *2 * [other_dimensions], *5 * [cut_or_moved], lambda rng, kind, data: data[:-rng.randint(1, 24)],
             lambda rng, kind, data: b'', lambda rng, kind, data: bytes(rng.choices(range(256), k=len(data)))]
