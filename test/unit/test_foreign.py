"""Weights of other libraries come in: safetensors, timm's names, Hugging Face's folders; and models without flags."""
import json
import os
import shutil
import struct

import pytest
import safetensors.torch
import torch
import transformers
from conftest import finetune

import models_mae
import models_vit
from util import checkpoint_file, export, hugging_face, trained, weights
from util.errors import UserError

SMALL = {'img_size': 32, 'patch_size': 8}
SIZES = {'hidden_size': 128, 'num_hidden_layers': 6, 'num_attention_heads': 4, 'intermediate_size': 512,
         'image_size': 32, 'patch_size': 8}
DECODER = {'decoder_hidden_size': 64, 'decoder_num_hidden_layers': 2, 'decoder_num_attention_heads': 2,
           'decoder_intermediate_size': 256}
NO_VIT = pytest.mark.skipif(not hasattr(torch.nn.init, 'trunc_normal_'), reason="transformers' ViT needs trunc_normal_")


def write(path, tensors, **metadata):
    checkpoint_file.save_safetensors(str(path), tensors, **metadata)
    return str(path)


def refused(path, words='', load=checkpoint_file.load):
    """`load` names the file in one line."""
    with pytest.raises(UserError) as caught:
        load(str(path))
    text = str(caught.value)
    assert str(path) in text and words in text and '\n' not in text and len(text) < 600, text


# -- safetensors -----------------------------------------------------------------------------------------------------
@pytest.mark.compat
def test_tensors_of_every_type_survive_safetensors_and_its_library_reads_them(tmp_path):
    saved = {'f': torch.randn(2, 3), 'd': torch.randn(2).double(), 'h': torch.randn(5).half(), 's': torch.tensor(2.),
             'b': torch.randn(7).bfloat16(), 'i': torch.arange(3), 'o': torch.tensor([True, False]),
             'u': torch.arange(3, dtype=torch.uint8), 'none': torch.zeros(0, 3)}
    path = write(tmp_path / 'x.safetensors', saved, a='b')
    found = [checkpoint_file.load(path)['model']]
    if hasattr(torch, 'frombuffer'):        # which the library's own reader needs
        theirs = str(tmp_path / 'theirs.safetensors')
        safetensors.torch.save_file(saved, theirs)
        found += [safetensors.torch.load_file(path), checkpoint_file.load(theirs)['model']]
    for loaded in found:
        assert set(loaded) == set(saved)
        for name, value in saved.items():
            assert loaded[name].dtype == value.dtype and loaded[name].shape == value.shape
            assert torch.equal(loaded[name].double(), value.double()), name


def raw(header, data=b''):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data


def entry(begin, end, shape=(1,), dtype='F32'):
    return {'dtype': dtype, 'shape': list(shape), 'data_offsets': [begin, end]}


@pytest.mark.compat
@pytest.mark.parametrize('content', [
    struct.pack('<Q', 2 ** 62) + b'{}', struct.pack('<Q', 99) + b'{}', raw(b'{"a": ' + b'[' * 100000),
    raw(b'{"a": 1, "a": 1}'), raw({'a': entry(0, 8)}, b'x' * 8), raw({'a': entry(0, 4)}, b'xx'),
    raw({'a': entry(0, 4), 'b': entry(2, 6)}, b'x' * 6), raw({'a': entry(0, 2 ** 70, (2 ** 68,))}),
    raw({'a': entry(0, 1, (1,), 'F8_E4M3')}, b'x'), raw({'__metadata__': {'args': '{'}})], ids=range(10))
def test_a_hostile_or_damaged_safetensors_file_is_refused_in_one_line(tmp_path, content):
    (tmp_path / 'x.safetensors').write_bytes(content)
    refused(tmp_path / 'x.safetensors')


# -- models without flags ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize('pools_mean', [True, False])
def test_a_classifier_without_flags_is_recognised_by_its_shapes(tmp_path, pools_mean):
    model = models_vit.vit_nano_patch16(global_pool=pools_mean, num_classes=7, in_chans=1, **SMALL).eval()
    found = trained.load_classifier(write(tmp_path / 'x.safetensors', model.state_dict()))
    imgs = torch.randn(2, 1, 32, 32)
    assert torch.equal(found.model(imgs), model(imgs))


def test_an_autoencoder_without_flags_is_recognised(tmp_path):
    model = models_mae.mae_vit_nano_patch16(**SMALL).eval()
    torch.save(model.state_dict(), str(tmp_path / 'x.bin'))
    found = trained.load_autoencoder(str(tmp_path / 'x.bin'))
    imgs, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    assert torch.equal(found.model(imgs, .75, noise)[1], model(imgs, .75, noise)[1])


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
        with pytest.raises(UserError, match='x.safetensors: '):
            load(path)


def test_weights_of_no_known_model_are_refused_in_one_line(tmp_path):
    mae = models_mae.mae_vit_nano_patch16(**SMALL).state_dict()
    for values in ({'a': torch.zeros(1)}, {**mae, 'decoder_embed.weight': torch.zeros(9, 128)},
                   {'patch_embed.proj.weight': torch.zeros(100, 3, 8, 8), 'pos_embed': torch.zeros(1, 17, 100)}):
        with pytest.raises(UserError, match='x.safetensors: '):
            trained.load_either(write(tmp_path / 'x.safetensors', values))


