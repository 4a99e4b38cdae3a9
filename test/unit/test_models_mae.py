"""The masked autoencoder against an independent implementation and the paper."""
import numpy as np
import pytest
import torch

import models_mae
from util import recompute

transformers = pytest.importorskip('transformers', reason='transformers, the independent implementation, is missing')

SIZE = {'img_size': 32, 'patch_size': 8, 'embed_dim': 48, 'depth': 3, 'num_heads': 4, 'decoder_embed_dim': 32,
        'decoder_depth': 2, 'decoder_num_heads': 4}


def ours(**options):
    torch.manual_seed(0)
    layer_norm = models_mae.partial(torch.nn.LayerNorm, eps=1e-6)
    model = models_mae.MaskedAutoencoderViT(**{**SIZE, 'norm_layer': layer_norm, **options})
    for parameter in model.parameters():        # biases and norms start at 0 and 1: make them count
        if parameter.requires_grad and parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=.1)
    return model


def theirs(model, norm_pix_loss):
    """transformers' ViTMAEForPreTraining with the weights of `model`."""
    config = transformers.ViTMAEConfig(
        image_size=32, patch_size=8, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192,
        decoder_hidden_size=32, decoder_num_hidden_layers=2, decoder_num_attention_heads=4,
        decoder_intermediate_size=128, mask_ratio=.75, norm_pix_loss=norm_pix_loss, layer_norm_eps=1e-6,
        hidden_act='gelu', qkv_bias=True)
    other = transformers.ViTMAEForPreTraining(config)
    translated = translate(model.state_dict())
    state = other.state_dict()
    assert set(translated) == set(state), set(translated) ^ set(state)
    other.load_state_dict(translated)
    return other


def translate(state):
    """The published names -> transformers' names; qkv is split in three."""
    result = {}
    for name, value in state.items():
        for part, target in _targets(name, value):
            result[target] = part
    return result


OUTER = {'patch_embed.proj': 'vit.embeddings.patch_embeddings.projection', 'norm': 'vit.layernorm',
         'decoder_embed': 'decoder.decoder_embed', 'decoder_norm': 'decoder.decoder_norm',
         'decoder_pred': 'decoder.decoder_pred'}
BLOCKS = {'blocks': 'vit.encoder.layer', 'decoder_blocks': 'decoder.decoder_layers'}
INNER = {'norm1': 'layernorm_before', 'norm2': 'layernorm_after', 'attn.proj': 'attention.output.dense',
         'mlp.fc1': 'intermediate.dense', 'mlp.fc2': 'output.dense'}


def _targets(name, value):
    fixed = {'cls_token': 'vit.embeddings.cls_token', 'pos_embed': 'vit.embeddings.position_embeddings',
             'mask_token': 'decoder.mask_token', 'decoder_pos_embed': 'decoder.decoder_pos_embed'}
    if name in fixed:
        return [(value, fixed[name])]
    stem, kind = name.rsplit('.', 1)
    if stem in OUTER:
        return [(value, OUTER[stem] + '.' + kind)]
    blocks, index, inner = stem.split('.', 2)
    layer = '{}.{}.'.format(BLOCKS[blocks], index)
    if inner != 'attn.qkv':
        return [(value, layer + INNER[inner] + '.' + kind)]
    return [(part, layer + 'attention.attention.{}.{}'.format(target, kind))
            for part, target in zip(value.chunk(3), ('query', 'key', 'value'))]


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize('norm_pix_loss', [False, True])
def test_loss_prediction_mask_and_gradients_equal_those_of_transformers(norm_pix_loss):
    model = ours(norm_pix_loss=norm_pix_loss).train()
    other = theirs(model, norm_pix_loss).train()
    imgs, noise = torch.randn(4, 3, 32, 32), torch.rand(4, 16)
    loss, pred, mask = model(imgs, .75, noise)
    expected = other(pixel_values=imgs, noise=noise)
    loss.backward()
    expected.loss.backward()
    assert relative(loss, expected.loss) < 1e-5
    assert relative(pred, expected.logits) < 1e-5
    assert torch.equal(mask, expected.mask)
    gradients = {name: p.grad for name, p in other.named_parameters()}
    compared = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for part, target in _targets(name, parameter.grad):
                if name.endswith('attn.qkv.bias') and '.key.' in target:
                    assert part.abs().max() < 1e-7      # softmax does not see it: rounding noise on both sides
                else:
                    assert relative(part, gradients[target]) < 1e-5, name
                compared += 1
    assert compared > 50


