"""Models from checkpoints alone."""
import pytest
import torch

import models_mae
from util import encoder, trained
from util.errors import UserError


def test_weights_of_other_channels_that_say_no_mean_are_refused(tmp_path):
    model = models_mae.mae_vit_nano_patch16(img_size=32, patch_size=8, in_chans=4)
    torch.save(model.state_dict(), str(tmp_path / 'x.pth'))
    with pytest.raises(UserError, match='^{}: .*mean and std'.format(tmp_path / 'x.pth')):
        trained.load_either(str(tmp_path / 'x.pth'))


def test_an_autoencoder_encodes_whole_images_as_with_nothing_hidden():
    model = models_mae.mae_vit_nano_patch16(img_size=32, patch_size=8).eval()
    imgs = torch.randn(2, 3, 32, 32)
    latent = model.forward_encoder(model.patchify(imgs), torch.arange(16).expand(2, -1))
    assert torch.allclose(encoder.pooled(model, imgs, 'cls'), latent[:, 0], atol=1e-5)
    assert torch.allclose(encoder.pooled(model, imgs), latent[:, 1:].mean(dim=1), atol=1e-5)
