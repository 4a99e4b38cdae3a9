"""Weights come in: safetensors, timm's names, Hugging Face's folders, models without flags, and --init_from."""
import json
import os
import pathlib
import re
import shutil
import struct

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from conftest import finetune, nano_mae, nano_vit, pretrain, write_file
from test_hostile_checkpoints import rejected

from models_mae import gather_tokens
from util.checkpoints import hugging_face, load_model, pth_file, weights
from util.config.train_flags import parse_finetune
from util.models import features
from util.tools import export

SIZES = {'hidden_size': 128, 'num_hidden_layers': 6, 'num_attention_heads': 4, 'intermediate_size': 512,
         'image_size': 32, 'patch_size': 8}
DECODER = {'decoder_hidden_size': 64, 'decoder_num_hidden_layers': 2, 'decoder_num_attention_heads': 2,
           'decoder_intermediate_size': 256}
NO_VIT = pytest.mark.skipif(not hasattr(torch.nn.init, 'trunc_normal_'), reason="transformers' ViT needs trunc_normal_")


def write(path, tensors):
    pth_file.save_safetensors(str(path), tensors)
    return str(path)


def raw(header, data=b''):
    """Content of a safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data


def entry(begin, end, shape=(1,), dtype='F32'):
    return {'dtype': dtype, 'shape': list(shape), 'data_offsets': [begin, end]}


# -- safetensors -----------------------------------------------------------------------------------------------------
@pytest.mark.compat
def test_tensors_of_every_type_survive_safetensors_and_its_library_reads_them(tmp_path):
    saved = {'f': torch.randn(2, 3), 'd': torch.randn(2).double(), 'h': torch.randn(5).half(), 's': torch.tensor(2.),
             'i': torch.arange(3), 'o': torch.tensor([True, False]), 'u': torch.arange(3, dtype=torch.uint8),
             'none': torch.zeros(0, 3)}
    path = write(tmp_path / 'x.safetensors', saved)
    found = [pth_file.load(path)['model']]
    if hasattr(torch, 'frombuffer'):        # which the library's own reader needs
        found.append(safetensors.torch.load_file(path))
    for loaded in found:
        assert set(loaded) == set(saved)
        for name, value in saved.items():
            assert loaded[name].dtype == value.dtype and loaded[name].shape == value.shape
            assert torch.equal(loaded[name].double(), value.double()), name


@pytest.mark.compat
def test_bfloat16_is_read(tmp_path):
    (tmp_path / 'x').write_bytes(raw({'a': entry(0, 4, (2,), 'BF16')}, b'\x80\x3f\x00\xc0'))
    found = pth_file.load(str(tmp_path / 'x'))['model']['a']
    assert found.dtype == torch.bfloat16 and found.tolist() == [1., -2.]


@pytest.mark.compat
@pytest.mark.parametrize('content', [
    struct.pack('<Q', 2 ** 62) + b'{}', raw(b'{"a": ' + b'[' * 100000), raw({'a': entry(0, 4)}, b'xx'),
    raw({'a': entry(0, 4), 'b': entry(2, 6)}, b'x' * 6), raw({'a': entry(0, 2 ** 70, (2 ** 68,))}),
    raw({'a': entry(0, 1, (1,), 'F8_E4M3')}, b'x'), raw({'__metadata__': {'args': '{'}})], ids=range(7))
def test_a_hostile_or_damaged_safetensors_file_is_rejected_in_one_line(tmp_path, content):
    (tmp_path / 'x.safetensors').write_bytes(content)
    rejected(tmp_path / 'x.safetensors')


def test_the_flags_in_a_safetensors_file_are_read(tmp_path):
    header = {'patch_embed.proj.weight': entry(0, 4), '__metadata__': {'args': '{"mean": [0.5]}'}}
    (tmp_path / 'x').write_bytes(raw(header, b'1234'))
    assert pth_file.load(str(tmp_path / 'x'))['args'] == {'mean': [.5]}


# -- models without flags ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize('pools_mean', [True, False])
def test_a_classifier_without_flags_is_recognised_by_its_shapes(tmp_path, pools_mean):
    model = nano_vit(global_pool=pools_mean, num_classes=7, in_chans=1).eval()
    found = load_model.load_classifier(write(tmp_path / 'x.safetensors', model.state_dict())).model
    imgs = torch.randn(2, 1, 32, 32)
    assert torch.equal(found(imgs), model(imgs))


def encoder_of(model):
    """The part of a pre-trained model that timm and the published files have."""
    return {name: value for name, value in model.state_dict().items()
            if not name.startswith(('decoder', 'mask_token', 'head.'))}


def test_an_encoder_alone_gives_features_and_is_rejected_as_a_complete_model(tmp_path):
    mae = nano_mae().eval()
    path = write(tmp_path / 'x.safetensors', encoder_of(mae))
    imgs = torch.randn(2, 3, 32, 32)
    latent, _, ids_restore = mae.forward_encoder(imgs, 0)
    latent = torch.cat([latent[:, :1], gather_tokens(latent[:, 1:], ids_restore)], dim=1)
    assert torch.allclose(load_model.load_any(path).model(imgs), latent[:, 0], atol=1e-5)
    assert torch.allclose(features.pooled(mae, imgs, 'cls'), latent[:, 0], atol=1e-5)
    assert torch.allclose(features.pooled(mae, imgs), latent[:, 1:].mean(dim=1), atol=1e-5)
    for load in (load_model.load_autoencoder, load_model.load_classifier):
        rejected(path, load)


def test_weights_of_other_channels_without_a_mean_are_rejected(tmp_path):
    model = nano_mae(in_chans=4)
    assert 'mean and std' in rejected(write(tmp_path / 'x.safetensors', model.state_dict()), load_model.load_any)


# -- checkpoints of other programs -------------------------------------------------------------------------------------
def prefixed(values, prefix):
    return {prefix + name: value for name, value in values.items()}


@pytest.mark.compat
@pytest.mark.parametrize('content, words', [
    (lambda vit: prefixed(vit, 'module.'), ['module.']),
    (lambda vit: {'state_dict': prefixed(vit, 'module.encoder.'), 'optimizer': {'state': {0: {'m': vit['head.bias']}}}},
     ['state_dict', 'module.encoder.']),
    (lambda vit: {'student': prefixed(vit, 'backbone.'), 'args': {'model': 'vit_base_patch16_224', 'input_size': None},
                  'teacher': {**prefixed(vit, 'backbone.'), 'proj.weight': vit['head.bias']}},
     ['teacher', 'backbone.', 'left out: student, proj.weight']),
    (lambda vit: {'net': {'weights_of_mine': vit}, 'global_step': 7}, ['weights_of_mine'])], ids=range(4))
def test_weights_are_found_in_containers_and_without_the_prefix_of_a_wrapper(tmp_path, caplog, content, words):
    model, path = nano_vit(num_classes=7).eval(), str(tmp_path / 'x.pth')
    torch.save(content(model.state_dict()), path)
    imgs = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_model.load_classifier(path).model(imgs), model(imgs))
    line, = [line for line in caplog.messages if 'left out' in line]
    assert all(word in line for word in [path, *words])


def test_the_prefix_of_a_wrapper_is_removed_from_ema_weights_too(tmp_path):
    values = nano_vit(num_classes=7).state_dict()
    pth_file.save(str(tmp_path / 'x.pth'), {
        'model': prefixed(values, 'module.'), 'model_ema': {'module.head.bias': values['head.bias'] + 1}})
    assert torch.equal(pth_file.load(str(tmp_path / 'x.pth'))['model']['head.bias'], values['head.bias'] + 1)


@pytest.mark.parametrize('content, words', [
    (lambda vit: {'conv1.weight': vit['head.bias'], 'fc.weight': vit['head.bias']}, ['conv1.weight, fc.weight']),
    (lambda vit: {'net': {'layer': vit['head.bias']}, 'epoch': 3}, ['net, epoch']),
    (lambda vit: {**prefixed(vit, 'base_encoder.'), **prefixed(vit, 'momentum_encoder.')},
     ['base_encoder., momentum_encoder.']),
    (lambda vit: {'model': vit, 'path': pathlib.PosixPath('x')}, ['PosixPath']),
    (lambda vit: {'model': vit, 'acc1': np.float64(3)}, ['scalar'])], ids=range(5))
def test_other_content_is_named_with_what_to_save(tmp_path, content, words):
    torch.save(content(nano_vit(num_classes=7).state_dict()), str(tmp_path / 'x.pth'))
    args = parse_finetune(['--data_path', str(tmp_path)])
    line = rejected(tmp_path / 'x.pth', lambda path: weights.start_from(
        path, nano_vit(), args, weights.load_pretrained))
    assert all(word in line for word in [*words, 'model.state_dict()'])


@pytest.mark.parametrize('more, rows, words', [
    ({}, slice(1, None), 'no class token.*16 positions'), ({'cls_token': None}, slice(1, None), 'no class token'),
    ({'dist_token': torch.zeros(1, 1, 128)}, [0, *range(17)], 'distillation token.*18 positions')])
def test_a_vit_without_class_token_or_with_a_distillation_token_is_rejected_by_its_name(tmp_path, more, rows, words):
    model = nano_vit(num_classes=7)
    values = {**model.state_dict(), **more, 'pos_embed': model.pos_embed.data[:, rows]}
    values = {name: value for name, value in values.items() if value is not None}
    torch.save(values, str(tmp_path / 'x.pth'))
    for load in (load_model.load_classifier, lambda path: weights.load_pretrained(model, values, path)):
        assert re.search(words, rejected(tmp_path / 'x.pth', load))


def test_a_number_of_positions_that_is_a_square_by_chance_is_no_fault_of_a_known_grid():
    values = nano_vit(img_size=(24, 40)).state_dict()      # 3 x 5 patches
    left_out, _ = weights.load_pretrained(nano_vit(), values, 'x.pth', {
        'input_size': [24, 40], 'patch_size': 8})
    assert not left_out


def test_the_id_of_a_model_on_the_hub_is_answered_by_how_to_download_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        parse_finetune(['--data_path', '.', '--finetune', 'facebook/vit-mae-base'])
    assert ended.value.code == 2 and 'hf download facebook/vit-mae-base' in capsys.readouterr().err


# -- timm -------------------------------------------------------------------------------------------------------------
@pytest.mark.compat
def test_weights_of_timm_give_the_same_logits(tmp_path):
    model = export.VisionTransformer(
        img_size=32, patch_size=8, num_classes=4, embed_dim=128, depth=6, num_heads=4).eval()
    torch.save(model.state_dict(), str(tmp_path / 'pytorch_model.bin'))
    (tmp_path / 'config.json').write_text(json.dumps({
        'architecture': 'vit', 'pretrained_cfg': {'mean': [.5] * 3, 'std': [.5] * 3}}))
    imgs = torch.randn(2, 3, 32, 32)
    for path in (tmp_path, tmp_path / 'pytorch_model.bin'):     # the file in such a folder means the folder
        found = load_model.load_classifier(str(path))
        with torch.no_grad():
            assert torch.allclose(found.model(imgs), model(imgs), atol=1e-5)
        assert found.flags['mean'] == [.5] * 3


# -- Hugging Face -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def mae_folder(tmp_path_factory):
    """A folder of a ViTMAE; test_export.py has what one computes."""
    folder = tmp_path_factory.mktemp('vit_mae')
    transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**SIZES, **DECODER)).save_pretrained(str(folder))
    return folder


def test_weights_are_read_from_several_files_but_not_without_config(tmp_path, mae_folder):
    name = next(name for name in hugging_face.WEIGHTS if (mae_folder / name).exists())
    (tmp_path / ('x' + name)).write_bytes((mae_folder / name).read_bytes())
    rejected(tmp_path / ('x' + name), load_model.load_any)
    transformers.ViTMAEForPreTraining.from_pretrained(str(mae_folder)).save_pretrained(
        str(tmp_path / 'parts'), max_shard_size='1MB')
    assert len(list((tmp_path / 'parts').iterdir())) > 4
    whole = pth_file.load(str(mae_folder))['model']
    found = pth_file.load(str(tmp_path / 'parts'))['model']
    assert set(found) == set(whole) and all(torch.equal(value, whole[name]) for name, value in found.items())


@NO_VIT
def test_a_vit_classifier_folder_is_evaluated_by_eval(images, tmp_path):
    names = ['class number %d' % label for label in range(8)]
    model = transformers.ViTForImageClassification(transformers.ViTConfig(
        id2label=dict(enumerate(names)), label2id={name: label for label, name in enumerate(names)}, **SIZES)).eval()
    model.save_pretrained(str(tmp_path / 'vit'))
    found, imgs = load_model.load_classifier(str(tmp_path / 'vit')), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(found.model(imgs), model(imgs).logits, atol=1e-5) and found.classes == names
    run = finetune('--data_path', images, '--output_dir', tmp_path / 'o', '--eval', '--resume', tmp_path / 'vit',
                   '--cls_token')
    assert run.status == 0 and '* Acc@1' in run.output, run.output


NEWER = [('vit.encoder.layer.', 'vit.layers.'), ('attention.attention.query', 'attention.q_proj'),
         ('attention.attention.key', 'attention.k_proj'), ('attention.attention.value', 'attention.v_proj'),
         ('attention.output.dense', 'attention.o_proj'), ('intermediate.dense', 'mlp.fc1'), ('output.dense', 'mlp.fc2')]


def test_the_names_of_transformers_5_are_known(mae_folder):
    ours = pth_file.load(str(mae_folder))['model']
    newer = {}
    for name, value in hugging_face.their_names(ours, 'vit.').items():
        for old, new in NEWER:
            name = name.replace(old, new)
        newer[name] = value
    assert 'vit.layers.0.attention.q_proj.weight' in newer and 'decoder.decoder_layers.1.mlp.fc2.bias' in newer
    again = hugging_face.translate(newer, 'x', json.loads((mae_folder / 'config.json').read_text()))['model']
    assert set(again) == set(ours) and all(torch.equal(value, again[name]) for name, value in ours.items())


@pytest.mark.parametrize('config', [
    {'num_attention_heads': 8}, {'decoder_num_attention_heads': 5}, {'predict_ratio': 2}, {'layer_norm_eps': 'x'},
    {'image_size': [32, 'x']}, {'model_type': ['vit']}, {'use_mean_pooling': False, 'model_type': 'beit'}], ids=str)
def test_a_config_of_an_unsupported_model_is_rejected_in_one_line(tmp_path, mae_folder, config):
    shutil.copytree(str(mae_folder), str(tmp_path / 'x'))
    own = json.loads((mae_folder / 'config.json').read_text())
    (tmp_path / 'x' / 'config.json').write_text(json.dumps({**own, **config}))
    rejected(tmp_path / 'x', load_model.load_any)


@pytest.mark.parametrize('width, heads', [(64, 2), (96, 2), (512, 16)])
def test_a_decoder_without_flags_has_the_published_heads_or_those_of_the_model(tmp_path, width, heads):
    model = nano_mae(decoder_embed_dim=width, decoder_num_heads=heads)
    pth_file.save(str(tmp_path / 'x.pth'), {'model': model.state_dict()})
    found = load_model.load_autoencoder(str(tmp_path / 'x.pth'))
    assert found.model.decoder_blocks[0].attn.num_heads == heads == found.flags['decoder_num_heads']


def test_a_config_without_the_heads_of_the_decoder_has_those_of_transformers(tmp_path, mae_folder):
    shutil.copytree(str(mae_folder), str(tmp_path / 'x'))
    config = json.loads((mae_folder / 'config.json').read_text())
    del config['decoder_num_attention_heads']
    (tmp_path / 'x' / 'config.json').write_text(json.dumps(config))
    heads = transformers.ViTMAEConfig().decoder_num_attention_heads
    assert load_model.load_autoencoder(str(tmp_path / 'x')).model.decoder_blocks[0].attn.num_heads == heads


MAE = '{"model_type": "vit_mae"}'


@pytest.mark.parametrize('config, weight_map', [
    (None, None), (MAE, None), (b'\xff', {'a': 'model.bin'}), ('[' * 100000, {'a': 'model.bin'}),
    (MAE, {'a': '../x.bin'}), (MAE, {'a': 'pipe'}), (MAE, [])], ids=range(7))
def test_a_folder_that_is_damaged_or_names_files_elsewhere_is_rejected_in_one_line(tmp_path, config, weight_map):
    torch.save({'a': torch.zeros(1)}, str(tmp_path / 'model.bin'))
    os.mkfifo(str(tmp_path / 'pipe'))
    if config is not None:
        write_file(tmp_path / 'config.json', config)
    if weight_map is not None:
        write_file(tmp_path / 'pytorch_model.bin.index.json', json.dumps({'weight_map': weight_map}))
    rejected(tmp_path)


# -- --init_from -------------------------------------------------------------------------------------------------------
def shifted(model):
    """A state_dict with values that no random initialization gives."""
    return {name: value + 1 for name, value in model.state_dict().items()}


def taken(model, values):
    """Names of the model's weights that equal those of a checkpoint."""
    return {name for name, value in model.state_dict().items() if name in values and torch.equal(value, values[name])}