def test_a_seed_gives_the_mask_of_uniform_noise_of_smallest_first():
    model = ours()
    imgs = torch.randn(3, 3, 32, 32)
    torch.manual_seed(7)
    _, _, mask = model(imgs, .75)
    torch.manual_seed(7)
    noise = torch.rand(3, 16).numpy()
    expected = np.ones((3, 16))
    for row, order in zip(expected, noise.argsort(axis=1)):
        row[order[:4]] = 0
    assert np.array_equal(mask.numpy(), expected)


def test_hidden_patches_do_not_reach_the_encoder():
    model = ours().eval()
    patches, ids = torch.randn(2, 16, 192), torch.rand(2, 16).argsort(dim=1)
    latent = model.forward_encoder(patches, ids[:, :4])
    hidden = torch.ones(2, 16).scatter(1, ids[:, :4], 0)
    assert torch.equal(model.forward_encoder(patches + 100 * hidden[..., None], ids[:, :4]), latent)
    assert latent.shape == (2, 1 + 4, 48)


def test_embedding_visible_patches_equals_the_convolution():
    model = ours().eval()
    imgs = torch.randn(2, 3, 32, 32)
    seen = []
    model.run_block = lambda block, x: seen.append(x) or block(x)
    order = torch.arange(16).expand(2, -1)
    model.forward_encoder(model.patchify(imgs), order)
    assert torch.allclose(seen[0][:, 1:], model.patch_embed(imgs) + model.pos_embed[:, 1:], atol=1e-5)


def test_unpatchify_undoes_patchify_for_any_channels_and_shape():
    model = models_mae.MaskedAutoencoderViT(**{**SIZE, 'img_size': (32, 16), 'in_chans': 2})
    imgs = torch.randn(2, 2, 32, 16)
    assert torch.equal(model.unpatchify(model.patchify(imgs)), imgs)
    assert model(imgs)[1].shape == (2, 8, 128)


def test_visible_patches_do_not_count_in_the_loss():
    model = ours()
    imgs, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    loss, pred, mask = model(imgs, .75, noise)
    squares = (pred - model.patchify(imgs)).pow(2).mean(dim=-1)
    assert loss.item() == pytest.approx((squares * mask).sum().item() / mask.sum().item(), rel=1e-5)


@pytest.mark.parametrize('norm_pix_loss', [False, True])
@pytest.mark.parametrize('run_block', [recompute.directly, recompute.recomputed])
def test_the_loss_alone_has_the_value_and_gradients_of_the_whole(norm_pix_loss, run_block):
    """What it leaves out are the last block and the prediction of visible patches, and putting these in order."""
    model = ours(norm_pix_loss=norm_pix_loss).train()
    imgs, noise = torch.randn(4, 3, 32, 32), torch.rand(4, 16)
    whole = model(imgs, .75, noise)[0]
    whole.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    model.run_block = run_block
    loss = model(imgs, .75, noise, loss_only=True)
    loss.backward()
    assert relative(loss, whole) < 1e-6
    for name, gradient in expected.items():
        assert (dict(model.named_parameters())[name].grad - gradient).abs().max() < 1e-5 * max(gradient.abs().max(), .1)


@pytest.mark.parametrize('name, millions, decoder', [
    ('mae_vit_base_patch16', 111.91, 512), ('mae_vit_large_patch16', 329.54, 512),
    ('mae_vit_huge_patch14', 657.07, 512), ('mae_vit_small_patch16', None, 256), ('mae_vit_tiny_patch16', None, 192),
    ('mae_vit_nano_patch16', None, 64)])
def test_a_named_size_has_its_published_parameter_count(monkeypatch, name, millions, decoder):
    for fill in ('uniform_', 'normal_'):        # weights that nobody writes cost neither time nor memory
        monkeypatch.setattr(torch.Tensor, fill, lambda tensor, *args, **options: tensor)
    model = getattr(models_mae, name)()
    if millions:
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions
    assert model.mask_token.shape[-1] == decoder
