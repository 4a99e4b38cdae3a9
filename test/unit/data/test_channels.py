"""Images of any number of channels, and their normalization by mean and standard deviation."""
import json
from argparse import Namespace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import FINETUNE, call
from PIL import Image

from util.config.input_flags import adopt_statistics, number_text, statistics
from util.config.train_flags import parse_finetune
from util.data import lazy_image
from util.data.datasets import labelled_set, pretraining_set
from util.data.image_files import UnreadableImage
from util.data.lazy_image import LazyImage, open_image
from util.data.loader import collate
from util.data.transforms import Normalize, evaluation_transform, finetuning_transform, pretraining_transform
from util.errors import UserError
from util.tools import dataset_stats, pack_shards


@pytest.fixture(scope='module')
def bands(tmp_path_factory):
    """Class folders of 5-channel uint16 arrays: two classes of different brightness."""
    folder, rng = tmp_path_factory.mktemp('bands'), np.random.RandomState(0)
    for split, count in (('train', 8), ('val', 3)):
        for label, name in enumerate(('dark', 'light')):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = 2000 * (1 + label) + 1000 * rng.rand(36, 44, 5)
                np.save(str(folder / split / name / '{}.npy'.format(i)), pixels.astype(np.uint16))
    return folder


def saved(folder, pixels, name='x.npy'):
    np.save(str(folder / name), pixels)
    return str(folder / name)


def ramp(channels=5, kind=np.uint8):
    """(40, 30, channels) array; each channel is a linear gradient of a different slope."""
    slope = np.linspace(0, 19, 40 * 30).reshape(40, 30, 1)
    return (slope * np.arange(1, channels + 1)).astype(kind)


@pytest.mark.parametrize('bytes_at_once', [True, False])
@pytest.mark.parametrize('channels', [1, 5])
def test_crop_of_array_equals_pillow_resize_per_channel(tmp_path, monkeypatch, channels, bytes_at_once):
    if bytes_at_once and not lazy_image._RESIZES_BYTES:
        pytest.skip('this PyTorch has no bicubic kernel for bytes')
    monkeypatch.setattr(lazy_image, '_RESIZES_BYTES', bytes_at_once)
    pixels = ramp(channels)
    part = open_image(saved(tmp_path, pixels.squeeze())).with_channels(channels).resized_crop(4, 2, 30, 20, (16, 24))
    expected = [np.asarray(Image.fromarray(pixels[4:34, 2:22, i].copy()).resize((24, 16), 3)) for i in range(channels)]
    assert part.dtype == torch.uint8 and part.shape == (16, 24, channels)
    assert abs(part.numpy().astype(int) - np.stack(expected, axis=-1)).max() <= 1


@pytest.mark.parametrize('kind, value, unit', [(np.uint16, 65535, 1), (np.float16, .5, .5), ('>u2', 257, 1 / 255)])
def test_arrays_of_more_than_8_bits_keep_their_precision(tmp_path, kind, value, unit):
    image = open_image(saved(tmp_path, np.full((8, 8, 2), value, kind))).with_channels(2)
    images = image.resized_crop(0, 0, 8, 8, (4, 4))[None]
    assert images.dtype == torch.float32
    assert Normalize(2, [0.], [1.])(images).flatten().tolist() == pytest.approx([unit] * 32, rel=1e-5)


@pytest.mark.parametrize('pixels', [
    np.zeros((5, 40), np.int64), np.full((4, 4, 2), np.nan, np.float32), np.zeros(7, np.uint8),
    np.zeros((0, 4, 2), np.uint8), np.zeros((4, 4, 5), object)])
def test_arrays_that_are_no_images_are_unreadable(tmp_path, pixels):
    with pytest.raises(UnreadableImage, match='x.npy'):
        open_image(saved(tmp_path, pixels))


@pytest.mark.parametrize('mode, ending, channels', [('RGBA', 'png', 4), ('RGB', 'jpg', 3)])
def test_image_files_are_rgb_or_grey(tmp_path, mode, ending, channels):
    path = str(tmp_path / ('x.' + ending))
    Image.fromarray(ramp(channels), mode).save(path)
    assert open_image(path).with_channels(3).resized_crop(0, 0, 40, 30, (40, 30)).shape == (40, 30, 3)
    for count in (4, 5):
        with pytest.raises(UnreadableImage, match='--in_chans'):
            pretraining_transform(32, count)(open_image(path))


def test_arrays_are_images_only_if_there_are_no_other_images(bands, tmp_path):
    assert len(pretraining_set(str(bands))) == 16 and labelled_set(str(bands), 'val').classes == ['dark', 'light']
    saved(tmp_path, ramp())
    assert len(pretraining_set(str(tmp_path))) == 1
    Image.fromarray(ramp(3)).save(str(tmp_path / 'y.png'))
    assert [pretraining_set(str(tmp_path)).name_of(0)[-5:], len(pretraining_set(str(tmp_path)))] == ['y.png', 1]