@pytest.mark.parametrize('change', ['without', 'other width', 'incomplete', 'other heads', 'deeper'])
def test_a_decoder_that_does_not_fit_keeps_its_random_weights(change):
    values, model = shifted(nano_mae(decoder_embed_dim=32 if change == 'other width' else 64,
                                     decoder_depth=3 if change == 'deeper' else 2)), nano_mae()
    encoder_names = set(encoder_of(model))
    if change == 'without':
        values = {name: values[name] for name in encoder_names}
    if change == 'incomplete':
        del values['mask_token']
    flags = {'model': 'mae_vit_nano_patch16', 'decoder_num_heads': 4 if change == 'other heads' else None}
    left_out, fresh = weights.load_for_pretraining(model, values, 'x.pth', flags)
    assert taken(model, values) == encoder_names - {'pos_embed'}
    left = {'decoder_pos_embed', *encoder_names}
    assert set(fresh) == set(model.state_dict()) - left and set(left_out) == set(values) - left


@pytest.mark.parametrize('pool, fresh', [(True, ['norm.weight', 'norm.bias']), (False, [])])
def test_the_encoder_of_a_classifier_is_loaded(pool, fresh):
    values = shifted(nano_vit(global_pool=pool, num_classes=4))
    model = nano_mae()
    left_out, fresh_names = weights.load_for_pretraining(model, values, 'x.pth')
    assert [name for name in fresh_names if 'decoder' not in name and name != 'mask_token'] == fresh
    assert left_out == ['head.weight', 'head.bias'] + ['fc_norm.weight', 'fc_norm.bias'] * pool
    assert 'blocks.5.mlp.fc2.weight' in taken(model, values) and 'pos_embed' not in taken(model, values)


def test_init_from_starts_a_new_run_and_a_checkpoint_to_resume_from_takes_precedence(images, pretrained, tmp_path):
    path = pretrained / 'checkpoint-0.pth'
    flags = ['--data_path', images, '--output_dir', tmp_path, '--init_from', path, '--resume', 'auto', '--lr', '1e-9',
             '--input_size', 48, '--epochs']
    run = pretrain(*flags, 1)
    assert run.status == 0 and 'loaded {}; left out: nothing\n'.format(path) in run.output, run.output
    before, after = (pth_file.load(str(folder / 'checkpoint-0.pth')) for folder in (pretrained, tmp_path))
    assert after['epoch'] == 0 and torch.equal(after['model']['pos_embed'], nano_mae(img_size=48).pos_embed)
    assert all(torch.allclose(value, before['model'][name], atol=1e-6)
               for name, value in after['model'].items() if 'pos_embed' not in name)
    run = pretrain(*flags, 2)
    assert run.status == 0 and str(path) + ';' not in run.output and 'Epoch: [0]' not in run.output, run.output
