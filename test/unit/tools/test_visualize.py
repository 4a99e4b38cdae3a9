"""Reconstruction grids and attention maps."""
import numpy as np
import pytest
import torch
from PIL import Image

import models_mae
import models_vit
from util.data.transforms import Normalize
from util.errors import UserError
from util.models import features
from util.models.reconstruction import reconstruct
from util.tools import attention, visualize
from util.tools.attention import attention_maps, attention_weights

SIZE = {'img_size': 32, 'patch_size': 8}


def autoencoder(**options):
    torch.manual_seed(0)
    return models_mae.mae_vit_nano_patch16(**{**SIZE, **options}).eval()


def randomised(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=.1)
    return model.eval()


def drawn(command, output, *flags):
    """The image that a tool writes."""
    command.main(['--output', str(output), *[str(flag) for flag in flags]])
    with Image.open(str(output)) as picture:
        picture.load()
        return picture


@pytest.mark.compat
def test_visible_patches_are_the_originals_and_masked_ones_grey():
    imgs = torch.randn(2, 3, 32, 32)
    masked, predicted, reconstructed = reconstruct(autoencoder(), imgs, .75)
    shown = masked != 0
    assert shown.float().mean() == pytest.approx(.25)
    assert torch.equal(reconstructed[shown], imgs[shown])
    assert torch.equal(predicted[~shown], reconstructed[~shown])
    assert (predicted != imgs).float().mean() > .9


@pytest.mark.compat
def test_norm_pix_loss_predictions_are_denormalised_by_patch_statistics():
    net, imgs = autoencoder(norm_pix_loss=True), torch.randn(2, 3, 32, 32) * 5 + 3
    for parameter in net.decoder_pred.parameters():
        torch.nn.init.zeros_(parameter)
    _, _, reconstructed = reconstruct(net, imgs, .75)
    mean = net.patchify(imgs).mean(dim=-1, keepdim=True)
    patches = net.patchify(reconstructed)
    hidden = patches.var(dim=-1) < 1e-6
    assert hidden.float().mean() == pytest.approx(.75)
    assert torch.allclose(patches[hidden], mean.expand_as(patches)[hidden], atol=1e-4)


@pytest.mark.parametrize('size, expected', [((32, 64), (660, 97)), ((64, 32), (660, 177))])
def test_images_keep_their_aspect_ratio_below_titles(size, expected):
    net = autoencoder(img_size=size)
    assert visualize.reconstruction_grid(net, torch.randn(1, 3, *size), .75, 0, Normalize()).size == expected


def test_images_of_any_type_are_reconstructed_and_unreadable_ones_skipped(images, pretrained, tmp_path, capsys):
    (tmp_path / 'broken.jpg').write_bytes(b'')
    for kind in (np.uint8, np.float32):
        np.save(str(tmp_path / (kind.__name__ + '.npy')), np.full((40, 40, 3), .5, np.float32).astype(kind))
    picture = drawn(visualize, tmp_path / 'x.png', '--resume', pretrained / 'checkpoint-0.pth', '--count', 22,
                    images / 'val', *tmp_path.iterdir())
    assert picture.size == (660, 17 + 21 * 164 - 4) and len(set(picture.tobytes())) > 50
    assert str(tmp_path / 'broken.jpg') in capsys.readouterr().err


def test_seed_and_mask_ratio_determine_the_mask(images, pretrained, tmp_path):
    flags = '--resume', pretrained / 'checkpoint-0.pth', images, '--count', 1
    pictures = [drawn(visualize, tmp_path / 'x.png', *flags, *more).tobytes()
                for more in ([], ['--seed', 0], ['--seed', 1], ['--mask_ratio', .5])]
    assert pictures[0] == pictures[1] and len(set(pictures)) == 3


def test_a_classifier_checkpoint_is_refused(tmp_path, images):
    torch.save({'model': {}, 'args': {'model': 'vit_base_patch16'}}, str(tmp_path / 'x.pth'))
    with pytest.raises(UserError, match='main_pretrain.py'):
        drawn(visualize, tmp_path / 'y.png', '--resume', tmp_path / 'x.pth', images)


# Attention

@pytest.mark.parametrize('model, number', [(models_mae.mae_vit_nano_patch16, 1), (models_vit.vit_nano_patch16, 6)])
@pytest.mark.compat
@torch.no_grad()
def test_attention_weights_times_v_equal_the_output_of_the_block_s_attention(model, number):
    model, imgs, seen = randomised(model(**SIZE)), torch.randn(3, 3, 32, 32), []
    module = model.blocks[number - 1].attn
    weights = attention_weights(model, imgs, number)
    hook = module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    for _ in features.block_outputs(model, imgs):
        pass
    hook.remove()
    (tokens, output), = seen
    v = module.qkv(tokens).reshape(3, 17, 3, 4, 32)[:, :, 2].transpose(1, 2)
    assert torch.allclose(module.proj((weights @ v).transpose(1, 2).reshape(3, 17, 128)), output, atol=1e-5)
    assert torch.equal(attention_maps(model, imgs, number).flatten(2), weights[:, :, 0, 1:])
    patches = attention_maps(model, imgs, number, 'mean')
    assert torch.allclose(patches[1, 2, 3, 1], weights[1, 2, 1:, 1 + 13].mean())


def test_the_overlay_is_brightest_at_maximum_attention():
    weights = np.zeros((4, 4))
    weights[1, 2] = .3
    picture = np.array(attention.overlay(Image.new('RGB', (64, 64), 'grey'), weights), np.float32).sum(axis=2)
    row, column = np.unravel_index(picture.argmax(), picture.shape)
    assert (row // 16, column // 16) == (1, 2) and picture[-1, 0] == picture.min() < picture.max() / 2


@pytest.mark.parametrize('flags, size', [([], (388, 635)), (['--heads'], (1172, 635)),
                                         (['--count', '1', '--input_size', '64x16'], (100, 209))])
def test_the_figure_has_an_image_per_map(images, pretrained, tmp_path, flags, size):
    (tmp_path / '猫.jpg').write_bytes(next(images.glob('val/*/*')).read_bytes())        # which the font lacks
    picture = drawn(attention, tmp_path / 'a.png', '--resume', pretrained / 'checkpoint-0.pth', '--count', 3,
                    tmp_path / '猫.jpg', images / 'val', *flags)
    assert picture.size == size and len(set(picture.tobytes())) > 50


def test_block_and_query_change_the_figure_and_a_missing_block_is_an_error(images, pretrained, tmp_path):
    flags = '--resume', pretrained / 'checkpoint-0.pth', '--count', 1, images
    pictures = {drawn(attention, tmp_path / 'x.png', *flags, *more).tobytes()
                for more in ([], ['--query', 'mean'], ['--block', 2])}
    assert len(pictures) == 3
    with pytest.raises(UserError, match='--block 7: the model has 6 blocks'):
        drawn(attention, tmp_path / 'x.png', *flags, '--block', 7)


def test_the_default_query_of_a_global_pool_classifier_is_mean(images, tmp_path):
    model = models_vit.vit_nano_patch16(global_pool=True, num_classes=2, **SIZE)
    torch.save(model.state_dict(), str(tmp_path / 'x.pth'))
    default, mean = (drawn(attention, tmp_path / 'x.png', '--resume', tmp_path / 'x.pth', '--count', 1, images, *more)
                     for more in ([], ['--query', 'mean']))
    assert default.tobytes() == mean.tobytes()
