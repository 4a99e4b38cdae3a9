"""--init_from: pre-training that starts from weights."""
import pytest
import torch
from conftest import pretrain

import models_mae
import models_vit
from util import checkpoint_file
from util.errors import UserError
from util.weights import load_for_pretraining


def autoencoder(**options):
    return models_mae.mae_vit_nano_patch16(**{'img_size': 32, 'patch_size': 8, **options})


def shifted(model):
    """A state_dict of other values than any new model has."""
    return {name: value + 1 for name, value in model.state_dict().items()}


def taken(model, weights):
    """Names of the weights that the model has from a checkpoint."""
    return {name for name, value in model.state_dict().items() if name in weights and torch.equal(value, weights[name])}


def test_encoder_and_decoder_are_loaded_and_the_positions_are_the_models_own():
    weights, model = shifted(autoencoder(img_size=48)), autoencoder()
    fixed = {'pos_embed', 'decoder_pos_embed'}
    assert load_for_pretraining(model, weights, 'x.pth') == ([], [])
    assert taken(model, weights) == set(weights) - fixed
    assert all(torch.equal(getattr(model, name), getattr(autoencoder(), name)) for name in fixed)


@pytest.mark.parametrize('change', ['without', 'other width', 'incomplete'])
def test_a_decoder_that_does_not_fit_whole_starts_anew(change):
    weights = shifted(autoencoder(**({'decoder_embed_dim': 32} if change == 'other width' else {})))
    encoder = {name for name in weights if not name.startswith('decoder') and name != 'mask_token'}
    if change == 'without':
        weights = {name: weights[name] for name in encoder}
    if change == 'incomplete':
        del weights['mask_token']
    model = autoencoder()
    left_out, fresh = load_for_pretraining(model, weights, 'x.pth')
    assert taken(model, weights) == encoder - {'pos_embed'}
    assert set(fresh) == {name for name in model.state_dict() if name not in encoder and 'pos_embed' not in name}
    assert set(left_out) == {name for name in weights if name not in encoder and 'pos_embed' not in name}


@pytest.mark.parametrize('pool, fresh', [(True, ['norm.weight', 'norm.bias']), (False, [])])
def test_the_encoder_of_a_classifier_is_loaded(pool, fresh):
    weights = shifted(models_vit.vit_nano_patch16(global_pool=pool, img_size=32, patch_size=8, num_classes=4))
    model = autoencoder()
    left_out, anew = load_for_pretraining(model, weights, 'x.pth')
    assert [name for name in anew if 'decoder' not in name and name != 'mask_token'] == fresh
    assert left_out == ['head.weight', 'head.bias'] + ['fc_norm.weight', 'fc_norm.bias'] * pool
    assert 'blocks.5.mlp.fc2.weight' in taken(model, weights) and 'pos_embed' not in taken(model, weights)


@pytest.mark.parametrize('options', [{'in_chans': 1}, {'depth': 7}, {'depth': 5}])
def test_another_encoder_is_refused(options):
    with pytest.raises(UserError, match='^x.pth: '):
        load_for_pretraining(autoencoder(**options), shifted(autoencoder()), 'x.pth')


def test_a_new_run_starts_from_them_and_a_checkpoint_of_its_own_wins(images, pretrained, tmp_path):
    path = pretrained / 'checkpoint-0.pth'
    flags = ['--data_path', images, '--output_dir', tmp_path, '--init_from', path, '--resume', 'auto', '--lr', '1e-9',
             '--input_size', 48, '--epochs']
    run = pretrain(*flags, 1)
    assert run.status == 0 and 'loaded {}; left out: nothing\n'.format(path) in run.output, run.output
    before, after = (checkpoint_file.load(str(folder / 'checkpoint-0.pth')) for folder in (pretrained, tmp_path))
    assert after['epoch'] == 0 and after['model']['pos_embed'].shape == (1, 37, 128)
    assert all(torch.allclose(value, before['model'][name], atol=1e-6)
               for name, value in after['model'].items() if 'pos_embed' not in name)
    run = pretrain(*flags, 2)
    assert run.status == 0 and str(path) + ';' not in run.output and 'Epoch: [0]' not in run.output, run.output
