"""Lazy images: crops by every decoder, compared with Pillow."""
import numpy as np
import pytest
from PIL import Image

from util.data import lazy_image
from util.data.image_files import decode, read_bytes
from util.data.lazy_image import LazyImage, LazyJpeg, open_image

pytestmark = pytest.mark.compat         # kernels and JPEG libraries differ between the generations
needs_simplejpeg = pytest.mark.skipif(lazy_image.simplejpeg is None, reason='simplejpeg is not installed')
LIKE_PILLOW = 2     # grey levels; 0.1 except for Pillow 8, which has a different JPEG library


def photo(width=96, height=72):
    """Smooth colours, as in photographs; JPEG compression would distort noise."""
    noise = np.random.RandomState(0).randint(0, 256, (9, 12, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((width, height), 3)


def saved(folder, image, name='x.jpg', orientation=None, **options):
    if orientation:
        exif = image.getexif()
        exif[0x0112] = orientation
        options['exif'] = exif.tobytes()
    image.save(str(folder / name), **{'quality': 90, **options})
    return str(folder / name)


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
    path = saved(tmp_path, photo().convert(mode), name, **options)
    assert difference(path, (5, 11, 50, 61), (32, 40)) < LIKE_PILLOW
    if lazy_image.simplejpeg and name == 'x.jpg' and mode != 'CMYK':
        assert isinstance(open_image(path), LazyJpeg)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('scale', [1, 4])
def test_crop_of_an_oriented_image(tmp_path, orientation, scale):
    path = saved(tmp_path, photo(96 * scale, 72 * scale), orientation=orientation)
    image = open_image(path)
    assert (image.height, image.width) == decode(read_bytes(path))[0].shape[:2]
    assert difference(path, (8 * scale, 4 * scale, 40 * scale, 60 * scale), (20, 30)) < 2


@needs_simplejpeg
@pytest.mark.parametrize('before', [b'\xff\xfe\0\x06\xff\xda\0\0', b'\xff'], ids=['a comment', 'a byte of padding'])
def test_exif_orientation_is_found_after_other_segments(tmp_path, before):
    path = tmp_path / 'x.jpg'
    saved(tmp_path, photo(), orientation=6)
    path.write_bytes(path.read_bytes()[:2] + before + path.read_bytes()[2:])
    image = open_image(str(path))
    assert isinstance(image, LazyJpeg) and (image.width, image.height) == (72, 96)


@needs_simplejpeg
@pytest.mark.parametrize('scale', [2, 4, 8])
def test_crop_at_reduced_scale_is_within_two_grey_levels(tmp_path, scale):
    path = saved(tmp_path, photo(101 * scale, 75 * scale))
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
    path, size = saved(tmp_path, photo(960, 720), **options), (192 // scale, 256 // scale)
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
    saved(tmp_path, photo(), **options)
    path.write_bytes(path.read_bytes() + ending)
    assert decoded(str(path), (0, 0, 20, 20), (20, 20), monkeypatch)[1] == (72, 96, 3)


@pytest.mark.parametrize('orientation', [1, 3])
@pytest.mark.parametrize('box', [(0, 0, 757, 1003), (1, 2, 750, 1000), (8, 16, 744, 984)])
def test_crop_edges_that_are_not_multiples_of_the_scale(tmp_path, orientation, box):
    path = saved(tmp_path, photo(1003, 757), orientation=orientation)
    assert difference(path, box, (24, 32)) < LIKE_PILLOW


def test_pillow_decodes_jpeg_without_simplejpeg(tmp_path, monkeypatch):
    monkeypatch.setattr(lazy_image, 'simplejpeg', None)
    path = saved(tmp_path, photo())
    assert type(open_image(path)) is LazyImage and difference(path, (5, 11, 50, 61), (32, 40)) < 1
