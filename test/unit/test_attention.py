"""Attention weights are those that the block works with, and the picture shows them."""
import numpy as np
import pytest
import torch
from PIL import Image

import models_mae
import models_vit
from util import attention, encoder
from util.attention import attention_maps, attention_weights, fitting_query
from util.errors import UserError

SIZE = {'img_size': 32, 'patch_size': 8}


def randomised(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=.1)
    return model.eval()


@pytest.mark.parametrize('model', [models_mae.mae_vit_nano_patch16(**SIZE), models_vit.vit_nano_patch16(**SIZE)])
@pytest.mark.parametrize('number', [1, 6])
@pytest.mark.compat
@torch.no_grad()
def test_the_weights_times_v_are_what_the_attention_of_the_block_gives(model, number):
    imgs, seen = torch.randn(3, 3, 32, 32), []
    module = randomised(model).blocks[number - 1].attn
    weights = attention_weights(model, imgs, number)
    hook = module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    for _ in encoder.block_outputs(model, imgs):
        pass
    hook.remove()
    (tokens, output), = seen
    v = module.qkv(tokens).reshape(3, 17, 3, 4, 32)[:, :, 2].transpose(1, 2)
    assert torch.allclose(module.proj((weights @ v).transpose(1, 2).reshape(3, 17, 128)), output, atol=1e-5)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(3, 4, 17), atol=1e-5)


@torch.no_grad()
def test_maps_are_the_rows_of_the_class_token_or_the_mean_of_the_others():
    model, imgs = randomised(models_vit.vit_nano_patch16(**SIZE)), torch.randn(2, 3, 32, 32)
    weights = attention_weights(model, imgs, 6)
    assert torch.equal(attention_maps(model, imgs, 6).flatten(2), weights[:, :, 0, 1:])
    assert torch.allclose(attention_maps(model, imgs, 6, 'mean')[1, 2, 3, 1], weights[1, 2, 1:, 1 + 13].mean())


def test_the_patches_ask_where_the_class_token_serves_nothing():
    for model, query in ((models_vit.vit_nano_patch16(global_pool=True), 'mean'),
                         (models_vit.vit_nano_patch16(), 'cls'), (models_mae.mae_vit_nano_patch16(), 'cls')):
        assert fitting_query(model) == query


def test_the_brightest_place_of_a_picture_is_that_of_most_attention():
    weights = np.zeros((4, 4))
    weights[1, 2] = .3
    picture = np.array(attention.coloured(Image.new('RGB', (64, 64), 'grey'), weights), np.float32).sum(axis=2)
    row, column = np.unravel_index(picture.argmax(), picture.shape)
    assert (row // 16, column // 16) == (1, 2) and picture[-1, 0] == picture.min() < picture.max() / 2


def show(*flags):
    attention.main(['--device', 'cpu', *[str(flag) for flag in flags]])


@pytest.mark.parametrize('flags, size', [([], (1182, 260)), (['--heads'], (1182, 690)),
                                         (['--count', '1', '--input_size', '64x16'], (400, 260))])
def test_the_picture_has_a_cell_for_each_map(images, pretrained, tmp_path, flags, size):
    show('--resume', pretrained / 'checkpoint-0.pth', '--output', tmp_path / 'a.png', '--count', 3, images / 'val',
         *flags)
    with Image.open(str(tmp_path / 'a.png')) as picture:
        assert picture.size == size and len(set(picture.tobytes())) > 50


def test_block_and_query_change_the_picture(images, pretrained, tmp_path):
    pictures = set()
    for i, flags in enumerate(([], ['--query', 'mean'], ['--block', 2], ['--input_size', 48])):
        picture = tmp_path / '{}.png'.format(i)
        show('--resume', pretrained / 'checkpoint-0.pth', '--output', picture, '--count', 1, images, *flags)
        pictures.add(picture.read_bytes())
    assert len(pictures) == len(list(tmp_path.iterdir())) == 4


def test_a_block_that_is_not_there_is_named(images, pretrained, tmp_path):
    with pytest.raises(UserError, match='--block 7: the model has 6 blocks'):
        show('--resume', pretrained / 'checkpoint-0.pth', '--output', tmp_path / 'a.png', images, '--block', 7)


def test_names_that_the_font_lacks_and_unreadable_images_do_no_harm(images, pretrained, tmp_path, capsys):
    (tmp_path / '猫.jpg').write_bytes(next(images.glob('val/*/*')).read_bytes())
    (tmp_path / 'b.jpg').write_bytes(b'')
    show('--resume', pretrained / 'checkpoint-0.pth', '--output', tmp_path / 'a.png', tmp_path)
    assert '1 of 2 images cannot be read' in capsys.readouterr().err
