"""--freeze: blocks that do not train."""
import pytest
import torch
from conftest import nano_vit

from main_finetune import freeze
from util.errors import UserError
from util.models import features
from util.models.activation_checkpointing import checkpointed, directly


def classifier(flag, **options):
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
    assert trained(classifier(flag, global_pool=pool)) == expected


def test_frozen_blocks_drop_no_paths_and_autograd_keeps_none_of_their_activations():
    model, images = classifier(4), torch.randn(64, 3, 32, 32)
    first, second = (list(features.block_outputs(model, images)) for _ in range(2))
    assert [torch.equal(a, b) for a, b in zip(first, second)] == [True] * 4 + [False] * 2
    assert [output.requires_grad for output in first] == [False] * 4 + [True] * 2


@pytest.mark.parametrize('flag', [0, 'all'])
def test_activation_checkpointing_gives_the_same_gradients(flag):
    gradients = []
    for run_block in (directly, checkpointed):
        model = classifier(flag)
        model.run_block = run_block
        torch.manual_seed(1)
        model(torch.ones(4, 3, 32, 32)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(map(torch.equal, *gradients))


def test_more_blocks_than_the_model_has_are_rejected():
    with pytest.raises(UserError, match='^--freeze 7: '):
        classifier(7)
