"""What decays, and how fast each layer learns."""
import pytest
import torch

import models_mae
import models_vit
from util.param_groups import decay_groups, layer_decay_groups


@pytest.fixture(scope='module')
def vit_base():
    return models_vit.vit_base_patch16(global_pool=True)


def names_by_group(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [{names[id(parameter)] for parameter in group['params']} for group in groups]


def test_layer_decay_of_vit_base_gives_each_layer_its_scale_by_name(vit_base):
    groups = layer_decay_groups(vit_base, weight_decay=.05, layer_decay=.65)
    scale = {}
    for group, names in zip(groups, names_by_group(vit_base, groups)):
        scale.update(dict.fromkeys(names, group['lr_scale']))
    expected = {'cls_token': 13, 'pos_embed': 13, 'patch_embed.proj.weight': 13, 'patch_embed.proj.bias': 13,
                'blocks.0.norm1.weight': 12, 'blocks.0.attn.qkv.weight': 12, 'blocks.5.mlp.fc1.bias': 7,
                'blocks.11.mlp.fc2.weight': 1, 'fc_norm.weight': 0, 'fc_norm.bias': 0, 'head.weight': 0, 'head.bias': 0}
    for name, power in expected.items():
        assert scale[name] == pytest.approx(.65 ** power), name
    assert set(scale) == {name for name, _ in vit_base.named_parameters()}
    assert scale['blocks.0.norm1.weight'] == pytest.approx(.0056880, rel=1e-4)


def test_fine_tuning_decays_matrices_only_and_neither_positions_nor_class_token(vit_base):
    groups = layer_decay_groups(vit_base, weight_decay=.05, layer_decay=.65)
    for group, names in zip(groups, names_by_group(vit_base, groups)):
        for name in names:
            matrix = name.endswith('.weight') and 'norm' not in name
            assert group['weight_decay'] == (.05 if matrix else 0.), name


def test_pretraining_decays_everything_but_1d_tensors_and_biases():
    model = models_mae.mae_vit_nano_patch16()
    plain, decayed = groups = decay_groups(model, .05)
    assert (plain['weight_decay'], decayed['weight_decay']) == (0., .05)
    plain_names, decayed_names = names_by_group(model, groups)
    assert {'norm.weight', 'blocks.0.attn.qkv.bias', 'patch_embed.proj.bias', 'decoder_pred.bias'} <= plain_names
    assert {'cls_token', 'mask_token', 'patch_embed.proj.weight', 'blocks.0.attn.qkv.weight'} <= decayed_names
    assert not plain_names & decayed_names


def test_fixed_positions_are_not_trained():
    model = models_mae.mae_vit_nano_patch16()
    trained = set().union(*names_by_group(model, decay_groups(model, .05)))
    assert not {'pos_embed', 'decoder_pos_embed'} & trained
    assert trained == {name for name, p in model.named_parameters() if p.requires_grad}


def test_every_parameter_is_in_exactly_one_group(vit_base):
    groups = layer_decay_groups(vit_base, .05, .65)
    ids = [id(parameter) for group in groups for parameter in group['params']]
    assert len(ids) == len(set(ids)) == len(list(vit_base.parameters()))
    assert torch.is_tensor(groups[0]['params'][0])
