"""Trained models go out: each form is loaded in its library by the lines that the program prints."""
import json
import os
import sys

import pytest
import torch
from conftest import execute

import models_mae
import models_vit
from util import checkpoint_file, export, export_timm, exported_part, trained
from util.errors import UserError
from util.features import accepts

FILES = {'timm': 'x.pth', 'hf': 'x', 'safetensors': 'x.safetensors', 'onnx': 'x.onnx', 'torchscript': 'x.pt'}
# (checkpoint, part): all that there is to export.
PARTS = [('mae', 'mae'), ('mae', 'encoder'), ('mean', 'classifier'), ('mean', 'encoder'), ('cls', 'classifier'),
         ('cls', 'encoder'), ('wide', 'classifier')]
# timm has no autoencoder; torchscript's new process takes seconds, and its graphs are those of onnx.
CASES = [(form, *place) for form in FILES for place in PARTS
         if (form, *place) != ('timm', 'mae', 'mae') and not (form == 'torchscript' and place in PARTS[3:])]


def shaken(model):
    """Weights far from their initial values, so that no output is small or symmetric."""
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * .05)
    return model.eval()


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """Paths of an autoencoder, of classifiers of the mean and of the class token, and of one of a wide input."""
    torch.manual_seed(0)
    folder, flags = tmp_path_factory.mktemp('checkpoints'), {'input_size': 16, 'patch_size': 8, 'in_chans': 3}
    size, classes = {'img_size': 16, 'patch_size': 8}, ['cat', 'cow', 'dog']
    mae = shaken(models_mae.mae_vit_nano_patch16(norm_pix_loss=True, **size))
    checkpoint_file.save(str(folder / 'mae'), {'model': mae.state_dict(), 'args': {
        **flags, 'model': 'mae_vit_nano_patch16', 'norm_pix_loss': True, 'mask_ratio': .5}})
    for name in ('mean', 'cls'):
        model = shaken(models_vit.vit_nano_patch16(global_pool=name == 'mean', num_classes=3, **size))
        checkpoint_file.save(str(folder / name), {'model': model.state_dict(), 'classes': classes, 'args': {
            **flags, 'model': 'vit_nano_patch16', 'global_pool': name == 'mean'}})
    wide = shaken(models_vit.vit_nano_patch16(global_pool=True, num_classes=3, img_size=(16, 32), patch_size=8,
                                              in_chans=1))
    checkpoint_file.save(str(folder / 'wide'), {'model': wide.state_dict(), 'args': {
        **flags, 'model': 'vit_nano_patch16', 'input_size': [16, 32], 'in_chans': 1}})
    return folder


def skip_missing(form, source, part):
    """Skip what a generation's libraries lack; the program says so, see the tests below."""
    if form == 'timm' and source in ('mean', 'wide') and not accepts(export_timm.VisionTransformer, 'global_pool'):
        pytest.skip("this timm's ViT has no mean pooling")
    if form == 'hf' and (source, part) in PARTS[1:2] + PARTS[4:6] and not hasattr(torch.nn.init, 'trunc_normal_'):
        pytest.skip("transformers' ViT needs trunc_normal_")


@pytest.mark.parametrize('form, source, part', CASES)
def test_a_part_is_the_same_in_its_library(checkpoints, tmp_path, form, source, part):
    skip_missing(form, source, part)
    path = str(tmp_path / FILES[form])
    checks, inputs, loading = export.export(str(checkpoints / source), form, path, part)
    assert checks and all('greatest difference' in line or 'all equal' in line for line in checks)
    assert os.listdir(str(tmp_path)) == [FILES[form]] and inputs[0].startswith('imgs: (N, ')
    if form != 'safetensors' or 'safetensors library is not at hand' not in checks[-1]:
        exec('\n'.join(loading), {})        # the lines that the user is given


