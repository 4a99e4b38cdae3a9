"""The classifier against timm's own Vision Transformer."""
import pytest
import timm
import torch

import models_vit
from util import timm_compat
from util.features import accepts

SIZE = {'img_size': 32, 'patch_size': 8, 'embed_dim': 48, 'depth': 3, 'num_heads': 4, 'num_classes': 7}


def ours(global_pool):
    torch.manual_seed(0)
    layer_norm = models_vit.partial(torch.nn.LayerNorm, eps=1e-6)
    model = models_vit.VisionTransformer(global_pool=global_pool, norm_layer=layer_norm, **SIZE)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=.1)
    return model


@pytest.mark.parametrize('global_pool', [False, True])
def test_logits_and_gradients_equal_those_of_timm(global_pool):
    constructor = timm.models.vision_transformer.VisionTransformer
    if global_pool and not accepts(constructor, 'global_pool'):
        pytest.skip('this timm has no average pooling in its ViT')
    options = {'global_pool': 'avg' if global_pool else 'token'} if accepts(constructor, 'global_pool') else {}
    other = constructor(qkv_bias=True, norm_layer=models_vit.partial(torch.nn.LayerNorm, eps=1e-6), **SIZE, **options)
    model = ours(global_pool)
    other.load_state_dict(model.state_dict())
    imgs, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    logits, expected = model(imgs), other(imgs)
    for out in (logits, expected):
        torch.nn.functional.cross_entropy(out, labels).backward()
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()
    gradients = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        difference = (parameter.grad - gradients[name].grad).abs().max()
        assert difference <= 1e-5 * gradients[name].grad.abs().max() + 1e-9, name


def test_the_published_names_are_kept():
    expected = {'cls_token', 'pos_embed', 'patch_embed.proj.weight', 'patch_embed.proj.bias', 'fc_norm.weight',
                'fc_norm.bias', 'head.weight', 'head.bias'}
    for i in range(3):
        for part in ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2'):
            expected |= {'blocks.{}.{}.{}'.format(i, part, kind) for kind in ('weight', 'bias')}
    assert set(ours(True).state_dict()) == expected
    assert set(ours(False).state_dict()) == {name.replace('fc_norm', 'norm') for name in expected}


def test_drop_path_grows_linearly_to_its_rate_at_the_last_block():
    model = models_vit.VisionTransformer(drop_path_rate=.2, **SIZE)
    rates = [getattr(getattr(block, 'drop_path1', None) or block.drop_path, 'drop_prob', 0.) for block in model.blocks]
    assert rates == pytest.approx([0, .1, .2])


def test_attention_is_fused_where_torch_has_it(monkeypatch):
    if not hasattr(torch.nn.functional, 'scaled_dot_product_attention'):
        pytest.skip('this torch has no scaled_dot_product_attention')
    calls, original = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention',
                        lambda *args, **options: calls.append(1) or original(*args, **options))
    ours(True)(torch.randn(2, 3, 32, 32))
    assert len(calls) == 3


@pytest.mark.parametrize('fused', [True, False])
def test_a_block_equals_timms_block_and_leaves_out_what_it_is_told_to(monkeypatch, fused):
    monkeypatch.setattr(timm_compat, '_FUSED', fused and timm_compat._FUSED)
    torch.manual_seed(0)
    block, x = timm_compat.TransformerBlock(32, 4, 4., torch.nn.LayerNorm).eval(), torch.randn(2, 9, 32)
    theirs = timm_compat.Block(dim=32, num_heads=4, qkv_bias=True, norm_layer=torch.nn.LayerNorm).eval()
    theirs.load_state_dict(block.state_dict())
    assert torch.allclose(block(x), theirs(x), atol=1e-6)
    assert torch.allclose(block(x, 4), theirs(x)[:, 4:], atol=1e-6)


def test_attention_in_bf16_is_that_in_fp32_as_far_as_bf16_goes():
    if not hasattr(torch, 'autocast'):
        pytest.skip('this torch has no bf16 products on a CPU')
    q, k, v = torch.randn(3, 2, 4, 9, 8).unbind()
    found = timm_compat.attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), timm_compat.attention(q, k, v), atol=.03)
