"""Training on one emulated NPU: exact resume, precisions, overflow, flags."""
import sys

import pytest
from conftest import execute, pretrain
from test_end_to_end import epochs_of, moments_of, same, weights_of

from .conftest import WITH_STAND_INS, require_emulator

require_emulator()
pytestmark = pytest.mark.slow


def on_npu(*flags, chip='910A'):
    run = pretrain(*flags, '--device', 'npu', EMULATED_NPU_CHIP=chip, **WITH_STAND_INS)
    assert run.status == 0, run.output
    return run.output


@pytest.mark.parametrize('flags, chip, name', [
    (['--amp'], '910A', 'apex O2, loss scale dynamic'),
    (['--amp', '--loss_scale', 2048], '910B', 'apex O2, loss scale 2048.0'),
    (['--amp', '--amp_backend', 'native'], '910A', 'native fp16, loss scale dynamic'),
    (['--amp', '--amp_backend', 'native'], '910B', 'native bf16')])
def test_resume_is_bit_equal(images, tmp_path, flags, chip, name):
    flags = ['--data_path', images, '--epochs', 3, '--save_every', 1, '--accum_iter', 2, '--lr', .001, *flags]
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    assert 'precision: {}\n'.format(name) in on_npu(*flags, '--output_dir', whole, chip=chip)
    on_npu(*flags, '--output_dir', parts, '--resume', whole / 'checkpoint-0.pth', chip=chip)
    ends = [weights_of(folder / 'checkpoint-2.pth') for folder in (whole, parts)]
    assert same(ends[0]['model'], ends[1]['model']) and same(*map(moments_of, ends))
    assert same(ends[0]['scaler'], ends[1]['scaler'])
    assert [record['train_loss'] for record in epochs_of(whole)] == [
        record['train_loss'] for record in epochs_of(parts)]


@pytest.mark.parametrize('chip', ['910A', '910B'])      # overflow is a flag on one, inf on the other
def test_skipped_steps_are_in_the_log_line_and_the_record(images, tmp_path, chip):
    output = on_npu('--data_path', images, '--epochs', 1, '--amp_backend', 'native', '--amp_dtype', 'fp16',
                    '--loss_scale', 1e9, '--output_dir', tmp_path, chip=chip)
    assert '  skipped steps: 4\n' in output and epochs_of(tmp_path)[0]['skipped_steps'] == 4


def test_a_profile_is_taken_by_torch_npus_own_profiler(images, tmp_path):
    output = on_npu('--data_path', images, '--epochs', 1, '--batch_size', 2, '--prof', '--output_dir', tmp_path)
    assert 'emulated torch_npu.profiler' in output
    assert (tmp_path / 'prof' / 'trace.json').stat().st_size > 10000


def test_check_env_names_the_devices_and_the_precision():
    run = execute([sys.executable, '-m', 'util.tools.check_env'], ASCEND_RT_VISIBLE_DEVICES='0,1', **WITH_STAND_INS)
    assert run.status == 0 and run.output.endswith('to fix:\n  nothing\n'), run.output
    for words in ('NPU            2 x Ascend910A', '--amp          apex O2, loss scale dynamic',
                  'variable       ASCEND_RT_VISIBLE_DEVICES=0,1'):
        assert words in run.output, run.output
