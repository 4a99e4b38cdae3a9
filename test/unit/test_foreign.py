"""Weights of other libraries come in: safetensors, timm's names, Hugging Face's folders; and models without flags."""
import json
import os
import struct

import pytest
import torch
import transformers
from conftest import finetune

import models_mae
import models_vit
from util import checkpoint_file, export_timm, hugging_face, recognition, safetensors_file, trained, weights
from util.arguments import FINETUNE_MODELS, PRETRAIN_MODELS
from util.errors import UserError
from util.log import logger

SMALL = {'img_size': 32, 'patch_size': 8}
SIZES = {'hidden_size': 128, 'num_hidden_layers': 6, 'num_attention_heads': 4, 'intermediate_size': 512,
         'image_size': 32, 'patch_size': 8}
DECODER = {'decoder_hidden_size': 64, 'decoder_num_hidden_layers': 2, 'decoder_num_attention_heads': 2,
           'decoder_intermediate_size': 256}
NO_VIT = pytest.mark.skipif(not hasattr(torch.nn.init, 'trunc_normal_'), reason="transformers' ViT needs trunc_normal_")


def write(path, tensors, **metadata):
    with open(str(path), 'wb') as file:
        safetensors_file.write(file, tensors, metadata)
    return str(path)


@pytest.fixture
def said(monkeypatch):
    """What the log gets."""
    lines = []
    for level in ('info', 'warning'):
        monkeypatch.setattr(logger, level, lambda text, *args: lines.append(text % args))
    return lines


def refused(path, words=''):
    """load() names the file in one line."""
    with pytest.raises(UserError) as caught:
        checkpoint_file.load(str(path))
    assert str(path) in str(caught.value) and words in str(caught.value), caught.value
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 600


# -- safetensors -----------------------------------------------------------------------------------------------------
def tensors():
    return {'f': torch.randn(2, 3), 'd': torch.randn(2).double(), 'h': torch.randn(5).half(), 'none': torch.zeros(0, 3),
            'b': torch.randn(7).bfloat16(), 'i': torch.arange(3), 'o': torch.tensor([True, False]),
            's': torch.tensor(2.), 'u': torch.arange(3, dtype=torch.uint8)}


@pytest.mark.compat
def test_tensors_of_every_type_survive_safetensors(tmp_path):
    saved = tensors()
    loaded = checkpoint_file.load(write(tmp_path / 'x.safetensors', saved))['model']
    assert set(loaded) == set(saved)
    for name, value in saved.items():
        assert loaded[name].dtype == value.dtype and loaded[name].shape == value.shape
        assert torch.equal(loaded[name].double(), value.double()), name


@pytest.mark.skipif(not hasattr(torch, 'frombuffer'), reason="safetensors' PyTorch part needs a newer PyTorch")
def test_the_safetensors_library_and_this_program_read_each_others_files(tmp_path):
    from safetensors import torch as library
    saved = tensors()
    theirs = library.load_file(write(tmp_path / 'ours.safetensors', saved, a='b'))
    library.save_file(saved, str(tmp_path / 'theirs.safetensors'))
    ours = checkpoint_file.load(str(tmp_path / 'theirs.safetensors'))['model']
    assert set(ours) == set(theirs) == set(saved)
    assert all(torch.equal(ours[name], value) and torch.equal(theirs[name], value) for name, value in saved.items())


def raw(header, data=b''):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data


def entry(begin, end, shape=(1,), dtype='F32'):
    return {'dtype': dtype, 'shape': list(shape), 'data_offsets': [begin, end]}


