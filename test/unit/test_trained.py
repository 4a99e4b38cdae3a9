"""Models from checkpoints alone."""
import pytest
import torch
from conftest import NANO

import main_finetune
import models_mae
from util import checkpoint_file, encoder, trained
from util.arguments import parse_finetune
from util.errors import UserError


def test_weights_of_other_channels_that_say_no_mean_are_refused(tmp_path):
    model = models_mae.mae_vit_nano_patch16(img_size=32, patch_size=8, in_chans=4)
    torch.save(model.state_dict(), str(tmp_path / 'x.pth'))
    with pytest.raises(UserError, match='^{}: .*mean and std'.format(tmp_path / 'x.pth')):
        trained.load_either(str(tmp_path / 'x.pth'))


@pytest.mark.parametrize('pool', ['--global_pool', '--cls_token'])
def test_a_classifier_comes_back_with_its_classes_and_logits(tmp_path, pool):
    args = parse_finetune(['--model', 'vit_nano_patch16', pool, *NANO, '--data_path', str(tmp_path)])
    model = main_finetune.build_model(args, classes=3).eval()
    checkpoint_file.save(str(tmp_path / 'x.pth'), {'model': model.state_dict(), 'args': vars(args),
                                                   'classes': ['cat', 'cow', 'dog']})
    again, flags, classes = trained.load_either(str(tmp_path / 'x.pth'))
    imgs = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(imgs), again(imgs)) and flags['patch_size'] == 8 and classes == ['cat', 'cow', 'dog']
    with pytest.raises(UserError, match='x.pth: .*main_pretrain.py'):
        trained.load_autoencoder(str(tmp_path / 'x.pth'))


def test_an_autoencoder_encodes_whole_images_as_with_nothing_hidden():
    model = models_mae.mae_vit_nano_patch16(img_size=32, patch_size=8).eval()
    imgs = torch.randn(2, 3, 32, 32)
    latent = model.forward_encoder(model.patchify(imgs), torch.arange(16).expand(2, -1))
    assert torch.allclose(encoder.pooled(model, imgs, 'cls'), latent[:, 0], atol=1e-5)
    assert torch.allclose(encoder.pooled(model, imgs), latent[:, 1:].mean(dim=1), atol=1e-5)