@pytest.mark.parametrize('source', ['mae', 'mean', 'cls'])
@pytest.mark.parametrize('form', ['hf', 'safetensors'])
def test_what_goes_out_comes_in_again_with_its_flags_and_classes(checkpoints, tmp_path, form, source):
    skip_missing(form, source, 'classifier')
    before = trained.load_either(str(checkpoints / source))
    export.export(str(checkpoints / source), form, str(tmp_path / FILES[form]))
    after = trained.load_either(str(tmp_path / FILES[form]))
    imgs = torch.randn(2, 3, 16, 16)
    inputs = (imgs, .5, torch.rand(2, 4)) if source == 'mae' else (imgs,)
    for mine, again in zip(before.model(*inputs), after.model(*inputs)):
        assert torch.allclose(mine, again, atol=1e-5)
    assert after.classes == before.classes
    assert all(after.flags[name] == before.flags[name] for name in after.flags if name in before.flags)


@pytest.mark.parametrize('size, in_chans', [([16, 32], 3), (16, 4), (16, 1)], ids=str)
def test_mean_and_std_go_out_and_come_in_where_transformers_has_no_processor(tmp_path, size, in_chans):
    model = models_vit.vit_nano_patch16(global_pool=True, num_classes=3, img_size=size, patch_size=8, in_chans=in_chans)
    given = {'mean': [.1 + i / 10 for i in range(in_chans)], 'std': [.3] * in_chans}
    checkpoint_file.save(str(tmp_path / 'x.pth'), {'model': model.state_dict(), 'args': {
        'model': 'vit_nano_patch16', 'input_size': size, 'patch_size': 8, 'in_chans': in_chans, **given}})
    export.export(str(tmp_path / 'x.pth'), 'hf', str(tmp_path / 'x'))
    flags = trained.load_either(str(tmp_path / 'x')).flags
    assert {name: flags[name] for name in given} == given


def test_a_hugging_face_folder_says_all_that_its_user_needs(checkpoints, tmp_path):
    export.export(str(checkpoints / 'mean'), 'hf', str(tmp_path / 'x'))
    config, pixels = (json.loads((tmp_path / 'x' / name).read_text())
                      for name in ('config.json', 'preprocessor_config.json'))
    assert config['id2label'] == {'0': 'cat', '1': 'cow', '2': 'dog'} and config['image_size'] == 16
    assert config['architectures'] == ['BeitForImageClassification'] and config['patch_size'] == 8
    assert pixels['image_mean'] == [.485, .456, .406] and (pixels['size'], pixels['crop_size']) == (18, 16)


def test_timms_own_name_is_used_where_one_fits(tmp_path):
    if 'vit_tiny_patch16_224' not in export_timm.timm.list_models():
        pytest.skip('this timm has none of the small models by name')
    model = models_vit.vit_tiny_patch16(img_size=32, global_pool=True, num_classes=4).eval()
    checkpoint_file.save(str(tmp_path / 'tiny'), {'model': model.state_dict()})
    _, _, loading = export.export(str(tmp_path / 'tiny'), 'timm', str(tmp_path / 'x.pth'))
    assert "timm.create_model('vit_tiny_patch16_224', num_classes=4, img_size=(32, 32), glo" in loading[-1]
    exec('\n'.join(loading), {})


def test_an_epsilon_of_another_library_goes_along(checkpoints, tmp_path):
    state = checkpoint_file.load(str(checkpoints / 'cls'))
    state['args']['layer_norm_eps'] = 1e-2
    checkpoint_file.save(str(tmp_path / 'eps'), state)
    for form in ('timm', 'safetensors'):
        _, _, loading = export.export(str(tmp_path / 'eps'), form, str(tmp_path / FILES[form]))
        assert form != 'timm' or 'eps=0.01' in loading[-2]
    assert trained.load_either(str(tmp_path / FILES['safetensors'])).flags['layer_norm_eps'] == 1e-2


@pytest.mark.parametrize('form', ['timm', 'hf', 'onnx', 'torchscript'])
def test_nothing_is_written_where_outputs_differ(checkpoints, tmp_path, monkeypatch, form):
    skip_missing(form, 'mean', 'classifier')
    run = exported_part.Part.run
    monkeypatch.setattr(exported_part.Part, 'run', lambda self, imgs: (run(self, imgs)[0] + .01,))
    with pytest.raises(UserError, match='nothing was written'):
        export.export(str(checkpoints / 'mean'), form, str(tmp_path / FILES[form]))
    assert os.listdir(str(tmp_path)) == []