@pytest.mark.compat
@pytest.mark.parametrize('content', [
    struct.pack('<Q', 2 ** 62) + b'{}', struct.pack('<Q', 99) + b'{}', raw(b'{'), raw(b'{' * 100000), raw(b'{}', b'x'),
    raw(b'{"a": ' + b'[' * 100000), raw(b'{"\xff": 1}'), raw(b'{"a": 1, "a": 1}'), raw({'a': entry(0, 8)}, b'x' * 8),
    raw({'a': entry(0, 4)}, b'xx'), raw({'a': entry(0, 4)}, b'x' * 8), raw({'a': entry(4, 8)}, b'x' * 8),
    raw({'a': entry(0, 4), 'b': entry(2, 6)}, b'x' * 6), raw({'a': entry(0, 4), 'b': entry(0, 4)}, b'x' * 4),
    raw({'a': entry(4, 0)}, b'x' * 4), raw({'a': entry(-4, 0)}, b''), raw({'a': entry(0, 2 ** 70, (2 ** 68,))}),
    raw({'a': entry(0, 4, (-1, -1))}, b'x' * 4), raw({'a': entry(0, 4, (True,))}, b'x' * 4),
    raw({'a': entry(0, 4, (1.,))}, b'x' * 4), raw({'a': entry(0, 4, [1] * 99)}, b'x' * 4),
    raw({'a': entry(0, 1, (1,), 'F8_E4M3')}, b'x'), raw({'a': entry(0, 4, (1,), ['F32'])}, b'x' * 4),
    raw({'a': {'dtype': 'F32', 'shape': [1]}}, b'x' * 4), raw({'a': 5}), raw({'__metadata__': {'a': 1}}),
    raw({'__metadata__': []}), raw({'__metadata__': {'args': '{'}})])
def test_a_hostile_or_damaged_safetensors_file_is_refused_in_one_line(tmp_path, content):
    (tmp_path / 'x.safetensors').write_bytes(content)
    refused(tmp_path / 'x.safetensors', 'not a readable checkpoint')


def test_metadata_that_describe_no_model_are_refused(tmp_path):
    values = models_vit.vit_nano_patch16(num_classes=2, **SMALL).state_dict()
    for metadata in ({'args': '7'}, {'args': '{"model": "__builtins__"}'}, {'args': '{"model": ["x"]}'},
                     {'args': '{"model": "vit_nano_patch16", "layer_norm_eps": "x"}'}, {'classes': '[1, 2]'}):
        if metadata != {'args': '7'}:           # taken for none
            with pytest.raises(UserError, match='x.safetensors: '):
                trained.load_classifier(write(tmp_path / 'x.safetensors', values, **metadata))


# -- models without flags ---------------------------------------------------------------------------------------------
def test_the_table_of_sizes_is_that_of_the_models(monkeypatch):
    for module, kind, names in ((models_vit, 'VisionTransformer', FINETUNE_MODELS),
                                (models_mae, 'MaskedAutoencoderViT', PRETRAIN_MODELS)):
        monkeypatch.setattr(module, kind, lambda **options: options)
        for name in names:
            found = getattr(module, name)()
            size = recognition.ENCODERS[found['embed_dim'], found['depth']]
            assert size.size in name and size.heads == found['num_heads']
            assert recognition.PATCHES.get(size.size, recognition.PATCH) == found['patch_size']
            if 'decoder_depth' in found:
                assert recognition.DECODERS[size.size] == (
                    found['decoder_embed_dim'], found['decoder_depth'], found['decoder_num_heads'])


@pytest.mark.parametrize('pools_mean', [True, False])
def test_a_classifier_without_flags_is_recognised_by_its_shapes(tmp_path, pools_mean):
    model = models_vit.vit_nano_patch16(global_pool=pools_mean, num_classes=7, in_chans=1, **SMALL).eval()
    found = trained.load_classifier(write(tmp_path / 'x.safetensors', model.state_dict()))
    imgs = torch.randn(2, 1, 32, 32)
    assert torch.equal(found.model(imgs), model(imgs))
    assert found.flags['input_size'] == 32 and found.flags['global_pool'] == pools_mean


