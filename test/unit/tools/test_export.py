"""Export to other libraries, and import of the result."""
import functools
import os
import sys

import numpy as np
import pytest
import timm
import torch

import models_mae
import models_vit
from util.checkpoints import load_model, pth_file
from util.compat import accepts
from util.data.lazy_image import LazyImage
from util.data.transforms import preprocessing_of
from util.errors import UserError
from util.tools import export, export_hf, export_onnx

FILES = {'timm': 'x.pth', 'hf': 'x', 'onnx': 'x.onnx'}
# (checkpoint, part): every part of every checkpoint.
PARTS = [('mae', 'mae'), ('mae', 'encoder'), ('mean', 'classifier'), ('mean', 'encoder'), ('cls', 'classifier'),
         ('cls', 'encoder'), ('wide', 'classifier'), ('wide-cls', 'classifier')]
OF_VIT = [PARTS[1], *PARTS[4:6], PARTS[7]]      # of transformers; the others are its ViTMAE and BEiT
SIZE = {'img_size': 16, 'patch_size': 8}


def perturbed(model):
    """Weights away from their initial values, so that no output is small or symmetric."""
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * .05)
    return model.eval()


DECODER = {'decoder_embed_dim': 32, 'decoder_depth': 1, 'decoder_num_heads': 4, 'predict_ratio': .5}


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """A folder of an autoencoder, classifiers of the mean, of the class token, of a wide grey input with an epsilon,
    mean and std of its own, and of the class token of a high input, and an autoencoder of a wide input."""
    torch.manual_seed(0)
    folder, names = tmp_path_factory.mktemp('checkpoints'), {'classes': ['cat', 'cow', 'dog']}
    mean, three = {'global_pool': True}, {'num_classes': 3}
    for name, model, flags, more in (
            ('mae', models_mae.mae_vit_nano_patch16(norm_pix_loss=True, **DECODER, **SIZE),
             {'model': 'mae_vit_nano_patch16', 'norm_pix_loss': True, 'mask_ratio': .5, **DECODER}, {}),
            ('mean', models_vit.vit_nano_patch16(**mean, **three, **SIZE), mean, names),
            ('cls', models_vit.vit_nano_patch16(**three, **SIZE), {'global_pool': False}, names),
            ('wide', models_vit.vit_nano_patch16(img_size=(16, 32), patch_size=8, in_chans=1, **mean, **three),
             {'input_size': [16, 32], 'in_chans': 1, 'layer_norm_eps': 1e-2, 'mean': [.1], 'std': [.3]}, {}),
            ('wide-cls', models_vit.vit_nano_patch16(img_size=(32, 16), patch_size=8, **three), {
                'input_size': [32, 16], 'global_pool': False}, {'classes': ['cat', 'cow']}),     # of --nb_classes 3
            ('wide-mae', models_mae.mae_vit_nano_patch16(img_size=(16, 32), patch_size=8),
             {'model': 'mae_vit_nano_patch16', 'input_size': [16, 32]}, {})):
        flags = {'model': 'vit_nano_patch16', 'input_size': 16, 'patch_size': 8, 'in_chans': 3, **flags}
        pth_file.save(str(folder / name), {'model': perturbed(model).state_dict(), 'args': flags, **more})
    return folder


@pytest.mark.compat     # other opsets, names and libraries
@pytest.mark.parametrize('form, source, part', [(form, *place) for form in FILES for place in PARTS
                                                if form == 'hf' or place != ('mae', 'mae')])
