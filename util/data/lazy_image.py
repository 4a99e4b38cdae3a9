"""Lazy images: decode only the crop, at the smallest sufficient JPEG scale.

JPEG files are decoded by simplejpeg (libjpeg-turbo) in about two thirds of Pillow's time, only down to the last row
needed, and at a reduced scale if that loses nothing. Pillow decodes other formats, damaged and unusual files, and
everything if simplejpeg is not installed.
"""
import io
import math
from typing import Any, Callable, Optional, Sequence, Tuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import Dataset

from util.data import image_files
from util.data.image_files import ARRAY_EXTENSIONS, UnreadableImage, read_bytes, wrap_decode_errors

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

BICUBIC = 3             # Pillow's number: release 9.1 warns about the name
MARGIN = 2              # a reduced image keeps at least this many pixels per output pixel and side
_COLOURS = ('YCbCr', 'RGB', 'Gray')         # colour spaces that simplejpeg converts to RGB as Pillow does
# JPEG markers: start and end of the image, start of the scan data, the segments that may precede it, the frame headers
# of sequential files (height at offset 5), and the segment of EXIF and XMP data.
_SOI, _EOI, _SOS = b'\xff\xd8', b'\xff\xd9', b'\xff\xda'
_SEGMENTS = frozenset(bytes([kind]) for kind in [*range(0xc0, 0xd0), 0xdb, 0xdd, *range(0xe0, 0xf0), 0xfe])
_SEQUENTIAL = (b'\xc0', b'\xc1')
_APP1 = b'\xe1'

Size = Tuple[int, int]      # height, width
Transform = Optional[Callable[['LazyImage'], Any]]


class LazyImage:
    """Upright image of `height` x `width` pixels from an (H, W, C) array; `path` is for error messages.

    Crops of uint8 arrays are uint8. Others are float32 in units where uint16's 65535 and a float's 1 become 255; floats
    are not clipped. `counts` are the supported channel counts, for RGB 1 and 3: transforms convert to grey last.
    """

    white, _counts = 0, (1, 3)      # white: of a grey image of more than 8 bits, see image_files.decode

    def __init__(self, pixels: np.ndarray, path: str = '', white: int = 0, counts: Sequence[int] = (1, 3)):
        self._pixels, self._path, self.white, self._counts = pixels, path, white, counts
        self.height, self.width = pixels.shape[:2]

    def with_channels(self, count: int) -> 'LazyImage':
        """The image for a model with `count` input channels: RGB for 1 and 3, else an array of as many.

        Raises:
            UnreadableImage: the file has a different number of channels.
        """
        if count not in self._counts:
            raise UnreadableImage(self._path, '{}-channel image, but --in_chans is {}; other than 1 and 3 channels '
                                  'need .npy arrays'.format(self._counts[-1], count))
        return self

    def scale_denominator(self, height: int, width: int, size: Size) -> int:
        """n if a crop of height x width for output `size` is decoded at 1 / n; its edges should be multiples of n."""
        return 1

    def resized_crop(self, top: int, left: int, height: int, width: int, size: Size) -> torch.Tensor:
        """Crop and resize (bicubic, antialiased): (*size, 3) uint8.

        Raises:
            UnreadableImage: the file is damaged.
        """
        return _resize(self._pixels[top:top + height, left:left + width], size)


