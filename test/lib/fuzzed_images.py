"""Seeded fuzzing of image files: headers and bodies are mutated; some files stay readable, most do not."""
import io
import os
import random
import struct
import zlib

import numpy as np
from PIL import Image, features


def write(folder, count, seed=0):
    """Write `count` files and return their paths; with one release of Pillow, the bytes depend on the seed alone."""
    rng, originals, paths = random.Random(seed), _originals(), []
    for i in range(count):
        kind, data = originals[i % len(originals)]
        paths.append(os.path.join(str(folder), '{:05d}.{}'.format(i, kind)))
        with open(paths[-1], 'wb') as file:
            file.write(rng.choice(MUTATIONS)(rng, kind, data))
    return paths


def _originals():
    """[(extension, bytes)] of valid files of 160 x 120 pixels."""
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


# Mutations: (generator, extension, bytes) -> bytes.

def overwrite_bytes(start, end):
    """Overwrite some bytes in a range; half of the PNG files get valid checksums, so that decoders parse further."""
    def mutation(rng, kind, data):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(start, min(end, len(data)))] = rng.randrange(256)
        return _with_valid_checksums(bytes(changed)) if kind == 'png' and rng.random() < .5 else bytes(changed)
    return mutation


def change_dimensions(rng, kind, data):
    """Change width and height in the header of a JPEG or PNG: 0, one more, thousands, or impossibly large."""
    width, height = (rng.choice([0, 1, 161, 3000, 65535, 2 ** 31 - 1]) for _ in range(2))
    if kind == 'png':
        return _with_valid_checksums(data[:16] + struct.pack('>II', width, height) + data[24:])
    offset = max(data.find(b'\xff\xc0'), data.find(b'\xff\xc2'))
    return data[:offset + 5] + struct.pack('>HH', height & 65535, width & 65535) + data[offset + 9:]


def truncate_or_shift(rng, kind, data):
    """Truncate the file, or remove or insert bytes."""
    i = rng.randrange(len(data))
    return data[:i] + rng.choice([b'', data[i + 20:], data[i:i + 100] + data[i:]])


def _with_valid_checksums(png):
    """PNG with recomputed chunk checksums, as far as its chunk lengths are consistent."""
    out, at = bytearray(png[:8]), 8
    while at + 12 <= len(png):
        length = struct.unpack('>I', png[at:at + 4])[0]
        body = png[at + 4:at + 8 + length]
        out += png[at:at + 4] + body + struct.pack('>I', zlib.crc32(body))
        at += 12 + length
    return bytes(out)


MUTATIONS = [lambda rng, kind, data: data, *3 * [overwrite_bytes(0, 64)], *4 * [overwrite_bytes(64, 10 ** 9)],
             *2 * [change_dimensions], *5 * [truncate_or_shift], lambda rng, kind, data: data[:-rng.randint(1, 24)],
             lambda rng, kind, data: b'', lambda rng, kind, data: bytes(rng.choices(range(256), k=len(data)))]
