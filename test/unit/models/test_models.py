"""The models against independent implementations, transformers' and timm's, and the paper."""
import math
from functools import partial

import pytest
import timm
import torch
import transformers
from conftest import nano_vit

import models_mae
import models_vit
from main_finetune import freeze
from util.checkpoints import hugging_face, pth_file
from util.compat import accepts
from util.errors import UserError
from util.models import features
from util.models.activation_checkpointing import checkpointed, directly
from util.models.build import build_autoencoder
from util.models.positions import resize_positions, sincos_2d
from util.tools import export

pytestmark = pytest.mark.compat
NORM = partial(torch.nn.LayerNorm, eps=1e-6)
SIZE = {'img_size': 32, 'patch_size': 8, 'embed_dim': 48, 'depth': 3, 'num_heads': 4}
DECODER = {'decoder_embed_dim': 32, 'decoder_depth': 2, 'decoder_num_heads': 4}


def random_biases(model):
    """Randomize biases and norms, which are initialized to 0 and 1."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=.1)
    return model


def autoencoder(**options):
    torch.manual_seed(0)
    return random_biases(models_mae.MaskedAutoencoderViT(**{**SIZE, **DECODER, 'norm_layer': NORM, **options}))


def classifier(global_pool, **options):
    torch.manual_seed(0)
    return random_biases(models_vit.VisionTransformer(global_pool=global_pool, norm_layer=NORM, num_classes=7, **SIZE,
                                                      **options))


def drawn():
    """(images, noise) for four images."""
    return torch.randn(4, 3, 32, 32), torch.rand(4, 16)


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


# The masked autoencoder

@pytest.mark.parametrize('norm_pix_loss', [False, True])
@pytest.mark.parametrize('loss_only, run_block', [
    (False, directly), (True, directly), (True, checkpointed)])
def test_loss_prediction_mask_and_gradients_equal_those_of_transformers(tmp_path, norm_pix_loss, loss_only, run_block):
    flags = {'model': 'mae_vit_nano_patch16', 'input_size': 32, 'patch_size': 8, 'norm_pix_loss': norm_pix_loss}
    torch.manual_seed(0)
    model = random_biases(build_autoencoder(flags)).train()
    model.run_block = run_block
    pth_file.save(str(tmp_path / 'x.pth'), {'model': model.state_dict(), 'args': flags})
    export.export(str(tmp_path / 'x.pth'), 'hf', str(tmp_path / 'hf'))
    other = transformers.ViTMAEForPreTraining.from_pretrained(str(tmp_path / 'hf')).train()
    imgs, noise = drawn()
    found = model(imgs, .75, noise, loss_only)
    expected = other(pixel_values=imgs, noise=noise)
    if not loss_only:
        found, pred, mask = found
        assert relative(pred, expected.logits) < 1e-5 and torch.equal(mask, expected.mask)
    found.backward()
    expected.loss.backward()
    assert relative(found, expected.loss) < 1e-5
    gradients = hugging_face.translate({name: torch.zeros_like(p) if p.grad is None else p.grad
                                        for name, p in other.named_parameters()}, 'x',
                                       {'model_type': 'vit_mae'})['model']
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            difference = (parameter.grad - gradients[name]).abs().max()
            assert difference < 1e-5 * gradients[name].abs().max(), name


@pytest.mark.parametrize('norm_pix_loss', [False, True])
@pytest.mark.parametrize('mask_ratio, predict_ratio', [(.75, 1.), (.5, 1.), (.75, .4)])
def test_encoder_decoder_and_loss_of_the_published_class_compute_in_turn_what_forward_does(norm_pix_loss, mask_ratio,
                                                                                           predict_ratio):
    model, imgs = autoencoder(norm_pix_loss=norm_pix_loss, predict_ratio=predict_ratio), torch.randn(4, 3, 32, 32)
    torch.manual_seed(7)
    loss, pred, mask = model(imgs, mask_ratio)
    torch.manual_seed(7)
    latent, found_mask, ids_restore = model.forward_encoder(imgs, mask_ratio)
    assert latent.shape == (4, 1 + 16 * (1 - mask_ratio), 48) and torch.equal(found_mask, mask)
    found = model.forward_decoder(latent, ids_restore)
    assert relative(found, pred) < 1e-5 and relative(model.forward_loss(imgs, found, mask), loss) < 1e-5


@pytest.mark.parametrize('norm_pix_loss', [False, True])
def test_predict_ratio_takes_the_loss_over_the_next_patches_of_the_same_order(norm_pix_loss):
    model, (imgs, noise) = autoencoder(predict_ratio=.5, norm_pix_loss=norm_pix_loss), drawn()
    loss = model(imgs, .75, noise, loss_only=True)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    for parameter in model.parameters():
        parameter.grad = None
    total = 0.
    for img, order in zip(imgs, noise.argsort(dim=1).tolist()):        # by hand, one image after the other
        visible, predicted = order[:4], order[4:10]                    # 6 of the 12 hidden patches
        patches = model.patchify(img[None])[0]
        x = model.norm(in_blocks(model.blocks, torch.cat([
            model.cls_token[0] + model.pos_embed[0, :1],
            model.patch_embed(img[None])[0, visible] + model.pos_embed[0, 1:][visible]])))
        x = torch.cat([model.decoder_embed(x), model.mask_token[0].expand(6, -1)])
        x = x + model.decoder_pos_embed[0, [0] + [1 + i for i in visible + predicted]]
        pred = model.decoder_pred(model.decoder_norm(in_blocks(model.decoder_blocks, x)))[5:]
        target = patches[predicted]
        if norm_pix_loss:
            target = (target - target.mean(1, keepdim=True)) / (target.var(1, keepdim=True) + 1e-6) ** .5
        total = total + ((pred - target) ** 2).mean() / len(imgs)
    total.backward()
    assert relative(loss, total) < 1e-5
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert (parameter.grad - gradients[name]).abs().max() <= 1e-4 * gradients[name].abs().max(), name


def in_blocks(blocks, x):
    for block in blocks:
        x = block(x[None])[0]
    return x


@pytest.mark.parametrize('options', [{}, {'predict_ratio': 1.}])
def test_by_default_loss_and_gradients_are_bit_equal_to_those_over_all_masked_patches(options):
    model, (imgs, noise) = autoencoder(**options), drawn()
    patches, ids = model.patchify(imgs), noise.sort(dim=1)[1]
    pred = model.decode_shuffled(model.encode_visible(patches, ids[:, :4]), ids, hidden_only=True)
    found = []
    for loss in (model.loss_of_hidden(patches, pred, ids[:, 4:]), model(imgs, .75, noise, loss_only=True)):
        found.append([loss, *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])])
    assert all(map(torch.equal, *found))


def test_predict_ratio_1_is_the_default_and_no_ratio_draws_more_numbers():
    imgs, _ = drawn()
    found = []
    for options in ({}, {'predict_ratio': 1.}, {'predict_ratio': .5}):
        model = autoencoder(**options)
        torch.manual_seed(1)
        found.append((model(imgs, loss_only=True).item(), torch.rand(1).item()))
    assert found[0] == found[1] and found[1][0] != found[2][0] and found[1][1] == found[2][1]


@pytest.mark.parametrize('ratio, size', [(.5, 6), (.65, 7), (.01, 1)])
def test_all_patches_are_predicted_in_groups_of_the_size_of_a_training_step(ratio, size):
    model, (imgs, noise) = autoencoder(predict_ratio=ratio), drawn()
    _, pred, mask = model(imgs, .75, noise)
    ids = noise.argsort(dim=1)
    assert pred.shape == (4, 16, 192) and mask.sum(dim=1).tolist() == [12] * 4
    latent = model.encode_visible(model.patchify(imgs), ids[:, :4])
    for first in range(4, 16 - size + 1, size):
        group = ids[:, first:first + size]
        alone = model.decode_shuffled(latent, torch.cat([ids[:, :4], group], dim=1), hidden_only=True)
        assert relative(models_mae.gather_tokens(pred, group), alone) < 1e-5
    last = model.decode_shuffled(latent, torch.cat([ids[:, :4], ids[:, -size:]], dim=1), hidden_only=True)
    assert relative(models_mae.gather_tokens(pred, ids[:, -1:]), last[:, -1:]) < 1e-5


def test_random_masking_keeps_the_tokens_that_its_mask_says():
    model, x = autoencoder(), torch.randn(3, 9, 5)
    assert model.random_masking(x, .999)[0].shape == (3, 0, 5)
    kept, mask, ids_restore = model.random_masking(x, .75)
    assert kept.shape == (3, 2, 5) and mask.sum(dim=1).tolist() == [7] * 3
    filled = torch.cat([kept, torch.zeros(3, 7, 5)], dim=1)         # as a decoder does, with mask tokens
    restored = models_mae.gather_tokens(filled, ids_restore)
    assert torch.equal(restored, x * (1 - mask[..., None]))


def test_unpatchify_undoes_patchify_for_any_channels_and_shape():
    model = autoencoder(img_size=(32, 16), in_chans=2)
    imgs = torch.randn(2, 2, 32, 16)
    assert torch.equal(model.unpatchify(model.patchify(imgs)), imgs)
    assert model(imgs)[1].shape == (2, 8, 128)
    assert torch.equal(model.pos_embed, sincos_2d(48, (4, 2)))


@pytest.mark.parametrize('name, millions', [
    ('mae_vit_base_patch16', 111.91), ('mae_vit_large_patch16', 329.54), ('mae_vit_huge_patch14', 657.07)])
def test_a_named_size_has_its_published_parameter_count(monkeypatch, name, millions):
    for fill in ('uniform_', 'normal_'):        # uninitialized weights cost neither time nor memory
        monkeypatch.setattr(torch.Tensor, fill, lambda tensor, *args, **options: tensor)
    model = getattr(models_mae, name)()
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


# The classifier

@pytest.mark.parametrize('global_pool', [False, True])
def test_logits_and_gradients_equal_those_of_timm(global_pool):
    constructor = timm.models.vision_transformer.VisionTransformer
    if global_pool and not accepts(constructor, 'global_pool'):
        pytest.skip('this timm has no average pooling in its ViT')
    options = {'global_pool': 'avg' if global_pool else 'token'} if accepts(constructor, 'global_pool') else {}
    other = constructor(qkv_bias=True, norm_layer=NORM, num_classes=7, **SIZE, **options)
    model = classifier(global_pool)
    other.load_state_dict(model.state_dict())
    imgs, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    logits, expected = model(imgs), other(imgs)
    for out in (logits, expected):
        torch.nn.functional.cross_entropy(out, labels).backward()
    assert relative(logits, expected) < 1e-5
    gradients = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        difference = (parameter.grad - gradients[name].grad).abs().max()
        assert difference <= 1e-5 * gradients[name].grad.abs().max() + 1e-9, name


def test_the_classifier_takes_the_arguments_of_the_published_class():
    names = {name for name, _ in classifier(True, qkv_bias=True).named_parameters()}
    assert 'blocks.0.attn.qkv.bias' in names and classifier(True).no_weight_decay() == {'pos_embed', 'cls_token'}
    without = {name for name, _ in classifier(True, qkv_bias=False).named_parameters()}
    assert names - without == {'blocks.%d.attn.qkv.bias' % i for i in range(3)}


def test_drop_path_grows_linearly_to_its_rate_at_the_last_block():
    rates = [getattr(getattr(block, 'drop_path1', None) or block.drop_path, 'drop_prob', 0.)
             for block in classifier(False, drop_path_rate=.2).blocks]
    assert rates == pytest.approx([0, .1, .2])


@pytest.mark.skipif(not hasattr(torch.nn.functional, 'scaled_dot_product_attention'), reason='no fused attention')
def test_attention_is_fused_where_torch_has_it(monkeypatch):
    calls, original = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention',
                        lambda *args, **options: calls.append(1) or original(*args, **options))
    classifier(True)(torch.randn(2, 3, 32, 32))
    assert len(calls) == 3


# Positions

def test_the_table_holds_sines_then_cosines_of_column_then_row_and_zeros_for_the_class_token():
    table = sincos_2d(8, (2, 3))
    assert table.shape == (1, 7, 8) and table[0, 0].abs().sum() == 0
    row, column = 1, 2
    half = [[math.sin(p), math.sin(p / 100), math.cos(p), math.cos(p / 100)] for p in (column, row)]
    assert table[0, 1 + row * 3 + column].tolist() == pytest.approx(half[0] + half[1], abs=1e-6)


def test_interpolation_keeps_the_class_row_and_a_linear_ramp():
    rows = torch.linspace(0, 1, 8)[:, None].expand(8, 8).reshape(1, 64, 1)
    table = torch.cat([torch.full((1, 1, 1), 5.), rows], dim=1)
    resized = resize_positions(table, (8, 8), (16, 4))          # rows and columns apart
    assert resized.shape == (1, 65, 1) and resized[0, 0] == 5
    inner = resized[0, 1:, 0].reshape(16, 4)[4:12, 0]
    assert torch.allclose(inner[2:] - inner[:-2], torch.full((6,), 1 / 7), atol=1e-5)


# --freeze

def frozen(flag, **options):
    """A nano classifier of 6 blocks in training mode, with --freeze `flag`."""
    model = nano_vit(drop_path_rate=.5, **options).train()
    freeze(model, flag)
    return model


def trained(model):
    """Blocks, and layers outside of blocks, with trainable parameters."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {'.'.join(name.split('.')[:2]) if name.startswith('blocks.') else name.rsplit('.', 1)[0] for name in names}