# -- timm -------------------------------------------------------------------------------------------------------------
@pytest.mark.compat
def test_timms_own_weights_are_read_and_compute_the_same(tmp_path):
    model = export.VisionTransformer(num_classes=4, embed_dim=128, depth=6, num_heads=4, **SMALL).eval()
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
    with pytest.raises(UserError, match='x.pth: .*blocks.0.ls1.gamma'):
        weights.load_pretrained(model, values, 'x.pth')


# -- Hugging Face -----------------------------------------------------------------------------------------------------
def hugging_face_mae(folder, **options):
    torch.manual_seed(0)
    config = transformers.ViTMAEConfig(**{**SIZES, **DECODER, **options})
    transformers.ViTMAEForPreTraining(config).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope='module')
def mae_folder(tmp_path_factory):
    """A folder of a ViTMAE with norm_pix_loss."""
    return hugging_face_mae(tmp_path_factory.mktemp('vit_mae'), norm_pix_loss=True)


@pytest.mark.compat
def test_a_vit_mae_folder_computes_the_same(mae_folder):
    model = transformers.ViTMAEForPreTraining.from_pretrained(str(mae_folder)).eval()
    found = trained.load_autoencoder(str(mae_folder))
    assert found.flags['norm_pix_loss'] and found.flags['layer_norm_eps'] == 1e-12
    imgs, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    with torch.no_grad():
        theirs, ours = model(imgs, noise=noise), found.model(imgs, .75, noise)
    assert torch.allclose(theirs.loss, ours[0], rtol=1e-5) and torch.allclose(theirs.logits, ours[1], atol=1e-5)
    assert torch.equal(theirs.mask, ours[2])


def test_weights_are_read_without_their_config_and_in_several_files(tmp_path, mae_folder):
    name = next(name for name in hugging_face.WEIGHTS if (mae_folder / name).exists())
    (tmp_path / ('x' + name)).write_bytes((mae_folder / name).read_bytes())
    transformers.ViTMAEForPreTraining.from_pretrained(str(mae_folder)).save_pretrained(
        str(tmp_path / 'parts'), max_shard_size='1MB')
    assert len(list((tmp_path / 'parts').iterdir())) > 4
    whole = checkpoint_file.load(str(mae_folder))['model']
    for path in (tmp_path / ('x' + name), tmp_path / 'parts'):
        found = checkpoint_file.load(str(path))['model']
        assert set(found) == set(whole) and all(torch.equal(value, whole[name]) for name, value in found.items())


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
    ours = checkpoint_file.load(str(mae_folder))['model']
    newer = {}
    for name, value in hugging_face.their_names(ours, 'vit.').items():
        for old, new in NEWER:
            name = name.replace(old, new)
        newer[name] = value
    assert 'vit.layers.0.attention.q_proj.weight' in newer and 'decoder.decoder_layers.1.mlp.fc2.bias' in newer
    again = hugging_face.translate(newer, 'x')['model']
    assert set(again) == set(ours) and all(torch.equal(value, again[name]) for name, value in ours.items())


def changed(source, target, **config):
    """A copy of a folder with another config.json."""
    shutil.copytree(str(source), str(target))
    own = json.loads((source / 'config.json').read_text())
    (target / 'config.json').write_text(json.dumps({**own, **config}))
    return target


@pytest.mark.parametrize('config', [
    {'hidden_act': 'relu'}, {'num_attention_heads': 8}, {'decoder_num_attention_heads': 4}, {'mask_ratio': 2.},
    {'layer_norm_eps': 'x'}, {'image_size': -1}, {'image_size': [32, 'x']}, {'patch_size': 16}, {'model_type': 'clip'},
    {'model_type': ['vit']}, {'use_mean_pooling': False, 'model_type': 'beit'}], ids=str)
def test_a_config_that_this_program_cannot_follow_is_refused_in_one_line(tmp_path, mae_folder, config):
    refused(changed(mae_folder, tmp_path / 'x', **config), load=trained.load_either)


def index(places):
    return 'pytorch_model.bin.index.json', json.dumps({'weight_map': places}).encode()


@pytest.mark.parametrize('name, content', [
    index({'a': '../x.bin'}), index({'a': '..'}), index({'a': 5}), index([]), ('config.json', b'[]'),
    ('config.json', b'\xff'), ('config.json', b'[' * 100000)], ids=range(7))
def test_a_folder_that_is_damaged_or_names_files_elsewhere_is_refused_in_one_line(tmp_path, name, content):
    torch.save({'a': torch.zeros(1)}, str(tmp_path / 'model.bin'))
    for path, text in (('config.json', b'{"model_type": "vit_mae"}'), index({'a': 'model.bin'}), (name, content)):
        (tmp_path / path).write_bytes(text)
    refused(tmp_path)


def test_a_folder_of_anything_else_is_refused_in_one_line(tmp_path):
    refused(tmp_path, 'config.json')
    (tmp_path / 'config.json').write_text('{"model_type": "vit_mae"}')
    refused(tmp_path, 'model.safetensors')
    os.mkfifo(str(tmp_path / 'pytorch_model.bin'))
    refused(tmp_path)
