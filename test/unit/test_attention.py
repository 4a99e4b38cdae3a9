"""Attention weights are those that the block works with, and the picture shows them."""
import numpy as np
import pytest
import torch
from PIL import Image

import models_mae
import models_vit
from util import attention, encoder
from util.attention import attention_maps, attention_weights
from util.errors import UserError

SIZE = {'img_size': 32, 'patch_size': 8}


def randomised(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=.1)
    return model.eval()


@pytest.mark.parametrize('model, number', [(models_mae.mae_vit_nano_patch16, 1), (models_vit.vit_nano_patch16, 6)])
@pytest.mark.compat
@torch.no_grad()
def test_the_weights_times_v_are_what_the_attention_of_the_block_gives(model, number):
    model, imgs, seen = randomised(model(**SIZE)), torch.randn(3, 3, 32, 32), []
    module = model.blocks[number - 1].attn
    weights = attention_weights(model, imgs, number)
    hook = module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    for _ in encoder.block_outputs(model, imgs):
        pass
    hook.remove()
    (tokens, output), = seen
    v = module.qkv(tokens).reshape(3, 17, 3, 4, 32)[:, :, 2].transpose(1, 2)
    assert torch.allclose(module.proj((weights @ v).transpose(1, 2).reshape(3, 17, 128)), output, atol=1e-5)


@torch.no_grad()
def test_maps_are_the_rows_of_the_class_token_or_the_mean_of_the_others():
    model, imgs = randomised(models_vit.vit_nano_patch16(**SIZE)), torch.randn(2, 3, 32, 32)
    weights = attention_weights(model, imgs, 6)
    assert torch.equal(attention_maps(model, imgs, 6).flatten(2), weights[:, :, 0, 1:])
    assert torch.allclose(attention_maps(model, imgs, 6, 'mean')[1, 2, 3, 1], weights[1, 2, 1:, 1 + 13].mean())


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


def test_block_and_query_change_the_picture_and_one_that_is_not_there_is_named(images, pretrained, tmp_path):
    pictures, flags = set(), ['--resume', pretrained / 'checkpoint-0.pth', '--count', 1, images]
    for i, more in enumerate(([], ['--query', 'mean'], ['--block', 2])):
        show(*flags, '--output', tmp_path / str(i), *more)
        pictures.add((tmp_path / str(i)).read_bytes())
    assert len(pictures) == 3
    with pytest.raises(UserError, match='--block 7: the model has 6 blocks'):
        show(*flags, '--output', tmp_path / 'a', '--block', 7)


def test_a_classifier_of_the_mean_is_asked_what_its_patches_attend_to(images, tmp_path):
    model = models_vit.vit_nano_patch16(global_pool=True, num_classes=2, **SIZE)
    torch.save(model.state_dict(), str(tmp_path / 'x.pth'))
    for name, more in (('default', []), ('mean', ['--query', 'mean'])):
        show('--resume', tmp_path / 'x.pth', '--count', 1, images, '--output', tmp_path / name, *more)
    assert (tmp_path / 'default').read_bytes() == (tmp_path / 'mean').read_bytes()


def test_names_that_the_font_lacks_and_unreadable_images_do_no_harm(images, pretrained, tmp_path, capsys):
    (tmp_path / '猫.jpg').write_bytes(next(images.glob('val/*/*')).read_bytes())
    (tmp_path / 'b.jpg').write_bytes(b'')
    show('--resume', pretrained / 'checkpoint-0.pth', '--output', tmp_path / 'a.png', tmp_path)
    assert '1 of 2 images cannot be read' in capsys.readouterr().err
