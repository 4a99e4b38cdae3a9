"""Image decoding: upright RGB pixels of files that Pillow reads, and .npy arrays of any number of channels.

`wrap_decode_errors` is the one boundary around opening and decoding an image: every error becomes an UnreadableImage.
"""
import io
import os
import warnings
from contextlib import contextmanager, suppress
from functools import partial
from typing import Iterator, List, Optional, Tuple

import numpy as np
from PIL import Image

from util.errors import SystemFailure, UserError, raise_if_exhausted
from util.files import open_regular
from util.text import first_line

# About large photographs, transparent palettes and odd metadata: once per file in every loader process.
warnings.filterwarnings('ignore', module=r'PIL\.')

with suppress(ImportError):     # Pillow has no decoder of its own for HEIC
    import pillow_heif
    pillow_heif.register_heif_opener()
# Formats that Pillow identifies, but decodes with another program or not at all.
_NOT_DECODED = ('BUFR', 'EPS', 'GRIB', 'HDF5', 'IPTC', 'MPEG', 'WMF')
EXTENSIONS = frozenset(extension for extension, form in Image.registered_extensions().items()
                       if form in Image.OPEN and form not in _NOT_DECODED)      # in lower case
ARRAY_EXTENSIONS = ('.npy',)    # files with arrays of any number of channels
_SYSTEM_FILES = ('__macosx', '@eadir', 'thumbs.db', 'ehthumbs.db', 'desktop.ini')      # of macOS, Synology and Windows
MAX_IMAGE_BYTES = 2 ** 30
WHITES = {'I': (255, 1023, 4095, 16383, 65535), 'F': (1, 255, 65535)}      # of 8 to 16 bits in use, and of floats
_ORIENTATION = 0x0112           # EXIF tag
# Transform to upright by EXIF orientation; all are views.
TO_UPRIGHT = {2: np.fliplr, 3: partial(np.rot90, k=2), 4: np.flipud, 5: lambda pixels: pixels.swapaxes(0, 1),
              6: partial(np.rot90, k=-1), 7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1), 8: np.rot90}


class UnreadableImage(UserError):
    """An image file that cannot be decoded: its `path`, and the `reason` in one line."""

    def __init__(self, path: str, reason: str):
        super().__init__('{}: cannot be read ({}); repair or remove it'.format(path, reason))
        self.path, self.reason = path, reason


Failures = List[Tuple[str, str]]        # (path, reason) of unreadable files


@contextmanager
def wrap_decode_errors(path: str) -> Iterator[None]:
    """Convert every error in the block into an UnreadableImage; parsers of damaged files raise arbitrary exceptions."""
    try:
        yield
    except (UnreadableImage, SystemFailure):
        raise
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(path, 'damaged, not an image, or a format that Pillow does not read') from error
    except Exception as error:
        raise_if_exhausted(error)
        raise UnreadableImage(path, getattr(error, 'strerror', None) or first_line(error)) from error


def read_bytes(path: str) -> bytes:
    """Contents of a regular file of at most MAX_IMAGE_BYTES; OSError or ValueError for others."""
    with open_regular(path, buffering=0) as file:
        check_size(os.fstat(file.fileno()).st_size)
        return file.read()


def check_size(size: int) -> int:
    """`size` in bytes of an image file; ValueError above MAX_IMAGE_BYTES."""
    if size > MAX_IMAGE_BYTES:
        raise ValueError('{:,} bytes exceed the limit of {:,} for an image'.format(size, MAX_IMAGE_BYTES))
    return size


def decode(data: bytes, white: int = 0) -> Tuple[np.ndarray, int]:
    """Decode a file's bytes: (upright (H, W, 3) uint8 RGB array, white).

    Transparency is dropped. The returned white is the level of grey integer images of more than 8 bits that becomes
    255, at least `white`; 0 for other images, -1 for one that is scaled from its minimum to its maximum. Raises
    whatever Pillow raises for damaged bytes or too many pixels.
    """
    if not data:
        raise ValueError('an empty file')
    with Image.open(io.BytesIO(data)) as image:
        if 0 in image.size:
            raise ValueError('an image of {} x {} pixels'.format(*image.size))
        image.load()        # a PNG's EXIF data may follow its pixels
        if image.mode[0] in 'IF':
            rgb, white = _to_8_bits(image, white)
        else:
            rgb, white = image if image.mode == 'RGB' else image.convert('RGB'), 0
        turn = None if image.format == 'TIFF' else TO_UPRIGHT.get(exif_orientation(image))  # Pillow turns TIFFs itself
        array = np.array(rgb)
        return np.ascontiguousarray(turn(array)) if turn else array, white


def decode_npy(data: bytes) -> np.ndarray:
    """(H, W, C) array of uint8, uint16 or finite floats from the bytes of an .npy file; (H, W) has one channel."""
    # read_array reads a stream in pieces, so a header that claims more than the file has allocates no memory.
    pixels = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise ValueError('an array of shape {}, not (height, width, channels)'.format(pixels.shape))
    if pixels.dtype.kind != 'f' and not (pixels.dtype.kind == 'u' and pixels.dtype.itemsize <= 2):
        raise ValueError('an array of {}, not uint8, uint16 or floats'.format(pixels.dtype))
    if pixels.dtype.kind == 'f' and not np.isfinite(pixels).all():
        raise ValueError('non-finite pixels')
    return pixels


def ignored_as(name: str) -> str:
    """Why a file of a folder or tar file is not an image: 'hidden', or its extension; '' for an image or array.

    Hidden are names such as ._x.jpg and what operating systems add, and all that is in such a folder.
    """
    parts = name.lower().split(os.sep)
    for part in parts:
        if part[:1] == '.' and part.strip('.') or part in _SYSTEM_FILES:
            return 'hidden'
    extension = os.path.splitext(parts[-1])[1]
    return '' if extension in EXTENSIONS or extension in ARRAY_EXTENSIONS else extension or 'without extension'


def exif_orientation(image: Image.Image) -> Optional[int]:
    """EXIF orientation of a PIL image, 1 to 8; None if missing, invalid or damaged."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:       # damaged metadata does not make an image unreadable
        return None
    return orientation if orientation in range(1, 9) else None


def _to_8_bits(image, white):
    """(8-bit RGB image, white) of a grey image of integers (I, I;16, I;16B) or floats (F), which convert() would clip.

    White is the lowest of WHITES that no pixel exceeds. Images with values above all of them or below 0 are scaled from
    their minimum to their maximum.
    """
    values = np.asarray(image).astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low + high):
        raise ValueError('non-finite pixels')
    levels, floats = WHITES[image.mode[0]], image.mode == 'F'
    if low >= 0 and high <= levels[-1]:
        high = max(next(level for level in levels if high <= level), 0 if floats else white)
        white = 0 if floats else high
        # For 65535 the high byte, which Pillow keeps of 16-bit colours too.
        values = values / 256 if high == 65535 else values * (255 / high) + .5
    else:
        white = -1
        values = (values - low) * (255 / ((high - low) or 1)) + .5
    return Image.fromarray(values.astype(np.uint8)).convert('RGB'), white
