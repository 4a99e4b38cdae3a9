"""Training on one emulated NPU: exact resume, precisions, overflow, flags."""
import sys

import pytest
import torch
from conftest import execute, linprobe, pretrain, succeeded
from test_end_to_end import epochs_of, moments_of, same, weights_of

from .conftest import WITH_STAND_INS

pytestmark = pytest.mark.slow


def on_npu(*flags, script=pretrain, chip='910A'):
    return succeeded(script(*flags, '--device', 'npu', EMULATED_NPU_CHIP=chip, **WITH_STAND_INS))


@pytest.mark.parametrize('flags, name', [(['--amp'], 'apex O2, loss scale dynamic'),
                                         (['--amp_backend', 'native'], 'native fp16, loss scale dynamic')])
def test_resume_is_bit_equal(images, tmp_path, flags, name):
    flags = ['--data_path', images, '--epochs', 2, '--save_every', 1, '--accum_iter', 2, '--lr', .001, *flags]
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    assert 'precision: {}\n'.format(name) in on_npu(*flags, '--output_dir', whole)
    on_npu(*flags, '--output_dir', parts, '--resume', whole / 'checkpoint-0.pth')
    ends = [weights_of(folder / 'checkpoint-1.pth') for folder in (whole, parts)]
    assert same(ends[0]['model'], ends[1]['model']) and same(*map(moments_of, ends))
    assert same(ends[0]['scaler'], ends[1]['scaler'])
    assert epochs_of(whole)[-1]['train_loss'] == epochs_of(parts)[-1]['train_loss']


def test_skipped_steps_are_in_the_log_line_and_the_record(images, tmp_path):
    output = on_npu('--data_path', images, '--epochs', 1, '--amp_backend', 'native', '--amp_dtype', 'fp16',
                    '--loss_scale', 1e9, '--output_dir', tmp_path)
    assert '  skipped steps: 4\n' in output and epochs_of(tmp_path)[0]['skipped_steps'] == 4
    assert output.count('\noperators: ') == 1        # the compile mode, in the head


def test_a_profile_goes_to_the_output_folder_and_nothing_to_the_current_one(images, tmp_path, monkeypatch):
    """Taken by torch_npu's own profiler."""
    (tmp_path / 'current').mkdir()
    monkeypatch.chdir(tmp_path / 'current')
    output = on_npu('--data_path', images, '--epochs', 1, '--batch_size', 2, '--prof', '--amp_backend', 'native',
                    '--output_dir', tmp_path, chip='910B')
    assert 'emulated torch_npu.profiler' in output and 'precision: native bf16\n' in output
    trace, = (tmp_path / 'prof').glob('*_ascend_pt/ASCEND_PROFILER_OUTPUT/trace_view.json')
    assert trace.stat().st_size > 10000 and not list((tmp_path / 'current').iterdir())


@pytest.mark.parametrize('chip, kernels, expected', [
    ('910B', '', 'False 2 2'), ('910A', '', 'True 1 compiled online'),
    ('910A', 'add', 'False 1 from'), ('910A', 'ops_math/add', 'False 1 from')])
def test_the_compile_mode_and_the_queue_suit_the_chip(tmp_path, monkeypatch, chip, kernels, expected):
    """The queue's level is read when the first stream is created."""
    folder = tmp_path / 'built-in/op_impl/ai_core/tbe/kernel/ascend910' / kernels
    folder.mkdir(parents=True)
    (folder / ('Add_1.o' if kernels else 'none')).write_text('')
    monkeypatch.delenv('TASK_QUEUE_ENABLE', raising=False)
    code = ('from util.devices import accelerator; npu = accelerator.select("npu"); npu.use(1); '
            'print(npu.module._jit_compile, npu.module._queue_level, [*npu.details.values()][-1])')
    run = execute([sys.executable, '-c', code], EMULATED_NPU_CHIP=chip, ASCEND_OPP_PATH=str(tmp_path), **WITH_STAND_INS)
    assert run.status == 0 and run.output.startswith(expected), run.output


def test_a_device_that_is_busy_is_one_line_also_in_check_env(images, tmp_path):
    environ = {'EMULATED_NPU_FAULT': 'NPU function error: aclrtSetDevice, error code is 507033', **WITH_STAND_INS}
    run = pretrain('--data_path', images, '--output_dir', tmp_path, '--device', 'npu', **environ)
    assert (run.status, run.output.count('\n')) == (2, 1) and '507033' in run.output and 'npu-smi info' in run.output
    run = execute([sys.executable, '-m', 'util.tools.check_env'], **environ)
    assert run.status == 1 and '507033' in run.output.split('to fix:')[1], run.output


def test_linear_probing_saves_the_encoder_unchanged_though_apex_casts_it_to_fp16(images, pretrained, tmp_path):
    on_npu('--data_path', images, '--epochs', 1, '--finetune', pretrained / 'checkpoint-0.pth', '--amp',
           '--output_dir', tmp_path, script=linprobe)
    encoder = weights_of(pretrained / 'checkpoint-0.pth')['model']
    weights = weights_of(tmp_path / 'checkpoint-0.pth')['model']
    assert {name.split('.')[1] for name in weights if name not in encoder} == {'0', '1'}
    assert all(torch.equal(value, encoder[name]) for name, value in weights.items() if name in encoder)
    assert weights['head.0.running_var'].ne(1).all() and weights['head.1.weight'].dtype == torch.float32


def test_check_env_names_the_devices_and_the_precision():
    run = execute([sys.executable, '-m', 'util.tools.check_env'], ASCEND_RT_VISIBLE_DEVICES='0,1', **WITH_STAND_INS)
    assert run.status == 0 and run.output.endswith('to fix:\n  nothing\n'), run.output
    for words in ('NPU            2 x Ascend910A', '--amp          apex O2, loss scale dynamic',
                  'variable       ASCEND_RT_VISIBLE_DEVICES=0,1'):
        assert words in run.output, run.output
