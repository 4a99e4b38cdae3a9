"""The picture of reconstructions."""
import numpy as np
import pytest
import torch
from PIL import Image

import models_mae
from util import visualize
from util.errors import UserError
from util.transforms import Normalize


def model(**options):
    torch.manual_seed(0)
    return models_mae.mae_vit_nano_patch16(**{'img_size': 32, 'patch_size': 8, **options}).eval()


@pytest.mark.compat
def test_visible_patches_are_the_originals_and_hidden_ones_grey():
    imgs = torch.randn(2, 3, 32, 32)
    masked, predicted, reconstructed = visualize.reconstruct(model(), imgs, .75)
    shown = masked != 0
    assert shown.float().mean() == pytest.approx(.25)
    assert torch.equal(reconstructed[shown], imgs[shown])
    assert torch.equal(predicted[~shown], reconstructed[~shown])
    assert (predicted != imgs).float().mean() > .9


@pytest.mark.compat
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


@pytest.mark.parametrize('size, norm_pix_loss, expected', [
    ((32, 64), True, (660, 131)), ((32, 64), False, (660, 114)), ((64, 32), True, (660, 211))])
def test_images_keep_their_proportions_below_a_title_that_true_statistics_make_longer(size, norm_pix_loss, expected):
    net = model(img_size=size, norm_pix_loss=norm_pix_loss)
    assert visualize.picture(net, torch.randn(1, 3, *size), .75, 0, Normalize()).size == expected


def show(*flags):
    visualize.main([str(flag) for flag in flags])


def test_the_command_draws_images_of_any_kind_and_leaves_out_what_is_none(images, pretrained, tmp_path, capsys):
    (tmp_path / 'broken.jpg').write_bytes(b'')
    for kind in (np.uint8, np.float32):
        np.save(str(tmp_path / (kind.__name__ + '.npy')), np.full((40, 40, 3), .5, np.float32).astype(kind))
    show('--resume', pretrained / 'checkpoint-0.pth', '--output', tmp_path / 'x.png', '--count', 22, images / 'val',
         *tmp_path.iterdir())
    with Image.open(str(tmp_path / 'x.png')) as picture:
        assert picture.size == (660, 2 * 17 + 21 * 164 - 4)
        assert len(set(picture.tobytes())) > 50
    assert str(tmp_path / 'broken.jpg') in capsys.readouterr().err


def test_the_seed_and_the_ratio_choose_what_is_hidden(images, pretrained, tmp_path):
    flags = '--resume', pretrained / 'checkpoint-0.pth', images, '--count', 1, '--output', tmp_path / 'x.png'
    pictures = []
    for more in ([], ['--seed', 0], ['--seed', 1], ['--mask_ratio', .5]):
        show(*flags, *more)
        pictures.append((tmp_path / 'x.png').read_bytes())
    assert pictures[0] == pictures[1] and len(set(pictures)) == 3


def test_a_checkpoint_of_another_kind_is_refused(tmp_path, images):
    torch.save({'model': {}, 'args': {'model': 'vit_base_patch16'}}, str(tmp_path / 'x.pth'))
    with pytest.raises(UserError, match='main_pretrain.py'):
        show('--resume', tmp_path / 'x.pth', '--output', tmp_path / 'y.png', images)
