"""Image files: read as RGB whatever they hold, or refused by one exception that says why."""
import io
import os
import stat
import warnings

import numpy as np
from PIL import Image

from util.errors import UserError, first_line

# Of large photographs, transparent palettes and odd metadata, for every file and in every loader process.
warnings.filterwarnings('ignore', module=r'PIL\.')

_ORIENTATION = 0x0112           # EXIF
_TRANSPOSE = getattr(Image, 'Transpose', Image)
_UPRIGHT = {2: _TRANSPOSE.FLIP_LEFT_RIGHT, 3: _TRANSPOSE.ROTATE_180, 4: _TRANSPOSE.FLIP_TOP_BOTTOM,
            5: _TRANSPOSE.TRANSPOSE, 6: _TRANSPOSE.ROTATE_270, 7: _TRANSPOSE.TRANSVERSE, 8: _TRANSPOSE.ROTATE_90}


class UnreadableImage(UserError):
    """A file that gives no image: `path`, and `reason` in one line."""

    def __init__(self, path, reason):
        super().__init__('{}: cannot be read ({}); repair or remove it'.format(path, reason))
        self.path, self.reason = path, reason


def read_image(path, data=None):
    """An image file as an upright 8-bit RGB PIL image; transparency is dropped.

    Args:
        data: the file's bytes, where `path` only says what they are called.
    Raises:
        UnreadableImage: the file is missing, damaged, cut short, no image, or larger than Pillow allows.
    """
    try:
        with open_file(path) if data is None else io.BytesIO(data) as file, Image.open(file) as image:
            return _upright_rgb(image)
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError as error:
        empty = not (os.path.getsize(path) if data is None else data)
        raise UnreadableImage(path, 'an empty file' if empty else 'damaged or no image') from error
    except Exception as error:      # a damaged file can raise anything that Pillow's parsers stumble over
        raise UnreadableImage(path, getattr(error, 'strerror', None) or first_line(error)) from error


def open_file(path):
    """A file to read bytes from; UnreadableImage where it is no regular one."""
    if not stat.S_ISREG(os.stat(path).st_mode):         # opening a pipe would wait for ever
        raise UnreadableImage(path, 'no regular file')
    return open(path, 'rb')


def _upright_rgb(image):
    if 0 in image.size:
        raise ValueError('an image of {} x {} pixels'.format(*image.size))
    image.load()        # a PNG's EXIF data may come after its pixels
    if image.mode[0] in 'IF':
        rgb = _eight_bits(image).convert('RGB')
    elif image.mode == 'RGB' and image.format == 'JPEG':
        rgb = image                 # the ordinary photograph: convert() would only copy it
    else:
        rgb = image.convert('RGB')
    turn = None if image.format == 'TIFF' else _UPRIGHT.get(orientation_of(image))     # Pillow turns TIFFs itself
    return rgb if turn is None else rgb.transpose(turn)


def orientation_of(image):
    """What the EXIF data of a PIL image says, 1 to 8; None where there is no such number, or the data is damaged."""
    try:
        found = image.getexif().get(_ORIENTATION)
    except Exception:       # Pillow's parsers raise whatever a damaged file makes them
        return None
    return found if found in range(1, 9) else None


def _eight_bits(image):
    """A grey image of integers (I, I;16, I;16B) or floats (F) with its white at 255, where convert() would clip.

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
    return Image.fromarray(values.astype(np.uint8))