def test_nothing_is_written_where_safetensors_would_hold_something_else(checkpoints, tmp_path, monkeypatch):
    weights = exported_part.Part.weights
    monkeypatch.setattr(exported_part.Part, 'weights', lambda self: {**weights(self), 'head.bias': torch.ones(3)})
    with pytest.raises(UserError, match='nothing was written'):
        export.export(str(checkpoints / 'mean'), 'safetensors', str(tmp_path / 'x.safetensors'))
    assert os.listdir(str(tmp_path)) == []


def test_a_wide_autoencoder_is_refused_by_name(tmp_path):
    model = models_mae.mae_vit_nano_patch16(img_size=(16, 32), patch_size=8)
    checkpoint_file.save(str(tmp_path / 'wide'), {'model': model.state_dict(), 'args': {
        'model': 'mae_vit_nano_patch16', 'input_size': [16, 32], 'patch_size': 8}})
    with pytest.raises(UserError, match="ViTMAE takes square inputs, and this one has 16 x 32"):
        export.export(str(tmp_path / 'wide'), 'hf', str(tmp_path / 'x'))


def test_a_difference_a_nan_and_another_shape_are_told(checkpoints):
    part = exported_part.Part(str(checkpoints / 'cls'))
    logits = part.expected['logits']
    assert 'greatest difference from this program 0.0e+00' in part.compare({'logits': logits.numpy()}, 'x')
    for wrong in (logits + 1e-2, logits * float('nan'), logits[:2], logits[:, None]):
        with pytest.raises(UserError, match='nothing was written'):
            part.compare({'logits': wrong}, 'x')


def command(*flags):
    return execute([sys.executable, '-m', 'util.export', *flags])


def test_the_command_says_what_it_compared_and_how_to_load(checkpoints, tmp_path):
    run = command('--resume', checkpoints / 'mean', '--to', 'safetensors', '--output', tmp_path / 'x.safetensors')
    assert run.status == 0, run.output
    for line in ('compared: logits of 3 images', 'written: ', 'takes imgs: (N, 3, 16, 16)', 'to load it:',
                 'load_file('):
        assert line in run.output


@pytest.mark.parametrize('flags, words', [
    (['--to', 'onnx', '--output', 'x.pt'], 'argument --output: for --to onnx its name must end in .onnx'),
    (['--to', 'hf', '--output', '.'], 'argument --output: . exists'),
    (['--to', 'hf', '--output', 'nowhere/x'], 'argument --output: there is no folder'),
    (['--to', 'keras', '--output', 'x'], 'argument --to'), (['--to', 'hf', '--output', 'x', '--part', 'x'], '--part'),
    (['--to', 'hf', '--output', 'x', '--resume', 'none.pth'], 'argument --resume: none.pth is not a file')])
def test_a_bad_flag_is_one_line(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'c.pth').write_bytes(b'')
    with pytest.raises(SystemExit) as ended:
        export.parse_export(['--resume', 'c.pth', *flags])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count('\n') == 1 and words in error, error


@pytest.mark.parametrize('source, form, part, words', [
    ('mae', 'timm', 'mae', 'timm has no masked autoencoder'), ('mae', 'onnx', 'classifier', '--part classifier: '),
    ('cls', 'onnx', 'mae', 'is a classifier; give --part encoder or classifier')])
def test_a_part_that_is_not_there_is_refused_in_one_line(checkpoints, tmp_path, source, form, part, words):
    with pytest.raises(UserError, match=words):
        export.export(str(checkpoints / source), form, str(tmp_path / FILES[form]), part)
    assert os.listdir(str(tmp_path)) == []


def test_a_missing_library_is_one_line_that_says_what_to_install(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    monkeypatch.delitem(sys.modules, 'util.export_onnx', raising=False)
    with pytest.raises(UserError, match='pip install onnx onnxruntime'):
        export.export(str(checkpoints / 'cls'), 'onnx', str(tmp_path / 'x.onnx'))
    assert os.listdir(str(tmp_path)) == []


def test_every_flag_has_a_help_text():
    text = ' '.join(export.export_parser().format_help().split())
    for action in export.export_parser()._actions:
        assert action.help and ' '.join(action.help.split()) in text
