"""Image files: read as RGB whatever they hold, or in their own channels, or refused by one exception that says why."""
import io
import os
import stat
import warnings
from contextlib import contextmanager

import numpy as np
from PIL import Image

from util.errors import UserError, first_line

# Of large photographs, transparent palettes and odd metadata, for every file and in every loader process.
warnings.filterwarnings('ignore', module=r'PIL\.')

ARRAYS = ('.npy',)              # how the names of files end that hold arrays of any number of channels
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
    return read_both(path, data)[0]


def read_both(path, data=None):
    """(what read_image gives, the upright PIL image in the mode of the file): the same one where that is RGB."""
    with _reading(path, data) as file, Image.open(file) as image:
        return _upright(image)


def read_pages(path, data=None):
    """The pages of a TIFF file of grey images as one (H, W, pages) array, as `checked` allows."""
    with _reading(path, data) as file, Image.open(file) as image:
        pages = []
        for number in range(getattr(image, 'n_frames', 1)):
            image.seek(number)
            pages.append(np.array(image))
        return checked(np.stack(pages, axis=-1))


def read_array(path, data=None):
    """The (H, W, C) array in an .npy file, as `checked` allows; (H, W) is one of one channel.

    Raises:
        UnreadableImage: the file is missing, damaged, or holds anything else.
    """
    with _reading(path, data) as file:
        pixels = np.load(file, allow_pickle=False)
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
    """Places in a list of names of image files of those that are no arrays, or of all where there are only arrays.

    Beside pictures, arrays are masks, features or the like.
    """
    places = [place for place, name in enumerate(names) if not name.lower().endswith(ARRAYS)]
    return places or range(len(names))


@contextmanager
def _reading(path, data):
    """A file to read bytes from; whatever is raised on the way becomes an UnreadableImage."""
    try:
        with open_file(path) if data is None else io.BytesIO(data) as file:
            yield file
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError as error:
        empty = not (os.path.getsize(path) if data is None else data)
        raise UnreadableImage(path, 'an empty file' if empty else _unidentified(path)) from error
    except Exception as error:      # a damaged file can raise anything that the parsers stumble over
        raise UnreadableImage(path, getattr(error, 'strerror', None) or first_line(error)) from error


def _unidentified(path):
    if path.lower().endswith(('.tif', '.tiff')):
        return 'damaged, or a kind of TIFF that Pillow does not read; .npy files hold any channels'
    return 'damaged or no image'


def open_file(path):
    """A file to read bytes from; UnreadableImage where it is no regular one."""
    if not stat.S_ISREG(os.stat(path).st_mode):         # opening a pipe would wait for ever
        raise UnreadableImage(path, 'no regular file')
    return open(path, 'rb')


def _upright(image):
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
    if turn is None:
        return rgb, image
    upright = rgb.transpose(turn)
    return upright, upright if rgb is image else image.transpose(turn)


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
