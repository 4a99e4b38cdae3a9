"""Decoding of image files and crops of them: correct pixels by every decoder, or UnreadableImage with the path."""
import errno
import os
import struct
import zlib

import fuzzed_images
import numpy as np
import pytest
from PIL import Image

from util.data import image_files, lazy_image
from util.data.image_files import UnreadableImage, decode, read_bytes
from util.data.lazy_image import LazyJpeg, open_image
from util.errors import SystemFailure

SLOPE = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024 + 255        # 16 bits, from 255 to 64767
pytestmark = [pytest.mark.compat,           # other generations have other releases of Pillow
              pytest.mark.filterwarnings('ignore::UserWarning:PIL')]    # pytest undoes the program's own filters
needs_simplejpeg = pytest.mark.skipif(lazy_image.simplejpeg is None, reason='simplejpeg is not installed')
LIKE_PILLOW = 2     # grey levels; 0.1 except for Pillow 8, which has a different JPEG library


def saved(path, image, **options):
    image.save(str(path), **options)
    return str(path)


def pixels(path):
    image = open_image(path)
    size = image.height, image.width
    return image.resized_crop(0, 0, *size, size).numpy().astype(int)


def failure_reason(path):
    with pytest.raises(UnreadableImage) as caught:
        open_image(str(path)).resized_crop(0, 0, 8, 8, (8, 8))
    assert caught.value.path == str(path) and '\n' not in caught.value.reason
    return caught.value.reason