class LazyJpeg(LazyImage):
    """JPEG file that is decoded once the crop is known; `stored`: size from the header, before EXIF orientation."""

    def __init__(self, path: str, data: bytes, stored: Size):
        self._path, self._data, self._stored, self._orientation = path, data, stored, None
        self._height_offset, may_have_exif = _parse_segments(data)
        if may_have_exif:
            with Image.open(io.BytesIO(data)) as image:
                self._orientation = image_files.exif_orientation(image)
        self.height, self.width = stored[::-1] if (self._orientation or 1) >= 5 else stored

    def scale_denominator(self, height: int, width: int, size: Tuple[int, int]) -> int:
        # Mean difference from resizing the full-scale image: about one grey level (test/bench/results/loader.md).
        return next((scale for scale in (8, 4, 2) if height >= MARGIN * scale * size[0]
                     and width >= MARGIN * scale * size[1]), 1)

    def resized_crop(self, top: int, left: int, height: int, width: int, size: Tuple[int, int]) -> torch.Tensor:
        scale = self.scale_denominator(height, width, size)
        edges = top, left, height, width, *(self._stored if self._orientation else ())
        while any(edge % scale for edge in edges):      # crops of a reduced image start at whole reduced pixels
            scale //= 2
        with wrap_decode_errors(self._path):
            try:
                pixels = self._decode(scale, top + height)
            except ValueError:                  # damaged: Pillow decides whether the file is readable
                scale, pixels = 1, image_files.decode(self._data)[0]
                if pixels.shape[:2] != (self.height, self.width):
                    raise ValueError('its header contradicts its contents') from None
        top, left, height, width = (edge // scale for edge in (top, left, height, width))
        return _resize(pixels[top:top + height, left:left + width], size)

    def _decode(self, scale, rows):
        """Upright pixels at 1 / scale of the size, of which at least the first `rows` (at full scale) are decoded."""
        data, stored = self._data, self._stored
        whole = self._height_offset is None or (self._orientation or 1) != 1 or rows >= stored[0]
        if not whole:           # the decoder stops at the height in the header
            data, stored = bytearray(data), (rows, stored[1])
            data[self._height_offset:self._height_offset + 2] = rows.to_bytes(2, 'big')
        # Fast chroma upsampling saves a tenth of the time for most photographs, at a difference of 0.1 grey levels.
        pixels = simplejpeg.decode_jpeg(data, 'RGB', fastupsample=True, min_height=-(-stored[0] // scale),
                                        min_width=-(-stored[1] // scale), min_factor=scale, strict=whole)
        return image_files.TO_UPRIGHT.get(self._orientation, np.asarray)(pixels)


class LazyImageDataset(Dataset):
    """Map-style dataset of (LazyImage, label) pairs, or (transform(LazyImage), label) pairs.

    Subclasses have `load_image(index)`, which may raise UnreadableImage, and `name_of(index)`, for messages and lists.
    `white` is that of image_files.decode for all images, so that dark ones stay dark.
    """
    white = 0

    def __init__(self, labels: np.ndarray, classes: Sequence[str], transform: Transform = None):
        self.labels, self.classes, self.transform = labels, classes, transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index: int) -> Tuple[Any, int]:
        image = self.load_image(index)
        return (self.transform(image) if self.transform else image), int(self.labels[index])


def open_image(path: str, white: int = 0, read: Callable[[str], bytes] = read_bytes) -> LazyImage:
    """Open an image file of any format that Pillow reads, or an .npy file; any failure raises UnreadableImage.

    `white`: see image_files.decode; `read` maps the path to the file's bytes, for images inside other files.
    """
    with wrap_decode_errors(path):
        data = read(path)
        stored = _jpeg_size(data)
        if stored:
            return LazyJpeg(path, data, stored)
        if path.lower().endswith(ARRAY_EXTENSIONS):
            pixels = image_files.decode_npy(data)
            return LazyImage(pixels, path, counts=pixels.shape[2:])
        pixels, white = image_files.decode(data, white)
        return LazyImage(pixels, path, white)


def _jpeg_size(data):
    """Size of a JPEG file that simplejpeg can decode; None if Pillow should decode it."""
    if simplejpeg is None or not data.startswith(_SOI):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    max_pixels = Image.MAX_IMAGE_PIXELS or math.inf
    return (height, width) if colours in _COLOURS and height * width <= max_pixels else None


def _parse_segments(data):
    """(offset of the height in a complete sequential JPEG file, else None; whether the file may have EXIF data).

    Most files have no EXIF data, and Pillow's parser takes a tenth of the decoding time.
    """
    offset, found = 2, {}
    while data[offset:offset + 1] == b'\xff' and data[offset + 1:offset + 2] in _SEGMENTS:
        found[data[offset + 1:offset + 2]] = offset
        offset += 2 + int.from_bytes(data[offset + 2:offset + 4], 'big')
    if data[offset:offset + 2] != _SOS:
        return None, True
    heights = [found[kind] + 5 for kind in _SEQUENTIAL if kind in found]
    return heights[0] if len(heights) == 1 and data.endswith(_EOI) else None, _APP1 in found


def _resize(pixels, size):
    """(H, W, C) array -> (*size, C) uint8 tensor, or float32 as in LazyImage."""
    if pixels.dtype != np.uint8:
        return _resize_channels(pixels.astype(np.float32) * (1 / 257 if pixels.dtype.kind == 'u' else 255), size)
    if _RESIZES_BYTES:
        pixels = pixels if min(pixels.strides) > 0 else pixels.copy()
        # In channels-last layout the kernel handles all channels of a pixel at once.
        return _interpolate(torch.from_numpy(pixels)[None].permute(0, 3, 1, 2), size)[0].permute(1, 2, 0).contiguous()
    if pixels.shape[2] != 3:
        return _resize_channels(pixels, size)
    return torch.from_numpy(np.array(Image.fromarray(np.ascontiguousarray(pixels)).resize(size[::-1], BICUBIC)))


def _resize_channels(pixels, size):
    """(H, W, C) array of uint8 or float32 -> (*size, C) tensor; Pillow resizes each channel as a grey image."""
    channels = [Image.fromarray(np.ascontiguousarray(channel)).resize(size[::-1], BICUBIC)
                for channel in np.moveaxis(pixels, -1, 0)]
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in channels], axis=-1))


def _interpolate(images, size):
    return F.interpolate(images, size=size, mode='bicubic', align_corners=False, antialias=True)


def _resizes_bytes():
    """Whether this PyTorch has a uint8 bicubic kernel."""
    try:
        return _interpolate(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), (2, 2)).dtype == torch.uint8
    except (TypeError, RuntimeError):
        return False


_RESIZES_BYTES = _resizes_bytes()
