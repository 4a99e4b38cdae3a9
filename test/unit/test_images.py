"""Image files of every sort: read right, or refused by the one exception that names the file."""
import os
import struct
import sys
import zlib
from pathlib import Path

import fuzzed_images
import numpy as np
import pytest
from conftest import execute
from PIL import Image

from util.errors import UserError
from util.images import UnreadableImage, read_image
from util.pictures import open_picture

SLOPE = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024 + 255        # 16 bits, from 255 to 64767
pytestmark = pytest.mark.filterwarnings('ignore::UserWarning:PIL')      # pytest undoes the program's own filters
READ = 'import sys; from util.images import read_image; print(read_image(sys.argv[1]).getpixel((0, 0)))'


def saved(path, image, **options):
    image.save(str(path), **options)
    return str(path)


def pixels(path):
    image = read_image(path)
    assert image.mode == 'RGB'
    return np.asarray(image).astype(int)


def refused(path):
    with pytest.raises(UnreadableImage) as caught:
        read_image(str(path))
    assert isinstance(caught.value, UserError) and caught.value.path == str(path)
    assert '\n' not in caught.value.reason
    assert str(caught.value).endswith(': cannot be read ({}); repair or remove it'.format(caught.value.reason))
    return caught.value.reason


def photo(size=(64, 48)):
    noise = np.random.RandomState(0).randint(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize(size, 3)


def png(width, height, bits, colours, rows):
    """A PNG from its parts; Pillow cannot write 16-bit colours."""
    def chunk(name, body):
        return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))
    header = struct.pack('>IIBBBBB', width, height, bits, colours, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


@pytest.mark.parametrize('mode', ['L', 'LA', 'RGBA', 'P', '1'])
def test_an_image_of_any_mode_keeps_its_colours(tmp_path, mode):
    assert (pixels(saved(tmp_path / 'x.png', Image.new('RGB', (8, 8), 'white').convert(mode))) == 255).all()


def test_transparency_is_dropped_and_the_colour_below_it_kept(tmp_path):
    assert (pixels(saved(tmp_path / 'x.png', Image.new('RGBA', (4, 4), (100, 50, 25, 0)))) == [100, 50, 25]).all()
    assert (pixels(saved(tmp_path / 'y.png', Image.new('LA', (4, 4), (100, 0)))) == 100).all()


@pytest.mark.parametrize('name', ['x.jpg', 'x.tif'])
def test_cmyk_is_read_as_the_colours_it_prints(tmp_path, name):
    path = saved(tmp_path / name, Image.new('CMYK', (16, 16), (10, 200, 50, 30)))
    expected = [(255 - ink) * (255 - 30) / 255 for ink in (10, 200, 50)]
    assert np.abs(pixels(path) - expected).max() <= 3
    assert (b'Adobe' in (tmp_path / name).read_bytes()) == (name == 'x.jpg')       # which stores the inks inverted


def test_a_palette_with_transparency_is_read_without_a_word(tmp_path):
    image = Image.new('P', (4, 4), 1)
    image.putpalette([10, 20, 30, 200, 100, 50] + [0] * 762)
    path = saved(tmp_path / 'x.png', image, transparency=b'\0\x80')
    run = execute([sys.executable, '-c', READ, path])
    assert (run.status, run.output) == (0, '(200, 100, 50)\n')


def test_a_large_photograph_is_read_without_a_word_and_a_bomb_is_refused(tmp_path):
    path = saved(tmp_path / 'x.png', Image.new('RGB', (100, 100), (1, 2, 3)))
    limited = 'from PIL import Image; Image.MAX_IMAGE_PIXELS = {}; ' + READ
    run = execute([sys.executable, '-c', limited.format(6000), path])
    assert (run.status, run.output) == (0, '(1, 2, 3)\n')
    bomb = tmp_path / 'bomb.png'
    bomb.write_bytes(png(20000, 20000, 8, 0, b'\0' * 1000))
    assert 'exceeds limit' in refused(bomb)


@pytest.mark.parametrize('name, image', [
    ('x.png', Image.fromarray(SLOPE)), ('x.tif', Image.fromarray(SLOPE)),
    ('b.tif', Image.fromarray(SLOPE.astype('>u2'))), ('i.tif', Image.fromarray(SLOPE.astype(np.int32)))],
    ids=['png', 'tiff', 'big endian', 'in 32 bits'])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, name, image):
    assert (pixels(saved(tmp_path / name, image)) == (SLOPE >> 8)[..., None]).all()


def test_16_bit_grey_of_a_portable_graymap_is_scaled(tmp_path):
    (tmp_path / 'x.pgm').write_bytes(b'P5 8 8 65535\n' + SLOPE.astype('>u2').tobytes())
    assert (pixels(str(tmp_path / 'x.pgm')) == (SLOPE >> 8)[..., None]).all()


def test_16_bit_colours_are_scaled(tmp_path):
    rows = b''.join(b'\0' + np.stack([row, row[::-1], row], axis=1).astype('>u2').tobytes() for row in SLOPE)
    (tmp_path / 'x.png').write_bytes(png(8, 8, 16, 2, rows))
    assert (pixels(str(tmp_path / 'x.png')) == np.stack([SLOPE, SLOPE[:, ::-1], SLOPE], axis=2) >> 8).all()