BLOCKS = ['blocks.{}'.format(i) for i in range(6)]


@pytest.mark.parametrize('flag, pool, expected', [
    (None, True, {'cls_token', 'pos_embed', 'patch_embed.proj', *BLOCKS, 'head', 'fc_norm'}),
    (0, True, {*BLOCKS, 'head', 'fc_norm'}), (4, True, {*BLOCKS[4:], 'head', 'fc_norm'}),
    ('all', True, {'head', 'fc_norm'}), ('all', False, {'head', 'norm'})])
def test_the_flag_decides_what_trains(flag, pool, expected):
    assert trained(frozen(flag, global_pool=pool)) == expected


def test_frozen_blocks_drop_no_paths_and_autograd_keeps_none_of_their_activations():
    model, images, outputs = frozen(4), torch.randn(64, 3, 32, 32), []
    for block in model.blocks:
        block.register_forward_hook(lambda *called: outputs.append(called[-1]))
    for _ in range(2):
        features.last_tokens(model, images)
    first, second = outputs[:6], outputs[6:]
    assert [torch.equal(a, b) for a, b in zip(first, second)] == [True] * 4 + [False] * 2
    assert [output.requires_grad for output in first] == [False] * 4 + [True] * 2


def test_more_blocks_than_the_model_has_are_rejected():
    with pytest.raises(UserError, match='^--freeze 7: '):
        frozen(7)
