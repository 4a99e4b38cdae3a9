"""Pictures as transforms see them: a part is cut out at the size it is needed in, and no more is decoded than that.

JPEG files are decoded by simplejpeg (libjpeg-turbo), in about two thirds of Pillow's time, down to the last row that
is needed, and at a reduced scale where that loses nothing; other files, damaged and odd ones, and all where simplejpeg
is missing, by Pillow.
"""
import io
import math

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import Dataset

from util.data import image_files as images
from util.data.image_files import ARRAYS, UnreadableImage, decoding, read_bytes

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

BICUBIC = 3             # by Pillow's number: release 9.1 warns of the name
MARGIN = 2              # a reduced picture keeps that many pixels a side for each one that is needed
_COLOURS = ('YCbCr', 'RGB', 'Gray')         # what simplejpeg makes RGB of as Pillow does
_MARK = b'\xff\xd8'         # how a JPEG file begins
_END = b'\xff\xd9'
_SCAN = b'\xff\xda'         # how its pixels begin, and which segments stand before these
_SEGMENTS = frozenset(bytes([kind]) for kind in [*range(0xc0, 0xd0), 0xdb, 0xdd, *range(0xe0, 0xf0), 0xfe])
_SEQUENTIAL = (b'\xc0', b'\xc1')        # where the height stands in a file that holds its rows one after the other
_APP1 = b'\xe1'             # where EXIF and XMP data stand


class LazyImage:
    """An upright RGB picture of `height` x `width` pixels, given as an (H, W, 3) uint8 array; `path` names it."""

    _counts = (1, 3)        # of channels that it can be had in; grey is made at the end

    def __init__(self, pixels, path=''):
        self._pixels, self._path, (self.height, self.width) = pixels, path, pixels.shape[:2]

    def channels(self, count):
        """The picture for a model of `count` channels: RGB for 1 and 3, else in those that the file has.

        Raises:
            UnreadableImage: it has others.
        """
        if count not in self._counts:
            own = self._counts[-1]
            raise UnreadableImage(self._path, '{} channel{} and not the {} of --in_chans'.format(
                own, 's'[:own - 1], count))
        return self

    def step(self, height, width, size):
        """What the edges of a part of height x width should be multiples of, to get it in `size` for the least work."""
        return 1

    def part(self, top, left, height, width, size):
        """A part of the picture, resized (bicubic, antialiased) to size = (height, width): (*size, 3) uint8 tensor.

        Raises:
            UnreadableImage: the file is damaged.
        """
        return _resized(self._pixels[top:top + height, left:left + width], size)


