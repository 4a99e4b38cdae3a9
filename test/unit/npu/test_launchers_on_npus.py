"""Launchers on emulated NPUs: all eight devices, two nodes, and losses like those of CPU processes."""
import json

import pytest
from conftest import FINETUNE, PRETRAIN, ROOT, launcher, succeeded, together
from test_end_to_end import epochs_of
from test_launchers import LOGS

from .conftest import WITH_STAND_INS

pytestmark = pytest.mark.slow

ACCUMULATE = ['--batch_size=2', '--accum_iter=2', '--device=auto']
FINE = [*FINETUNE, *ACCUMULATE, '--epochs=1', '--lr=1e-3', '--warmup_epochs=0']


def on_npus(name, *flags):
    """Output of the launcher."""
    return succeeded(launcher(name, *flags, EMULATED_NPU_CHIP=LOGS[name].split('_')[0], **WITH_STAND_INS))


@pytest.fixture(scope='module')
def finetuned(images, pretrained, tmp_path_factory):
    """Output folder of a fine-tuning on two devices; a dynamic loss scale could skip steps."""
    folder = tmp_path_factory.mktemp('finetuned')
    output = on_npus('finetune_full_8p', '--nproc=2', '--data_path', images, '--output_dir', folder, '--finetune_pth',
                     pretrained / 'checkpoint-0.pth', *FINE, '--loss_scale=128')
    assert 'processes: 2 over hccl' in output and 'precision: apex O2, loss scale 128.0\n' in output
    return folder


def test_a_launcher_trains_on_eight_devices(images, tmp_path):
    output = on_npus('pretrain_full_8p', '--data_path', images, '--output_dir', tmp_path, *PRETRAIN, *ACCUMULATE,
                     '--epochs=1', '--amp_backend=native')
    assert 'device: Ascend910A (npu; found)' in output and 'processes: 8 over hccl' in output
    assert 'precision: native fp16, loss scale dynamic\n' in output
    assert output.count('Final result') == 1 and 'Final result' in (tmp_path / LOGS['pretrain_full_8p']).read_text()
    record, = epochs_of(tmp_path)
    assert record['device'] == 'Ascend910A' and record['train_loss'] > 0


def test_a_finetuned_model_is_evaluated(images, finetuned, tmp_path):
    output = on_npus('finetune_eval_8p', '--nproc=2', '--data_path', images, '--output_dir', tmp_path, '--resume_pth',
                     finetuned / 'checkpoint-0.pth', *FINE)
    result, (trained,) = json.loads((tmp_path / 'eval.json').read_text()), epochs_of(finetuned)
    assert '(19 images)' in output and result['acc1'] == trained['test_acc1']
    assert result['loss'] == pytest.approx(trained['test_loss'], rel=1e-3)


def test_npus_have_the_losses_of_cpu_processes(images, pretrained, finetuned, tmp_path):
    succeeded(launcher('finetune_full_8p', '--nproc=2', '--data_path', images, '--output_dir', tmp_path,
                       '--finetune_pth', pretrained / 'checkpoint-0.pth', *FINE, '--device=cpu', '--amp_backend=none'))
    (found,), (expected,) = epochs_of(finetuned), epochs_of(tmp_path)
    for loss in ('train_loss', 'test_loss'):
        assert found[loss] == pytest.approx(expected[loss], rel=2e-3)


def test_two_nodes_train_together(images, pretrained, tmp_path):
    name = 'finetune_full_large_16p'
    runs = together(lambda port: [
        ['bash', ROOT / 'test' / (name + '.sh'), *FINE, '--nproc=2', '--data_path', images, '--output_dir', tmp_path,
         '--finetune_pth', pretrained / 'checkpoint-0.pth', '--node_rank', rank, '--master_addr=127.0.0.1',
         '--master_port', port] for rank in (0, 1)], EMULATED_NPU_CHIP='910B', **WITH_STAND_INS)
    assert [run.status for run in runs] == [0, 0], runs
    outputs = [run.output for run in runs]
    assert 'device: Ascend910B1 (npu; found)' in outputs[0] and 'processes: 4 over hccl' in outputs[0]
    assert 'precision: apex O2, loss scale 2048.0\n' in outputs[0] and 'effective batch size: 16,' in outputs[0]
    assert outputs[0].count('Final result') == 1 and 'Final result' not in outputs[1]
    assert 'Final result' in (tmp_path / LOGS[name]).read_text() and len(epochs_of(tmp_path)) == 1
    assert (tmp_path / LOGS[name].replace('.log', '_node1.log')).exists()
