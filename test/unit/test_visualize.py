"""The picture of reconstructions."""
import sys

import numpy as np
import pytest
import torch
from conftest import execute
from PIL import Image

import models_mae
from util import transforms, visualize


def model(**options):
    torch.manual_seed(0)
    return models_mae.mae_vit_nano_patch16(img_size=32, patch_size=8, **options).eval()


def test_visible_patches_are_the_originals_and_hidden_ones_grey():
    imgs = torch.randn(2, 3, 32, 32)
    masked, predicted, reconstructed = visualize.reconstruct(model(), imgs, .75)
    shown = masked != 0
    assert shown.float().mean() == pytest.approx(.25)
    assert torch.equal(reconstructed[shown], imgs[shown])
    assert not torch.equal(reconstructed, imgs)
    assert torch.equal(predicted[~shown], reconstructed[~shown])
    assert (predicted[shown] != imgs[shown]).float().mean() > .9


def test_a_prediction_under_norm_pix_loss_gets_its_patch_statistics_back():
    net, imgs = model(norm_pix_loss=True), torch.randn(2, 3, 32, 32) * 5 + 3
    for parameter in net.decoder_pred.parameters():
        torch.nn.init.zeros_(parameter)
    _, _, reconstructed = visualize.reconstruct(net, imgs, .75)
    mean = net.patchify(imgs).mean(dim=-1, keepdim=True)
    patches = net.patchify(reconstructed)
    hidden = patches.var(dim=-1) < 1e-6
    assert hidden.float().mean() == pytest.approx(.75)
    assert torch.allclose(patches[hidden], mean.expand_as(patches)[hidden], atol=1e-4)


def test_the_picture_says_where_the_true_statistics_of_patches_are_used():
    said = [[line for column in visualize.titles(model(norm_pix_loss=on)) for line in column] for on in (False, True)]
    assert [lines.count('(true patch statistics)') for lines in said] == [0, 2]


@pytest.mark.parametrize('size, expected', [((32, 64), (660, 143)), ((64, 32), (620, 223))])
def test_images_keep_their_proportions(size, expected):
    net = models_mae.mae_vit_nano_patch16(img_size=size, patch_size=8, norm_pix_loss=True).eval()
    assert visualize.picture(net, torch.randn(1, 3, *size), .75).size == expected


def test_an_image_survives_normalising_and_back(images):
    path = next(images.glob('val/*/*.jpg'))
    pixels = transforms.evaluation_transform(32)(visualize.open_picture(str(path)))
    again = transforms.to_bytes(visualize.to_image(transforms.Normalize()(pixels[None])[0]))
    assert torch.equal(pixels, again)


def test_the_command_draws_a_picture_of_a_trained_model(images, pretrained, tmp_path):
    target = tmp_path / 'picture.png'
    run = execute([sys.executable, '-m', 'util.visualize', '--resume', pretrained / 'checkpoint-0.pth', '--output',
                   target, '--count', 3, images / 'val'])
    assert run.status == 0, run.output
    with Image.open(str(target)) as picture:
        assert picture.size == (660, 534)
        assert len(set(picture.tobytes())) > 50


@pytest.mark.parametrize('flags, said', [
    (['--mask_ratio', '2'], 'argument --mask_ratio: '), (['--mask', '.5'], 'unknown argument --mask'),
    (['--output', 'missing/x.png'], 'argument --output: there is no folder '),
    (['--resume', 'missing.pth'], 'argument --resume: missing.pth ')], ids=lambda value: str(value))
def test_a_wrong_flag_is_one_line(images, pretrained, flags, said, tmp_path):
    run = execute([sys.executable, '-m', 'util.visualize', '--resume', pretrained / 'checkpoint-0.pth', '--output',
                   tmp_path / 'x.png', images, *flags])
    assert (run.status, run.output.count('\n')) == (2, 1) and said in run.output


def test_a_file_that_is_there_is_renamed_and_not_overwritten(images, pretrained, tmp_path):
    photo = tmp_path / 'photo.png'
    photo.write_bytes(b'a photograph that the shell has put behind --output')
    run = execute([sys.executable, '-m', 'util.visualize', '--resume', pretrained / 'checkpoint-0.pth', '--output',
                   photo, '--count', 1, images / 'val'])
    assert run.status == 0, run.output
    kept, = tmp_path.glob('photo.*-*.png')
    assert kept.read_bytes().startswith(b'a photograph') and photo.read_bytes().startswith(b'\x89PNG')


def test_arrays_of_bytes_and_of_floats_make_one_picture(pretrained, tmp_path):
    for kind in (np.uint8, np.float32):
        np.save(str(tmp_path / (kind.__name__ + '.npy')), np.full((40, 40, 3), .5, np.float32).astype(kind))
    run = execute([sys.executable, '-m', 'util.visualize', '--resume', pretrained / 'checkpoint-0.pth', '--output',
                   tmp_path / 'x.png', tmp_path])
    assert run.status == 0 and (tmp_path / 'x.png').exists(), run.output


def test_a_checkpoint_of_another_kind_is_refused(tmp_path, images):
    torch.save({'model': {}, 'args': {'model': 'vit_base_patch16'}}, str(tmp_path / 'x.pth'))
    run = execute([sys.executable, '-m', 'util.visualize', '--resume', tmp_path / 'x.pth', '--output', 'y.png', images])
    assert (run.status, run.output.count('\n')) == (2, 1) and 'is no checkpoint of main_pretrain.py' in run.output