def test_an_autoencoder_without_flags_is_recognised_and_what_is_unknown_is_said(tmp_path, said):
    model = models_mae.mae_vit_nano_patch16(**SMALL).eval()
    torch.save(model.state_dict(), str(tmp_path / 'x.bin'))
    found = trained.load_autoencoder(str(tmp_path / 'x.bin'))
    imgs, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    assert torch.equal(found.model(imgs, .75, noise)[1], model(imgs, .75, noise)[1])
    assert 'mae_vit_nano_patch16, input size 32, patch size 8' in said[0] and '--norm_pix_loss is not known' in said[1]
    torch.save({**model.state_dict(), 'decoder_embed.weight': torch.zeros(9, 128)}, str(tmp_path / 'y.bin'))
    with pytest.raises(UserError, match='its decoder has width 9'):
        trained.load_autoencoder(str(tmp_path / 'y.bin'))


def encoder_of(model):
    """What timm and the published files hold of a pre-trained model."""
    return {name: value for name, value in model.state_dict().items()
            if not name.startswith(('decoder', 'mask_token', 'head.'))}


def test_an_encoder_alone_gives_features_and_is_refused_as_anything_else(tmp_path):
    mae = models_mae.mae_vit_nano_patch16(**SMALL).eval()
    path = write(tmp_path / 'x.safetensors', encoder_of(mae))
    imgs = torch.randn(2, 3, 32, 32)
    latent = mae.forward_encoder(mae.patchify(imgs), torch.arange(16).expand(2, -1))
    assert torch.allclose(trained.load_either(path).model(imgs), latent[:, 0], atol=1e-5)
    for load in (trained.load_autoencoder, trained.load_classifier):
        with pytest.raises(UserError, match='x.safetensors: is'):
            load(path)


def test_weights_of_no_known_size_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match='none of the models'):
        trained.load_either(write(tmp_path / 'x.safetensors', {
            'patch_embed.proj.weight': torch.zeros(100, 3, 8, 8), 'pos_embed': torch.zeros(1, 17, 100)}))
    with pytest.raises(UserError, match='nor the weights of a ViT'):
        trained.load_either(write(tmp_path / 'x.safetensors', {'a': torch.zeros(1)}))


# -- timm -------------------------------------------------------------------------------------------------------------
def test_timms_own_weights_are_read_and_compute_the_same(tmp_path):
    model = export_timm.VisionTransformer(num_classes=4, embed_dim=128, depth=6, num_heads=4, **SMALL).eval()
    torch.save(model.state_dict(), str(tmp_path / 'pytorch_model.bin'))
    (tmp_path / 'config.json').write_text(json.dumps({
        'architecture': 'vit', 'pretrained_cfg': {'mean': [.5] * 3, 'std': [.5] * 3}}))
    imgs = torch.randn(2, 3, 32, 32)
    for path in (tmp_path, tmp_path / 'pytorch_model.bin'):     # the file in such a folder means the folder
        found = trained.load_classifier(str(path))
        with torch.no_grad():
            assert torch.allclose(found.model(imgs), model(imgs), atol=1e-5)
        assert found.flags['mean'] == [.5] * 3


def test_a_block_with_more_than_this_programs_have_is_not_left_out_in_silence():
    model = models_vit.vit_nano_patch16(num_classes=2, **SMALL)
    values = {**model.state_dict(), 'blocks.0.ls1.gamma': torch.zeros(128)}
    with pytest.raises(UserError, match='also holds blocks.0.ls1.gamma'):
        weights.load_pretrained(model, values, 'x.pth')


def test_timms_mae_starts_a_classifier(said):
    values = encoder_of(models_mae.mae_vit_nano_patch16(img_size=64, patch_size=8))
    model = models_vit.vit_nano_patch16(global_pool=True, num_classes=2, **SMALL)
    left_out, fresh = weights.load_pretrained(model, values, 'x.safetensors')
    assert left_out == ['norm.weight', 'norm.bias'] and {name.split('.')[0] for name in fresh} == {'head', 'fc_norm'}
    assert said == ['positions interpolated from 8 x 8 to 4 x 4 patches']


# -- Hugging Face -----------------------------------------------------------------------------------------------------
def hugging_face_mae(folder, **options):
    torch.manual_seed(0)
    model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**{**SIZES, **DECODER, **options})).eval()
    model.save_pretrained(str(folder))
    return model