def test_each_part_is_exported_compared_and_loaded_again(checkpoints, tmp_path, form, source, part):
    if form == 'timm' and source in ('mean', 'wide') and not accepts(export.VisionTransformer, 'global_pool'):
        pytest.skip("this timm's ViT has no mean pooling")
    path = str(tmp_path / FILES[form])
    if (form, source) == ('hf', 'wide') and export_hf.transformers.__version__ >= '5':
        with pytest.raises(UserError, match='^--to hf: BeitForImageClassification .*--to onnx$'):
            export.export(str(checkpoints / source), form, path, part)
        return                  # its BEiT takes square inputs only
    compared, inputs, load = export.export(str(checkpoints / source), form, path, part)
    too_old = form == 'hf' and (source, part) in OF_VIT and not hasattr(torch.nn.init, 'trunc_normal_')
    assert compared.startswith('not compared' if too_old else 'compared with ' + form)
    assert os.listdir(str(tmp_path)) == [FILES[form]] and 'imgs (N, ' in inputs
    if not too_old:
        exec(load.split(': ', 1)[1], {'timm': timm, 'torch': torch, 'functools': functools,
                                      'transformers': export_hf.transformers, 'onnxruntime': export_onnx.onnxruntime})
    if form == 'hf':
        before, after = export.ExportedModel(str(checkpoints / source), part), export.ExportedModel(path)
        for name, value in before.expected.items():
            assert torch.allclose(after.expected[name], value, atol=1e-5)
        assert (after.mean, after.std) == (before.mean, before.std)
        if part == 'mae':
            assert load_model.load_autoencoder(path).model.predict_ratio == DECODER['predict_ratio']
        names = before.classes and [*before.classes, 'LABEL_2'][:3]
        assert after.part == part and (part != 'classifier' or after.classes == names)


def test_the_exported_image_processor_reproduces_the_evaluation_transform(checkpoints, tmp_path):
    """For an image of the input size: resizing differs by rounding."""
    transformers = export_hf.transformers
    export.export(str(checkpoints / 'mean'), 'hf', str(tmp_path / 'x'))
    pixels = np.random.RandomState(0).randint(0, 256, (18, 18, 3)).astype(np.uint8)
    transform, normalize = preprocessing_of(load_model.load_any(str(checkpoints / 'mean')).flags)
    processor = getattr(transformers, 'AutoImageProcessor', None) or transformers.AutoFeatureExtractor
    found = processor.from_pretrained(str(tmp_path / 'x'))(pixels, return_tensors='pt')['pixel_values']
    assert torch.allclose(found, normalize(transform(LazyImage(pixels))[None]), atol=1e-5)


def test_different_values_nan_or_shapes_are_an_error_and_nothing_is_written(checkpoints, tmp_path, monkeypatch):
    part = export.ExportedModel(str(checkpoints / 'cls'))
    logits = part.expected['logits']
    part.compare({'logits': logits.numpy()}, 'x')
    for wrong in (logits + 1e-2, logits * float('nan'), logits[:2], logits[:, None]):
        with pytest.raises(UserError, match='nothing was written'):
            part.compare({'logits': wrong}, 'x')
    monkeypatch.setattr(export, 'TOLERANCE', -1)
    with pytest.raises(UserError, match='nothing was written'):
        export.export(str(checkpoints / 'cls'), 'onnx', str(tmp_path / 'x.onnx'))
    assert os.listdir(str(tmp_path)) == []


def test_without_the_library_the_file_is_written_but_not_compared(checkpoints, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export_hf, 'transformers', None)
    monkeypatch.setattr(export_onnx, 'onnxruntime', None)
    for form, written in (('hf', 'x/model.safetensors'), ('onnx', 'x.onnx')):
        path = str(tmp_path / FILES[form])
        export.main(['--resume', str(checkpoints / 'cls'), '--to', form, '--output', path])
        printed = capsys.readouterr().out.split('\n')
        assert (tmp_path / written).exists() and path in printed[-5] and printed[-4].startswith('not compared')


def test_an_export_that_needs_a_missing_library_is_one_line(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'util.tools.export_onnx', None)
    with pytest.raises(UserError, match='pip install onnx onnxruntime'):
        export.export(str(checkpoints / 'cls'), 'onnx', str(tmp_path / 'x.onnx'))
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize('source, form, part, flag', [
    ('mae', 'timm', 'mae', '--to timm'), ('mae', 'onnx', None, '--to onnx'),
    ('mae', 'onnx', 'classifier', '--part classifier'), ('cls', 'onnx', 'mae', '--part mae'),
    ('wide-mae', 'hf', 'mae', '--to hf')])
def test_a_part_without_such_a_format_is_one_line(checkpoints, tmp_path, source, form, part, flag):
    with pytest.raises(UserError, match=flag):
        export.export(str(checkpoints / source), form, str(tmp_path / FILES[form]), part)
    assert os.listdir(str(tmp_path)) == []