class LazyJpeg(LazyImage):
    """A JPEG file that is decoded when the part is known, at a reduced scale where that loses nothing.

    Args:
        data: the file's bytes.
        stored: (height, width), as its header says.
    """

    def __init__(self, path, data, stored):
        self._path, self._data, self._stored, self._orientation = path, data, stored, None
        self._height_at, tagged = _layout(data)
        if tagged:
            with Image.open(io.BytesIO(data)) as image:
                self._orientation = images.orientation_of(image)
        self.height, self.width = stored[::-1] if (self._orientation or 1) >= 5 else stored

    def step(self, height, width, size):
        # The mean difference from what the whole picture gives is about a grey level (test/bench/results/loader.md).
        return next((scale for scale in (8, 4, 2) if height >= MARGIN * scale * size[0]
                     and width >= MARGIN * scale * size[1]), 1)

    def part(self, top, left, height, width, size):
        scale = self.step(height, width, size)
        edges = top, left, height, width, *(self._stored if self._orientation else ())
        while any(edge % scale for edge in edges):      # a reduced picture begins in a corner of the stored one
            scale //= 2
        with decoding(self._path):
            try:
                pixels = self._upright(scale, top + height)
            except ValueError:                  # damaged; what Pillow makes of it decides
                scale, pixels = 1, images.decode(self._data)[0]
                if pixels.shape[:2] != (self.height, self.width):
                    raise ValueError('its header contradicts its contents') from None
        top, left, height, width = (number // scale for number in (top, left, height, width))
        return _resized(pixels[top:top + height, left:left + width], size)

    def _upright(self, scale, rows):
        """The picture at 1 / scale of its size, of which no more than the first `rows` need be there."""
        data, stored = self._data, self._stored
        whole = self._height_at is None or (self._orientation or 1) != 1 or rows >= stored[0]
        if not whole:           # a decoder stops where the file says that it is at its end
            data, stored = bytearray(data), (rows, stored[1])
            data[self._height_at:self._height_at + 2] = rows.to_bytes(2, 'big')
        # Coarser interpolation of colours is a tenth faster for most photographs, and 0.1 grey levels away.
        pixels = simplejpeg.decode_jpeg(data, 'RGB', fastupsample=True, min_height=-(-stored[0] // scale),
                                        min_width=-(-stored[1] // scale), min_factor=scale, strict=whole)
        return images.UPRIGHT.get(self._orientation, np.asarray)(pixels)


class DecodedImage(LazyImage):
    """An image file that Pillow has decoded, of which the channels can be had that it has.

    Args:
        data: the file's bytes; `image`: upright PIL image in the file's mode, whose pixels in RGB are `pixels`.
    """

    def __init__(self, pixels, path, data, image):
        super().__init__(pixels, path)
        self._data, self._image = data, image

    def channels(self, count):
        if count in self._counts:
            return self
        image = self._image
        if count == 4 and 'transparency' in image.info and image.mode in ('P', 'PA', 'RGB'):
            image = image.convert('RGBA')
        if len(image.getbands()) > 1 or image.format != 'TIFF':
            return ArrayImage(images.upright(self._image, image), self._path).channels(count)
        with decoding(self._path):
            pages = images.decode_pages(self._data)
        return ArrayImage(pages, self._path).channels(count)


class ArrayImage(LazyImage):
    """An (H, W, C) array of any number of channels, which a model must have as many of; (H, W) is one of one channel.

    Parts of uint8 arrays are uint8; those of others float32, in which 255 stands for 65535 in uint16 and for 1 in
    floats, and is no limit to these.
    """

    def __init__(self, pixels, path=''):
        super().__init__(np.atleast_3d(pixels), path)
        self._counts = self._pixels.shape[2:]


class LazyImageDataset(Dataset):
    """(LazyImage, label) pairs, or (what a `transform` of LazyImage returns, label) pairs.

    Looking a pair up raises UnreadableImage where its file gives no image. Subclasses have `picture(index)` and
    `name_of(index)`, the file of an image.
    Args:
        labels: (N,) array; classes: class names by label.
    """

    def __init__(self, labels, classes, transform=None):
        self.labels, self.classes, self.transform = labels, classes, transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        picture = self.picture(index)
        return (self.transform(picture) if self.transform else picture), int(self.labels[index])


def open_image(path, read=read_bytes):
    """The LazyImage in an image file, of any kind that Pillow reads, or in an .npy file.

    Args:
        read: path -> the file's bytes, where they are not in a file of that name.
    Raises:
        UnreadableImage: the file is missing, damaged, not an image, not a regular file, or too large.
    """
    with decoding(path):
        data = read(path)
        stored = _jpeg_size(data)
        if stored:
            return LazyJpeg(path, data, stored)
        if path.lower().endswith(ARRAYS):
            return ArrayImage(images.decode_array(data), path)
        pixels, image = images.decode(data)
        return DecodedImage(pixels, path, data, image)


def _jpeg_size(data):
    """(height, width) of a JPEG file that simplejpeg can decode; None where Pillow shall see what there is."""
    if simplejpeg is None or not data.startswith(_MARK):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    most = Image.MAX_IMAGE_PIXELS or math.inf
    return (height, width) if colours in _COLOURS and height * width <= most else None


def _layout(data):
    """(where the height stands in a whole and sequential JPEG file, or None; whether there may be EXIF data).

    Most files have none, and Pillow's parser takes a tenth of the time that decoding takes.
    """
    place, found = 2, {}
    while data[place:place + 1] == b'\xff' and data[place + 1:place + 2] in _SEGMENTS:
        found[data[place + 1:place + 2]] = place
        place += 2 + int.from_bytes(data[place + 2:place + 4], 'big')
    if data[place:place + 2] != _SCAN:
        return None, True
    heights = [found[kind] + 5 for kind in _SEQUENTIAL if kind in found]
    return heights[0] if len(heights) == 1 and data.endswith(_END) else None, _APP1 in found


def _resized(pixels, size):
    """(H, W, C) array -> (*size, C) tensor of uint8 or, see ArrayImage, float32."""
    if pixels.dtype != np.uint8:
        return _channel_by_channel(pixels.astype(np.float32) * (1 / 257 if pixels.dtype.kind == 'u' else 255), size)
    if _RESIZES_BYTES:
        pixels = pixels if min(pixels.strides) > 0 else pixels.copy()
        # In this form the kernel neither reads nor writes channel by channel.
        return _interpolate(torch.from_numpy(pixels)[None].permute(0, 3, 1, 2), size)[0].permute(1, 2, 0).contiguous()
    if pixels.shape[2] != 3:
        return _channel_by_channel(pixels, size)
    return torch.from_numpy(np.array(Image.fromarray(np.ascontiguousarray(pixels)).resize(size[::-1], BICUBIC)))


def _channel_by_channel(pixels, size):
    """(H, W, C) array of uint8 or float32 -> (*size, C) tensor, as Pillow resizes a grey image of that type."""
    channels = [Image.fromarray(np.ascontiguousarray(channel)).resize(size[::-1], BICUBIC)
                for channel in np.moveaxis(pixels, -1, 0)]
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in channels], axis=-1))


def _interpolate(images, size):
    return F.interpolate(images, size=size, mode='bicubic', align_corners=False, antialias=True)


def _resizes_bytes():
    """Whether this PyTorch has the integer bicubic kernel of Pillow's kind."""
    try:
        return _interpolate(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), (2, 2)).dtype == torch.uint8
    except (TypeError, RuntimeError):
        return False


_RESIZES_BYTES = _resizes_bytes()