@pytest.fixture(scope='module')
def mae_folder(tmp_path_factory):
    """A folder of a ViTMAE with norm_pix_loss."""
    folder = tmp_path_factory.mktemp('vit_mae')
    hugging_face_mae(folder, norm_pix_loss=True)
    return folder


def test_a_vit_mae_folder_computes_the_same_and_says_where_training_differs(mae_folder, said):
    model = transformers.ViTMAEForPreTraining.from_pretrained(str(mae_folder)).eval()
    found = trained.load_autoencoder(str(mae_folder))
    assert found.flags['norm_pix_loss'] and '142 tensors of a Hugging Face vit_mae' in said[0]
    assert 'layer_norm_eps 1e-12' in said[1]
    imgs, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    with torch.no_grad():
        theirs, ours = model(imgs, noise=noise), found.model(imgs, .75, noise)
    assert torch.allclose(theirs.loss, ours[0], rtol=1e-5) and torch.allclose(theirs.logits, ours[1], atol=1e-5)
    assert torch.equal(theirs.mask, ours[2])


def test_a_file_of_hugging_face_weights_is_read_without_its_config(tmp_path, mae_folder):
    name = next(name for name in hugging_face.WEIGHTS if (mae_folder / name).exists())
    (tmp_path / ('x' + name)).write_bytes((mae_folder / name).read_bytes())
    found = checkpoint_file.load(str(tmp_path / ('x' + name)))
    assert torch.equal(found['model']['blocks.5.attn.qkv.weight'],
                       checkpoint_file.load(str(mae_folder))['model']['blocks.5.attn.qkv.weight'])


def test_a_folder_in_several_files_is_read_whole(tmp_path, mae_folder):
    hugging_face_mae(tmp_path / 'x').save_pretrained(str(tmp_path / 'parts'), max_shard_size='1MB')
    assert len(list((tmp_path / 'parts').iterdir())) > 4
    whole, parts = (checkpoint_file.load(str(tmp_path / name))['model'] for name in ('x', 'parts'))
    assert set(whole) == set(parts) and all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_fine_tuning_from_a_hugging_face_folder_says_what_it_took(images, tmp_path):
    hugging_face_mae(tmp_path / 'mae', image_size=64)
    run = finetune('--data_path', images, '--output_dir', tmp_path / 'o', '--epochs', 1, '--finetune', tmp_path / 'mae')
    assert run.status == 0, run.output
    for line in ('142 tensors of a Hugging Face vit_mae read as mae_vit_nano_patch16; left out: nothing',
                 'positions interpolated from 8 x 8 to 4 x 4 patches', 'left out: the decoder, norm.',
                 'starting from random weights: head.weight, head.bias, fc_norm.weight, fc_norm.bias'):
        assert line in run.output


@NO_VIT
def test_a_vit_classifier_folder_is_evaluated_by_eval(images, tmp_path):
    names = ['class number %d' % label for label in range(8)]
    model = transformers.ViTForImageClassification(transformers.ViTConfig(
        id2label=dict(enumerate(names)), label2id={name: label for label, name in enumerate(names)}, **SIZES)).eval()
    model.save_pretrained(str(tmp_path / 'vit'))
    found, imgs = trained.load_classifier(str(tmp_path / 'vit')), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(found.model(imgs), model(imgs).logits, atol=1e-5) and found.classes == names
    run = finetune('--data_path', images, '--output_dir', tmp_path / 'o', '--eval', '--resume', tmp_path / 'vit',
                   '--cls_token')
    assert run.status == 0 and '* Acc@1' in run.output, run.output


@NO_VIT
def test_a_vit_without_a_bias_of_qkv_computes_the_same(tmp_path):
    model = transformers.ViTModel(transformers.ViTConfig(qkv_bias=False, **SIZES)).eval()
    model.save_pretrained(str(tmp_path))
    imgs = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(trained.load_either(str(tmp_path)).model(imgs), model(imgs).last_hidden_state[:, 0],
                              atol=1e-5)


