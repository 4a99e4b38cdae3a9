"""Image files decoded by Pillow or numpy: as upright RGB, or in their own channels.

`decoding` is the one boundary around opening and decoding an image: whatever goes wrong in it is an UnreadableImage.
"""
import io
import os
import warnings
from contextlib import contextmanager
from functools import partial

import numpy as np
from PIL import Image

from util.errors import UserError
from util.files import open_regular
from util.text import first_line

# Of large photographs, transparent palettes and odd metadata, for every file and in every loader process.
warnings.filterwarnings('ignore', module=r'PIL\.')

ARRAYS = ('.npy',)              # how the names of files end that hold arrays of any number of channels
MOST_BYTES = 2 ** 30            # of an image file
_ORIENTATION = 0x0112           # EXIF
# What turns an array upright, by EXIF orientation; none of these copies.
UPRIGHT = {2: np.fliplr, 3: partial(np.rot90, k=2), 4: np.flipud, 5: lambda pixels: pixels.swapaxes(0, 1),
           6: partial(np.rot90, k=-1), 7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1), 8: np.rot90}


class UnreadableImage(UserError):
    """A file that gives no image: `path`, and `reason` in one line."""

    def __init__(self, path, reason):
        super().__init__('{}: cannot be read ({}); repair or remove it'.format(path, reason))
        self.path, self.reason = path, reason


@contextmanager
def decoding(path):
    """Turn whatever goes wrong in the block into an UnreadableImage: a damaged file makes parsers raise anything."""
    try:
        yield
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(path, 'damaged or not an image, or a kind that Pillow does not read') from error
    except Exception as error:
        raise UnreadableImage(path, getattr(error, 'strerror', None) or first_line(error)) from error


def read_bytes(path):
    """The bytes of a regular file of at most MOST_BYTES; OSError or ValueError for others."""
    with open_regular(path, buffering=0) as file:
        check_size(os.fstat(file.fileno()).st_size)
        return file.read()


def check_size(size):
    """`size` in bytes of an image file; ValueError where nobody should read that much."""
    if size > MOST_BYTES:
        raise ValueError('{:,} bytes, more than the {:,} that an image may have'.format(size, MOST_BYTES))
    return size


def decode(data):
    """A file's bytes as (upright (H, W, 3) uint8 array of RGB, PIL image in the file's own mode, as it is stored).

    Transparency is dropped. Raises whatever Pillow makes of bytes that are damaged, cut short, not an image, or of more
    pixels than it allows.
    """
    if not data:
        raise ValueError('an empty file')
    with Image.open(io.BytesIO(data)) as image:
        if 0 in image.size:
            raise ValueError('an image of {} x {} pixels'.format(*image.size))
        image.load()        # a PNG's EXIF data may come after its pixels
        rgb = _eight_bits(image) if image.mode[0] in 'IF' else image if image.mode == 'RGB' else image.convert('RGB')
        return upright(image, rgb), image


def upright(image, pixels):
    """The array of `pixels`, a PIL image, turned as the EXIF data of `image` says."""
    turn = None if image.format == 'TIFF' else UPRIGHT.get(orientation_of(image))      # Pillow turns TIFFs itself
    array = np.array(pixels)
    return np.ascontiguousarray(turn(array)) if turn else array


def decode_pages(data):
    """The pages of a TIFF file of grey images as one (H, W, pages) array, as `checked` allows."""
    with Image.open(io.BytesIO(data)) as image:
        pages = []
        for number in range(getattr(image, 'n_frames', 1)):
            image.seek(number)
            pages.append(np.array(image))
        return checked(np.stack(pages, axis=-1))


def decode_array(data):
    """The (H, W, C) array in the bytes of an .npy file, as `checked` allows; (H, W) is one of one channel."""
    # Of a header that claims more than the file has, no memory is touched: what is there is read piece by piece.
    pixels = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    return checked(pixels[..., None] if pixels.ndim == 2 else pixels)


def checked(pixels):
    """`pixels` where they are an (H, W, C) array of uint8, uint16 or finite floats; else ValueError."""
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise ValueError('an array of the shape {}, not (height, width, channels)'.format(pixels.shape))
    if pixels.dtype.kind != 'f' and not (pixels.dtype.kind == 'u' and pixels.dtype.itemsize <= 2):
        raise ValueError('an array of {}, not uint8, uint16 or floats'.format(pixels.dtype))
    if pixels.dtype.kind == 'f' and not np.isfinite(pixels).all():
        raise ValueError('pixels that are not finite')
    return pixels


def without_arrays(names):
    """Places in a list of names of image files of those that are not arrays, or of all where there are only arrays.

    StreamCopy pictures, arrays are masks, features or the like.
    """
    places = [place for place, name in enumerate(names) if not name.lower().endswith(ARRAYS)]
    return places or range(len(names))


def orientation_of(image):
    """What the EXIF data of a PIL image says, 1 to 8; None where there is no such number, or the data is damaged."""
    try:
        found = image.getexif().get(_ORIENTATION)
    except Exception:       # damaged metadata does not make an image unreadable
        return None
    return found if found in range(1, 9) else None


def _eight_bits(image):
    """A grey image of integers (I, I;16, I;16B) or floats (F) as RGB with its white at 255, where convert() would clip.

    White is 65535 for integers and 1, 255 or 65535 for floats. Values beyond those, or below 0, are spread from the
    least to the greatest that occur.
    """
    values = np.asarray(image).astype(np.float32)
    least, most = float(values.min()), float(values.max())
    if not np.isfinite(least + most):
        raise ValueError('pixels that are not finite')
    if least >= 0 and most <= 65535:
        least, most = 0, 65535 if image.mode != 'F' else min(white for white in (1, 255, 65535) if most <= white)
    values -= least
    if most == 65535:
        values *= 1 / 256           # the high byte, which Pillow takes of 16-bit colours too
    else:
        values *= 255 / ((most - least) or 1)
        values += .5
    return Image.fromarray(values.astype(np.uint8)).convert('RGB')
