"""Reconstruction grids."""
import numpy as np
import pytest
import torch
from conftest import nano_mae
from PIL import Image

from util.errors import UserError
from util.models.reconstruction import reconstruct
from util.tools import visualize


def drawn(command, output, *flags):
    """The image that a tool writes."""
    command.main(['--output', str(output), *[str(flag) for flag in flags]])
    with Image.open(str(output)) as picture:
        picture.load()
        return picture


@pytest.mark.compat
def test_visible_patches_are_the_originals_and_masked_ones_grey():
    imgs = torch.randn(2, 3, 32, 32)
    masked, predicted, reconstructed = reconstruct(nano_mae().eval(), imgs, .75)
    shown = masked != 0
    assert shown.float().mean() == pytest.approx(.25)
    assert torch.equal(reconstructed[shown], imgs[shown])
    assert torch.equal(predicted[~shown], reconstructed[~shown])
    assert (predicted != imgs).float().mean() > .9


@pytest.mark.compat
def test_norm_pix_loss_predictions_are_denormalised_by_patch_statistics():
    net, imgs = nano_mae(norm_pix_loss=True).eval(), torch.randn(2, 3, 32, 32) * 5 + 3
    for parameter in net.decoder_pred.parameters():
        torch.nn.init.zeros_(parameter)
    _, _, reconstructed = reconstruct(net, imgs, .75)
    mean = net.patchify(imgs).mean(dim=-1, keepdim=True)
    patches = net.patchify(reconstructed)
    hidden = patches.var(dim=-1) < 1e-6
    assert hidden.float().mean() == pytest.approx(.75)
    assert torch.allclose(patches[hidden], mean.expand_as(patches)[hidden], atol=1e-4)


def test_images_of_any_type_are_reconstructed_and_unreadable_ones_skipped(images, pretrained, tmp_path, capsys):
    (tmp_path / 'broken.jpg').write_bytes(b'')
    for kind in (np.uint8, np.float32):
        np.save(str(tmp_path / (kind.__name__ + '.npy')), np.full((40, 40, 3), .5, np.float32).astype(kind))
    picture = drawn(visualize, tmp_path / 'x.png', '--resume', pretrained / 'checkpoint-0.pth', '--count', 22,
                    images / 'val', *tmp_path.iterdir())
    assert picture.size == (660, 17 + 21 * 164 - 4) and len(set(picture.tobytes())) > 50
    assert str(tmp_path / 'broken.jpg') in capsys.readouterr().err


def test_a_classifier_checkpoint_is_refused(tmp_path, images):
    torch.save({'model': {}, 'args': {'model': 'vit_base_patch16'}}, str(tmp_path / 'x.pth'))
    with pytest.raises(UserError, match='main_pretrain.py'):
        drawn(visualize, tmp_path / 'y.png', '--resume', tmp_path / 'x.pth', images)