NEWER = [('vit.encoder.layer.', 'vit.layers.'), ('attention.attention.query', 'attention.q_proj'),
         ('attention.attention.key', 'attention.k_proj'), ('attention.attention.value', 'attention.v_proj'),
         ('attention.output.dense', 'attention.o_proj'), ('intermediate.dense', 'mlp.fc1'), ('output.dense', 'mlp.fc2')]


def test_the_names_of_transformers_5_are_known(mae_folder):
    theirs = hugging_face.their_names(checkpoint_file.load(str(mae_folder))['model'], 'vit.')
    newer = {}
    for name, value in theirs.items():
        for old, new in NEWER:
            name = name.replace(old, new)
        newer[name] = value
    assert 'vit.layers.0.attention.q_proj.weight' in newer and 'decoder.decoder_layers.1.mlp.fc2.bias' in newer
    again = hugging_face.translate(newer, 'x')['model']
    assert all(torch.equal(value, again[name]) for name, value in hugging_face.translate(theirs, 'x')['model'].items())


def changed(source, target, **config):
    """A copy of a folder with another config.json."""
    target.mkdir()
    for path in source.iterdir():
        os.symlink(str(path), str(target / path.name))
    own = json.loads((source / 'config.json').read_text())
    (target / 'config.json').unlink()
    (target / 'config.json').write_text(json.dumps({**own, **config}))
    return target


@pytest.mark.parametrize('config, words', [
    ({'hidden_act': 'relu'}, 'hidden_act relu'), ({'num_attention_heads': 8}, 'num_attention_heads 8'),
    ({'decoder_num_attention_heads': 4}, 'decoder_num_attention_heads 4'), ({'mask_ratio': 2.}, 'mask_ratio 2.0'),
    ({'model_type': 'clip'}, 'is a Hugging Face clip'), ({'model_type': ['vit']}, 'is a Hugging Face'),
    ({'layer_norm_eps': 'x'}, 'layer_norm_eps x'), ({'image_size': -1}, 'image_size -1'),
    ({'patch_size': 16}, 'patch_size is 16'), ({'num_channels': 1}, 'in_chans is 1'),
    ({'model_type': 'beit', 'use_mean_pooling': False}, 'use_mean_pooling False')])
def test_a_config_that_this_program_cannot_follow_is_refused_in_one_line(tmp_path, mae_folder, config, words):
    refused(changed(mae_folder, tmp_path / 'x', **config), words)


@pytest.mark.parametrize('places', [{'a': '../x.bin'}, {'a': '/etc/passwd'}, {'a': '..'}, {'a': ''}, {'a': 5}, [],
                                    {'a': 'model.bin', 'b': 'model.bin'}])
def test_an_index_that_names_files_elsewhere_or_weights_that_are_not_there_is_refused(tmp_path, places):
    torch.save({'a': torch.zeros(1)}, str(tmp_path / 'model.bin'))
    (tmp_path / 'config.json').write_text('{"model_type": "vit_mae"}')
    (tmp_path / 'pytorch_model.bin.index.json').write_text(json.dumps({'weight_map': places}))
    refused(tmp_path, 'not a readable checkpoint')


@pytest.mark.parametrize('config', [b'{', b'[]', b'\xff', b'[' * 100000, b' ' * (hugging_face.MOST_JSON + 2)])
def test_a_damaged_config_is_refused_in_one_line(tmp_path, config):
    torch.save({'a': torch.zeros(1)}, str(tmp_path / 'pytorch_model.bin'))
    (tmp_path / 'config.json').write_bytes(config)
    refused(tmp_path, 'not a readable checkpoint')


def test_a_folder_of_anything_else_is_refused_in_one_line(tmp_path):
    refused(tmp_path, 'is a folder without config.json')
    (tmp_path / 'config.json').write_text('{"model_type": "vit_mae"}')
    refused(tmp_path, 'holds none of model.safetensors, pytorch_model.bin')
    os.mkfifo(str(tmp_path / 'pytorch_model.bin'))
    refused(tmp_path)