def test_arrays_survive_packing_into_tar_files(bands, tmp_path):
    args = pack_shards.parse_flags([str(bands), str(tmp_path / 'packed'), '--num_workers', '0'])
    assert pack_shards.pack(args, pack_shards.load_splits(args.source)) == 0
    transform = evaluation_transform([32, 40], 5)
    packed, plain = (labelled_set(str(folder), 'train', transform) for folder in (tmp_path / 'packed', bands))
    assert len(packed) == 16 and sorted(set(packed.labels)) == [0, 1]
    sums = [sorted(round(float(pixels.sum())) for pixels, _ in (dataset[i] for i in range(16)))
            for dataset in (packed, plain)]
    assert sums[0] == sums[1]
    with pytest.raises(UserError, match='--short_side: makes JPEG files'):
        pack_shards.load_splits(str(bands), 64)


def test_collate_converts_mixed_uint8_and_float_to_float():
    samples = [((torch.zeros(2, 2, 5, dtype=kind), 1), []) for kind in (torch.uint8, torch.float32)]
    (images, labels), _ = collate(samples)
    assert images.dtype == torch.float32 and labels.tolist() == [1, 1]


def test_colour_augmentation_needs_1_or_3_channels_of_8_bits(tmp_path):
    flags = [*FINETUNE, '--data_path', str(tmp_path), '--mean', '.5', '--std', '.2', '--in_chans']
    assert [parse_finetune([*flags, chans]).aa for chans in '135'] == ['rand-m9-mstd0.5-inc1'] * 2 + ['none']
    transform, bytes_, words = finetuning_transform(32, 1), *(LazyImage(np.atleast_3d(ramp(1, kind)), counts=(1,))
                                                             for kind in (np.uint8, np.uint16))
    assert transform(bytes_).shape == (32, 32, 1)
    with pytest.raises(UserError, match='--aa none'):
        transform(words)
    assert finetuning_transform(32, 1, aa='none')(words).dtype == torch.float32


def test_default_mean_and_std_are_imagenets():
    assert statistics(3) == ((.485, .456, .406), (.229, .224, .225)) and len(statistics(1)[0]) == 1
    assert statistics(3, [.5], [.1, .2, .3]) == ((.5, .5, .5), (.1, .2, .3))
    with pytest.raises(UserError, match='--in_chans 5: .* python -m util.tools.dataset_stats'):
        Normalize(5)


@pytest.mark.parametrize('given, saved_as, expected, message', [
    (None, [.3], [.3], '--mean 0.3 --std 0.3'), ([.3] * 3, [.3], [.3] * 3, ''),
    ([.4], None, [.4], '--mean 0.485 0.456 0.406')])
def test_mean_and_std_default_to_the_checkpoints(caplog, given, saved_as, expected, message):
    args = Namespace(in_chans=3, mean=given, std=given)
    adopt_statistics(args, {'in_chans': 3, 'mean': saved_as, 'std': saved_as}, 'x.pth')
    assert args.mean == expected and args.std == expected
    assert len(caplog.messages) == bool(message) and message in ''.join(caplog.messages)


@pytest.mark.parametrize('kind, unit', [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
def test_measured_statistics_weight_each_image_equally(tmp_path, kind, unit):
    rng = np.random.RandomState(0)
    images = [(rng.rand(side, 20, 5) * 250).astype(kind) for side in (10, 40)]
    for i, pixels in enumerate(images):
        saved(tmp_path, pixels, '{}.npy'.format(i))
    mean, std, count = dataset_stats.measure(pretraining_set(str(tmp_path), partial(dataset_stats.channel_moments, 5)))
    repeated = np.concatenate([np.repeat(pixels, 40 // len(pixels), axis=0) for pixels in images]).reshape(-1, 5) / unit
    assert count == 2 and mean == pytest.approx(repeated.mean(axis=0), rel=1e-5)
    assert std == pytest.approx(repeated.std(axis=0), rel=1e-4)


def test_unmeasurable_data_is_a_user_error(bands, tmp_path):
    with pytest.raises(UserError, match='none of the 16 images can be read'):
        dataset_stats.measure(pretraining_set(str(bands), partial(dataset_stats.channel_moments, 4)))
    saved(tmp_path, np.dstack([ramp(1), np.full((40, 30), 51, np.uint8)]))
    with pytest.raises(UserError, match=r'channel 1 \(counted from 0\) is 0.2 in all'):
        dataset_stats.measure(pretraining_set(str(tmp_path), partial(dataset_stats.channel_moments, 2)))


def test_printed_flags_are_those_of_a_training(bands):
    run = call('util.tools.dataset_stats', bands, '--in_chans', 5, '--num_workers', 0, '--images', 12)
    flags, numbers = run.output.strip().split('\n')[-2:]
    args = parse_finetune([*FINETUNE, '--data_path', str(bands), '--in_chans', '5', *flags.split()])
    numbers = json.loads(numbers)
    assert args.mean == pytest.approx(numbers['mean'], rel=1e-5) and numbers['images'] == 12
    assert [number_text(value) for value in (-.000012345678, 123456789., 0.)] == ['-0.0000123457', '123457000', '0']