@pytest.mark.parametrize('white, scale', [(1, 255), (255, 1), (65535, 1 / 256)])
def test_floats_are_scaled_by_the_white_they_fit_under(tmp_path, white, scale):
    values = np.linspace(0, white, 64, dtype=np.float32).reshape(8, 8)
    assert np.abs(pixels(saved(tmp_path / 'x.tif', Image.fromarray(values)))[..., 0] - values * scale).max() <= 1


def test_numbers_beyond_any_white_are_spread_over_what_occurs(tmp_path):
    values = np.linspace(-1000, 10 ** 6, 64).astype(np.int32).reshape(8, 8)
    read = pixels(saved(tmp_path / 'x.tif', Image.fromarray(values)))
    assert read.min() == 0 and read.max() == 255 and (np.diff(read[..., 0].flatten()) > 0).all()
    assert (pixels(saved(tmp_path / 'y.tif', Image.fromarray(np.full((2, 2), -7, np.int32)))) == 0).all()


def test_pixels_that_are_not_numbers_are_refused(tmp_path):
    assert refused(saved(tmp_path / 'x.tif', Image.fromarray(np.full((2, 2), np.nan, np.float32)))) \
        == 'pixels that are not finite'


def exif(orientation):
    return b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01' + struct.pack('>HH', orientation, 0) + bytes(4)


@pytest.mark.parametrize('orientation, corner', [(1, (0, 0)), (2, (0, 1)), (3, (1, 1)), (4, (1, 0)), (5, (0, 0)),
                                                 (6, (0, 1)), (7, (1, 1)), (8, (1, 0)), (9, (0, 0))])
@pytest.mark.parametrize('name', ['x.jpg', 'x.png', 'x.tif', 'packed.tif'])
def test_an_image_is_turned_as_its_exif_says(tmp_path, name, orientation, corner):
    """The mark at the stored top left ends in the (bottom, right) corner that the EXIF standard names."""
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


def test_damaged_exif_does_not_make_an_image_unreadable(tmp_path):
    for i, data in enumerate([b'Exif\0\0MM\0*\xff\xff\xff\xff', b'Exif\0\0nonsense', exif(6)[:20]]):
        assert pixels(saved(tmp_path / '{}.jpg'.format(i), photo(), exif=data)).shape == (48, 64, 3)


@pytest.mark.parametrize('name', ['x.jpg', 'x.png', 'x.bmp', 'x.tif', 'x.ppm'])
def test_a_truncated_file_is_refused(tmp_path, name):
    saved(tmp_path / name, photo())
    data = (tmp_path / name).read_bytes()
    for part in (.2, .5, .9):
        (tmp_path / name).write_bytes(data[:int(len(data) * part)])
        assert refused(tmp_path / name)


@pytest.mark.parametrize('content, reason', [(b'', 'an empty file'), (b'<html>404</html>', 'damaged or no image'),
                                             (b'\xff\xd8\xff no picture', 'damaged or no image'),
                                             (bytes(4096), 'damaged or no image')])
def test_what_is_no_image_is_refused(tmp_path, content, reason):
    (tmp_path / 'x.jpg').write_bytes(content)
    assert refused(tmp_path / 'x.jpg') == reason


def test_an_image_without_pixels_is_refused(tmp_path):
    (tmp_path / 'x.png').write_bytes(png(0, 5, 8, 0, b'\0' * 5))
    assert refused(tmp_path / 'x.png')


def test_a_file_that_is_gone_and_a_disk_that_errs_are_refused(tmp_path):
    assert refused(tmp_path / 'gone.jpg') == 'No such file or directory'
    (tmp_path / 'x.jpg').symlink_to('/proc/self/mem')           # whose first page gives EIO to everybody
    assert refused(tmp_path / 'x.jpg') == 'Input/output error'


def test_a_pipe_is_refused_not_waited_for(tmp_path):
    os.mkfifo(str(tmp_path / 'x.jpg'))
    assert refused(tmp_path / 'x.jpg') == 'no regular file'


def test_an_interrupt_is_not_taken_for_a_damaged_file(tmp_path, monkeypatch):
    path = saved(tmp_path / 'x.png', photo())

    def interrupted(file):
        raise KeyboardInterrupt
    monkeypatch.setattr(Image, 'open', interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_image(path)


def read_all(paths):
    """How many files are read; the others are refused, or the test fails."""
    count = 0
    for path in paths:
        try:
            picture = open_picture(path)
            assert picture.part(0, 0, picture.height, picture.width, (8, 8)).shape == (8, 8, 3)
            count += 1
        except UnreadableImage as error:
            assert error.path == path and '\n' not in str(error)
    return count


def test_mutated_files_are_read_or_refused(tmp_path):
    paths = fuzzed_images.write(tmp_path, 150, seed=1)
    assert 15 < read_all(paths) < 75


def test_mutated_files_are_the_same_for_the_same_seed(tmp_path):
    contents = []
    for name in 'ab':
        (tmp_path / name).mkdir()
        contents.append([Path(path).read_bytes() for path in fuzzed_images.write(tmp_path / name, 30, seed=2)])
    assert contents[0] == contents[1] and len(set(contents[0])) > 20


def resident_bytes():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


@pytest.mark.slow
def test_reading_mutated_files_again_and_again_leaks_no_memory(tmp_path):
    paths = fuzzed_images.write(tmp_path, 150, seed=1)
    readable = read_all(paths)
    before = resident_bytes()
    for _ in range(20):
        read_all(paths)
    one_image = 160 * 120 * 3
    assert resident_bytes() - before < 20 * readable * one_image / 4