def photo(width=96, height=72):
    """Smooth colours, as in photographs; JPEG compression would distort noise."""
    noise = np.random.RandomState(0).randint(0, 256, (9, 12, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((width, height), 3)


def png(width, height, bits, colours, rows):
    """A PNG from its parts; Pillow cannot write 16-bit colours."""
    def chunk(name, body):
        return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))
    header = struct.pack('>IIBBBBB', width, height, bits, colours, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


def test_modes_convert_to_rgb_without_transparency(tmp_path):
    for mode in ('LA', 'P', '1'):
        assert (pixels(saved(tmp_path / 'x.png', Image.new('RGB', (8, 8), 'white').convert(mode))) == 255).all()
    assert (pixels(saved(tmp_path / 'x.png', Image.new('RGBA', (4, 4), (100, 50, 25, 0)))) == [100, 50, 25]).all()


def test_16_bit_and_wider_integers_are_scaled_not_clipped(tmp_path):
    (tmp_path / 'x.pgm').write_bytes(b'P5 8 8 65535\n' + SLOPE.astype('>u2').tobytes())
    for path in (saved(tmp_path / 'b.tif', Image.fromarray(SLOPE.astype('>u2'))), str(tmp_path / 'x.pgm')):
        assert (pixels(path) == (SLOPE >> 8)[..., None]).all(), path
    rows = b''.join(b'\0' + np.stack([row, row[::-1], row], axis=1).astype('>u2').tobytes() for row in SLOPE)
    (tmp_path / 'c.png').write_bytes(png(8, 8, 16, 2, rows))
    assert (pixels(str(tmp_path / 'c.png')) == np.stack([SLOPE, SLOPE[:, ::-1], SLOPE], axis=2) >> 8).all()


def test_floats_are_scaled_by_their_white_level_and_other_ranges_by_minimum_and_maximum(tmp_path):
    for white, scale in ((1, 255), (255, 1), (65535, 1 / 256)):
        values = np.linspace(0, white, 64, dtype=np.float32).reshape(8, 8)
        assert np.abs(pixels(saved(tmp_path / 'x.tif', Image.fromarray(values)))[..., 0] - values * scale).max() <= 1
    values = np.linspace(-1000, 10 ** 6, 64).astype(np.int32).reshape(8, 8)
    read = pixels(saved(tmp_path / 'x.tif', Image.fromarray(values)))
    assert read.min() == 0 and read.max() == 255 and (np.diff(read[..., 0].flatten()) > 0).all()
    assert (pixels(saved(tmp_path / 'y.tif', Image.fromarray(np.full((2, 2), -7, np.int32)))) == 0).all()
    assert failure_reason(saved(tmp_path / 'z.tif', Image.fromarray(np.full((2, 2), np.nan, np.float32))))


@pytest.mark.parametrize('white, scale', [(255, 1), (4095, 255 / 4095), (65535, 1 / 256)])
def test_range_of_integers_is_the_lowest_that_holds_all_values(tmp_path, white, scale):
    values = np.linspace(0, .95 * white, 64).reshape(8, 8)
    for name, kind in (('x.tif', np.int32), ('x.png', np.uint16), ('y.tif', np.uint16)):
        read = pixels(saved(tmp_path / name, Image.fromarray(values.astype(kind))))
        assert np.abs(read[..., 0] - values.astype(kind) * scale).max() <= 1, name
    assert open_image(str(tmp_path / 'x.png'), white=65535).resized_crop(0, 0, 8, 8, (8, 8)).max() == int(
        .95 * white) >> 8


def test_too_many_open_files_are_no_fault_of_an_image(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(errno.EMFILE, 'Too many open files', path)
    with pytest.raises(SystemFailure, match='ulimit -n'):
        open_image('x.jpg', read=fail)


def exif(orientation):
    return b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01' + struct.pack('>HH', orientation, 0) + bytes(4)


@pytest.mark.parametrize('orientation, corner', [(1, (0, 0)), (2, (0, 1)), (3, (1, 1)), (4, (1, 0)), (5, (0, 0)),
                                                 (6, (0, 1)), (7, (1, 1)), (8, (1, 0)), (9, (0, 0))])
@pytest.mark.parametrize('name', ['x.jpg', 'x.png', 'x.tif', 'packed.tif'])
def test_exif_orientation_is_applied(tmp_path, name, orientation, corner):
    """The mark in the stored top left corner moves to the (bottom, right) corner of the EXIF standard."""
    stored = Image.new('RGB', (32, 16), 'black')
    stored.paste((255, 255, 255), (0, 0, 8, 8))
    options = {'tiffinfo': {0x112: orientation}} if name.endswith('tif') else {'exif': exif(orientation)}
    if name == 'packed.tif' and orientation <= 8:
        options['compression'] = 'tiff_lzw'         # which libtiff reads, and writes with a valid orientation only
    read = pixels(saved(tmp_path / name, stored, **options))
    assert read.shape[:2] == ((32, 16) if 5 <= orientation <= 8 else (16, 32))
    bright = [(bottom, right) for bottom in (0, 1) for right in (0, 1)
              if read[-1 if bottom else 0, -1 if right else 0].mean() > 200]
    assert bright == [corner]


def test_damaged_exif_is_ignored(tmp_path):
    for i, data in enumerate([b'Exif\0\0MM\0*\xff\xff\xff\xff', b'Exif\0\0nonsense', exif(6)[:20]]):
        assert pixels(saved(tmp_path / '{}.jpg'.format(i), photo(), exif=data)).shape == (72, 96, 3)


@pytest.mark.parametrize('content', [b'', b'<html>404</html>', b'\xff\xd8\xff no picture', png(0, 5, 8, 0, b'\0' * 5),
                                     png(20000, 20000, 8, 0, b'\0' * 1000), 'JPEG', 'PNG', 'TIFF'])
def test_non_images_and_truncated_files_are_unreadable(tmp_path, content):
    if isinstance(content, str):
        saved(tmp_path / 'x.jpg', photo(), format=content)
        content = (tmp_path / 'x.jpg').read_bytes()[:-100]
    (tmp_path / 'x.jpg').write_bytes(content)
    assert failure_reason(tmp_path / 'x.jpg')


def npy(shape, version=(1, 0)):
    """An .npy file with 100 bytes of data and any shape in its header."""
    text = repr({'descr': '|u1', 'fortran_order': False, 'shape': shape}).encode() + b'\n'
    return b'\x93NUMPY' + bytes(version) + len(text).to_bytes(2 * version[0], 'little') + text + bytes(100)


@pytest.mark.parametrize('shape', [(1000, 1000, 2000), (2 ** 62, 4, 4), (-1, 5, 5)])
def test_array_header_beyond_the_file_allocates_no_memory(tmp_path, shape):
    for version in ((1, 0), (2, 0)):
        (tmp_path / 'x.npy').write_bytes(npy((4, 5, 5), version))
        assert open_image(str(tmp_path / 'x.npy')).with_channels(5).height == 4
        (tmp_path / 'x.npy').write_bytes(npy(shape, version))
        before = resident_bytes()
        with pytest.raises(UnreadableImage):
            open_image(str(tmp_path / 'x.npy')).with_channels(2)
        assert resident_bytes() - before < 10 ** 8


def test_special_missing_and_oversized_files_are_unreadable(tmp_path, monkeypatch):
    (tmp_path / 'errs.jpg').symlink_to('/proc/self/mem')           # whose first page gives EIO to everybody
    (tmp_path / 'device.npy').symlink_to('/dev/zero')
    os.mkfifo(str(tmp_path / 'pipe.jpg'))
    (tmp_path / 'folder.png').mkdir()
    monkeypatch.setattr(image_files, 'MAX_IMAGE_BYTES', 1000)
    (tmp_path / 'large.png').write_bytes(bytes(1001))
    for name in ('gone.jpg', 'errs.jpg', 'device.npy', 'pipe.jpg', 'folder.png', 'large.png'):
        assert failure_reason(tmp_path / name)


def resident_bytes():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def test_fuzzed_files_decode_alike_with_and_without_simplejpeg_and_leak_no_memory(tmp_path, monkeypatch):
    """test/bench/stress.py fuzzes thousands more. Results may differ only for headers with a wrong size."""
    paths, before = fuzzed_images.write(tmp_path, 150, seed=1), None
    for _ in range(6):
        outcomes = []
        for decoder in (lazy_image.simplejpeg, None):
            with monkeypatch.context() as patch:
                patch.setattr(lazy_image, 'simplejpeg', decoder)
                for path in paths:
                    try:
                        outcomes.append(open_image(path).resized_crop(0, 0, 1, 1, (1, 1)) is not None)
                    except UnreadableImage as error:
                        outcomes.append(False)
                        assert error.path == path and '\n' not in str(error)
        assert outcomes[:150] == outcomes[150:] and 15 < sum(outcomes[150:]) < 75
        before = before or resident_bytes()
    assert resident_bytes() - before < 10 ** 7


# Crops, compared with Pillow's

def difference(path, box, size):
    """Mean difference in grey levels between a crop and Pillow's crop and resize."""
    crop, (top, left, height, width) = open_image(path).resized_crop(*box, size=size), box
    assert tuple(crop.shape) == (*size, 3) and crop.is_contiguous()
    whole = Image.fromarray(decode(read_bytes(path))[0])
    expected = whole.crop((left, top, left + width, top + height)).resize(size[::-1], 3)
    return abs(crop.numpy().astype(int) - np.asarray(expected).astype(int)).mean()


@pytest.mark.parametrize('name, mode, options', [
    ('x.jpg', 'RGB', {'subsampling': 0}), ('x.jpg', 'RGB', {'subsampling': 2}), ('x.jpg', 'L', {}),
    ('x.jpg', 'CMYK', {}), ('x.webp', 'RGB', {})])
def test_crop_equals_pillows(tmp_path, name, mode, options):
    path = saved(tmp_path / name, photo().convert(mode), quality=90, **options)
    assert difference(path, (5, 11, 50, 61), (32, 40)) < LIKE_PILLOW
    if lazy_image.simplejpeg and name == 'x.jpg' and mode != 'CMYK':
        assert isinstance(open_image(path), LazyJpeg)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('scale', [1, 4])
def test_crop_of_an_oriented_image(tmp_path, orientation, scale):
    path = saved(tmp_path / 'x.jpg', photo(96 * scale, 72 * scale), quality=90, exif=exif(orientation))
    image = open_image(path)
    assert (image.height, image.width) == decode(read_bytes(path))[0].shape[:2]
    assert difference(path, (8 * scale, 4 * scale, 40 * scale, 60 * scale), (20, 30)) < 2


@needs_simplejpeg
@pytest.mark.parametrize('before', [b'\xff\xfe\0\x06\xff\xda\0\0', b'\xff'], ids=['a comment', 'a byte of padding'])
def test_exif_orientation_is_found_after_other_segments(tmp_path, before):
    path = tmp_path / 'x.jpg'
    saved(path, photo(), exif=exif(6))
    path.write_bytes(path.read_bytes()[:2] + before + path.read_bytes()[2:])
    image = open_image(str(path))
    assert isinstance(image, LazyJpeg) and (image.width, image.height) == (72, 96)


@needs_simplejpeg
@pytest.mark.parametrize('scale', [2, 4, 8])
def test_crop_at_reduced_scale_is_within_two_grey_levels(tmp_path, scale):
    path = saved(tmp_path / 'x.jpg', photo(101 * scale, 75 * scale), quality=90)
    box = (3 * scale, 5 * scale, 68 * scale, 72 * scale)
    denominator = open_image(path).scale_denominator
    assert denominator(*box[2:], size=(32, 32)) == scale == 2 * denominator(63 * scale, 72 * scale, size=(32, 32))
    assert difference(path, box, (32, 32)) < 2


def decoded(path, box, size, monkeypatch):
    """A crop, and the shape of the array that was decoded for it."""
    seen, decode = [], lazy_image.simplejpeg.decode_jpeg
    with monkeypatch.context() as patch:
        patch.setattr(lazy_image.simplejpeg, 'decode_jpeg',
                      lambda *args, **options: seen.append(decode(*args, **options)) or seen[-1])
        crop = open_image(path).resized_crop(*box, size=size)
    return crop, seen[0].shape


@needs_simplejpeg
@pytest.mark.parametrize('options, scale', [({'subsampling': 0}, 1), ({'subsampling': 2}, 2),
                                            ({'exif': b'Exif\0\0', 'optimize': True}, 1)])
def test_rows_below_the_crop_are_not_decoded(tmp_path, monkeypatch, options, scale):
    path, size = saved(tmp_path / 'x.jpg', photo(960, 720), quality=90, **options), (192 // scale, 256 // scale)
    box = (64, 100, 384, 512)
    crop, shape = decoded(path, box, size, monkeypatch)
    assert shape == (448 // scale, 960 // scale, 3)
    monkeypatch.setattr(lazy_image, '_parse_segments', lambda data: (None, True))
    whole, shape = decoded(path, box, size, monkeypatch)
    assert shape == (720 // scale, 960 // scale, 3) and (crop == whole).all()


@needs_simplejpeg
@pytest.mark.parametrize('options, ending', [({'progressive': True}, b''), ({}, b'appended')])
def test_progressive_files_and_trailing_bytes_are_decoded_completely(tmp_path, monkeypatch, options, ending):
    path = tmp_path / 'x.jpg'
    saved(path, photo(), **options)
    path.write_bytes(path.read_bytes() + ending)
    assert decoded(str(path), (0, 0, 20, 20), (20, 20), monkeypatch)[1] == (72, 96, 3)


@pytest.mark.parametrize('orientation', [1, 3])
@pytest.mark.parametrize('box', [(0, 0, 757, 1003), (1, 2, 750, 1000), (8, 16, 744, 984)])
def test_crop_edges_that_are_not_multiples_of_the_scale(tmp_path, orientation, box):
    path = saved(tmp_path / 'x.jpg', photo(1003, 757), quality=90, exif=exif(orientation))
    assert difference(path, box, (24, 32)) < LIKE_PILLOW
