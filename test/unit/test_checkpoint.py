"""Saving whole, reading safely, resuming, and starting from pre-trained weights."""
import argparse
import os
import pickle

import pytest
import torch

import models_mae
import models_vit
from util import checkpoint, checkpoint_file, checkpoint_pickle, weights
from util.errors import UserError
from util.features import accepts
from util.files import atomic_file, write_atomically

MAE = {'img_size': 32, 'patch_size': 8}


def vit(**options):
    return models_vit.vit_nano_patch16(**{'global_pool': True, 'num_classes': 8, **MAE, **options})


def adamw(model, **options):
    optimizer = torch.optim.AdamW(model.parameters(), lr=.1, **options)
    model(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    return optimizer


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / 'checkpoint-0.pth'
    write_atomically(str(path), b'old')
    with pytest.raises(RuntimeError), atomic_file(str(path)) as file:
        file.write(b'half')
        raise RuntimeError('disk full')
    assert path.read_bytes() == b'old'
    assert os.listdir(str(tmp_path)) == ['checkpoint-0.pth']


def test_checkpoints_are_ordered_by_how_far_they_are(tmp_path):
    for name in ('checkpoint-9.pth', 'checkpoint-10.pth', 'checkpoint-best.pth', 'checkpoint-10-64.pth',
                 'checkpoint-10-8.pth', 'checkpoint-11-8.pth', 'checkpoint-12.pth.tmp-1', 'checkpoint-12.2026.pth'):
        (tmp_path / name).write_bytes(b'')
    assert [path[len(str(tmp_path)) + 12:-4] for path in checkpoint.numbered(str(tmp_path))] == [
        '11-8', '10', '10-64', '10-8', '9']


def test_auto_takes_the_newest_checkpoint_that_can_be_read_and_none_from_an_empty_folder(tmp_path):
    for epoch in (0, 1):
        torch.save({'model': {}, 'epoch': epoch}, str(tmp_path / 'checkpoint-{}.pth'.format(epoch)))
    (tmp_path / 'checkpoint-1-8.pth').write_bytes((tmp_path / 'checkpoint-1.pth').read_bytes()[:-100])
    (tmp_path / 'checkpoint-2-8.pth').write_bytes(b'')
    assert checkpoint.find('auto', str(tmp_path)).path == str(tmp_path / 'checkpoint-1.pth')
    assert checkpoint.find('auto', str(tmp_path / 'empty')).path is None
    assert checkpoint.find('', str(tmp_path)).path is None


def test_auto_does_not_start_anew_where_no_checkpoint_can_be_read(tmp_path):
    (tmp_path / 'checkpoint-2.pth').write_bytes(b'')
    with pytest.raises(UserError, match='--resume auto: none of the 1 checkpoints'):
        checkpoint.find('auto', str(tmp_path))


def test_a_published_checkpoint_with_a_namespace_is_read(tmp_path):
    path = str(tmp_path / 'published.pth')
    torch.save({'model': vit().state_dict(), 'args': argparse.Namespace(model='x'), 'epoch': 3}, path)
    assert checkpoint_file.load(path)['epoch'] == 3


def test_a_bare_state_dict_is_read(tmp_path):
    path = str(tmp_path / 'bare.pth')
    torch.save(vit().state_dict(), path)
    assert 'head.weight' in checkpoint_file.load(path)['model']


class Evil:
    """Runs a command when unpickled by the ordinary pickle."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (os.system, ('touch ' + self.marker,))


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    path, marker = tmp_path / 'evil.pth', tmp_path / 'ran'
    torch.save({'model': {}, 'x': Evil(marker)}, str(path))
    with pytest.raises(UserError, match='not a readable checkpoint'):
        checkpoint_file.load(str(path))
    assert not marker.exists()


@pytest.mark.parametrize('new_format', [True, False])
def test_the_restricted_unpickler_reads_checkpoints_and_refuses_code(tmp_path, new_format):
    path, marker = str(tmp_path / 'c.pth'), tmp_path / 'ran'
    layer = torch.nn.Linear(3, 2)
    good = {'model': layer.state_dict(), 'optimizer': adamw(layer).state_dict(),
            'args': argparse.Namespace(lr=1.), 'epoch': 1}
    torch.save(good, path, _use_new_zipfile_serialization=new_format)
    options = {'weights_only': False} if accepts(torch.load, 'weights_only') else {}
    loaded = torch.load(path, pickle_module=checkpoint_pickle, **options)
    assert torch.equal(loaded['model']['weight'], layer.weight) and loaded['args'].lr == 1.
    torch.save({'model': {}, 'x': Evil(marker)}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(pickle.UnpicklingError, match='posix.system'):
        torch.load(path, pickle_module=checkpoint_pickle, **options)
    assert not marker.exists()


@pytest.mark.parametrize('content', [b'', b'no checkpoint', b'PK\x03\x04 cut off'])
def test_a_damaged_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / 'damaged.pth'
    path.write_bytes(content)
    with pytest.raises(UserError, match='damaged.pth: not a readable checkpoint'):
        checkpoint_file.load(str(path))


def test_the_encoder_is_taken_from_a_masked_autoencoder_and_the_rest_left_out():
    mae, model = models_mae.mae_vit_nano_patch16(**MAE), vit()
    left_out, fresh = weights.load_pretrained(model, mae.state_dict(), 'x.pth')
    assert torch.equal(model.blocks[3].mlp.fc1.weight, mae.blocks[3].mlp.fc1.weight)
    assert torch.equal(model.pos_embed, mae.pos_embed)
    assert {'mask_token', 'decoder_pred.weight', 'norm.weight'} <= set(left_out)
    assert set(fresh) == {'fc_norm.weight', 'fc_norm.bias', 'head.weight', 'head.bias'}


def test_the_class_token_head_takes_the_encoders_norm():
    mae, model = models_mae.mae_vit_nano_patch16(**MAE), vit(global_pool=False)
    mae.norm.weight.data.fill_(3.)
    _, fresh = weights.load_pretrained(model, mae.state_dict(), 'x.pth')
    assert model.norm.weight[0] == 3. and set(fresh) == {'head.weight', 'head.bias'}


def test_positions_are_interpolated_to_another_input_size():
    mae, model = models_mae.mae_vit_nano_patch16(**MAE), vit(img_size=64)
    weights.load_pretrained(model, mae.state_dict(), 'x.pth')
    assert model.pos_embed.shape == (1, 65, 128)
    coarse = model.pos_embed[0, 1:].reshape(4, 2, 4, 2, 128).mean(dim=(1, 3)).flatten(0, 1)
    assert (coarse - mae.pos_embed[0, 1:]).abs().mean() < .05


def test_an_evaluation_at_another_input_size_interpolates_positions_too(tmp_path):
    path, trained, larger = str(tmp_path / 'x.pth'), vit(), vit(img_size=64)
    torch.save({'model': trained.state_dict()}, path)
    checkpoint.Resumed(path).restore_model(larger, fit_positions=True)
    assert torch.equal(larger.blocks[0].norm1.weight, trained.blocks[0].norm1.weight)
    assert torch.equal(larger.pos_embed[:, :1], trained.pos_embed[:, :1])
    with pytest.raises(UserError, match='--input_size'):
        checkpoint.Resumed(path).restore_model(vit(img_size=64))


def test_a_head_of_other_classes_starts_anew():
    model = vit(num_classes=5)
    _, fresh = weights.load_pretrained(model, vit(num_classes=9).state_dict(), 'x.pth')
    assert set(fresh) == {'head.weight', 'head.bias'}


def test_weights_of_another_model_are_refused_by_name():
    with pytest.raises(UserError, match=r'x\.pth: is of another model, .* see --model'):
        weights.load_pretrained(vit(), models_mae.mae_vit_tiny_patch16(**MAE).state_dict(), 'x.pth')
    with pytest.raises(UserError, match='is of another model, it lacks'):
        weights.load_model(vit(), models_mae.mae_vit_nano_patch16(**MAE).state_dict(), 'x.pth')


@pytest.mark.parametrize('name, shape', [('pos_embed', ()), ('pos_embed', (1, 1, 128)), ('pos_embed', (2, 65, 128)),
                                         ('pos_embed', (1, 4, 128)), ('pos_embed', (1, 0, 128)), ('head.weight', ()),
                                         ('head.weight', (0,)), ('patch_embed.proj.weight', (1, 2, 3))])
def test_weights_of_odd_shapes_are_refused_by_name(name, shape):
    model, odd = vit(), {**vit().state_dict(), name: torch.zeros(shape)}
    with pytest.raises(UserError, match=name):
        weights.load_model(model, weights.with_positions_for(model, odd), 'x.pth')
    if not name.startswith('head'):
        with pytest.raises(UserError, match=name):
            weights.load_pretrained(model, odd, 'x.pth')


def test_resuming_with_other_classes_names_nb_classes():
    with pytest.raises(UserError, match='was trained for 9 classes, this run has 8; see --nb_classes'):
        weights.load_model(vit(), vit(num_classes=9).state_dict(), 'x.pth')


def test_an_optimizer_is_restored_under_the_flags_of_the_new_run():
    layer = torch.nn.Linear(3, 2)
    saved = adamw(layer, weight_decay=.5).state_dict()
    fresh = torch.optim.AdamW(layer.parameters(), lr=.1, weight_decay=.01)
    first = saved['state'][saved['param_groups'][0]['params'][0]]      # torch 1.5 has no numbers for keys
    fresh.load_state_dict(checkpoint.optimizer_state(fresh, saved, 'x.pth'))
    assert fresh.param_groups[0]['weight_decay'] == .01
    assert torch.equal(fresh.state[layer.weight]['exp_avg'], first['exp_avg'])


def test_an_optimizer_of_other_groups_is_refused():
    saved = adamw(torch.nn.Linear(3, 2)).state_dict()
    other = torch.optim.AdamW(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2)).parameters())
    with pytest.raises(UserError, match='other parameter groups; give it to --finetune'):
        checkpoint.optimizer_state(other, saved, 'x.pth')


@pytest.mark.parametrize('odd', [{'epoch': 'seven'}, {'optimizer': [1]}, {'images': {}}, {'classes': 3}, {'log': {}},
                                 {'optimizer': {}}])
def test_a_checkpoint_with_values_that_no_training_writes_is_refused_by_name(tmp_path, odd):
    checkpoint_file.save(str(tmp_path / 'odd.pth'), {'model': {}, **odd})
    with pytest.raises(UserError, match='odd.pth: is no checkpoint of a training'):
        checkpoint.Resumed(str(tmp_path / 'odd.pth'))
