"""All eleven launchers with all their devices, on emulated NPUs, with a nano model and 32 images."""
import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, environment, launcher
from test_end_to_end import epochs_of, weights_of
from test_launchers import LOGS

from util.tools.launch import free_port

from .conftest import WITH_STAND_INS, require_emulator

require_emulator()
pytestmark = pytest.mark.slow

TINY = ['--input_size=32', '--patch_size=8', '--num_workers=0', '--batch_size=2', '--warmup_epochs=1', '--accum_iter=2']
MODEL = {'pretrain': 'mae_vit_nano_patch16', 'finetune': 'vit_nano_patch16', 'linprobe': 'vit_nano_patch16'}
NATIVE = 'finetune_full_8p'         # without apex
COMPARED = ('pretrain_full_8p', NATIVE)         # with fp32; a dynamic loss scale could skip steps


def flags(name, images, folder, start):
    """Flags of a launcher, and those that make its recipe small."""
    needed = [] if name.startswith('pretrain') else ['--finetune_pth={}'.format(start)]
    if name == 'finetune_eval_8p':
        needed = ['--resume_pth={}'.format(start)]
    epochs = [] if 'performance' in name or 'eval' in name else ['--epochs=2']
    compared = ['--lr=1e-3', '--warmup_epochs=0', '--loss_scale=128'] if name in COMPARED else []
    return ['--data_path={}'.format(images), '--output_dir={}'.format(folder), *needed, *TINY, *epochs, *compared,
            '--model=' + MODEL[name.split('_')[0]], *['--amp_backend=native'] * (name == NATIVE)]


def chip(name):
    return {'EMULATED_NPU_CHIP': LOGS[name].split('_')[0]}


def on_npus(name, images, folder, start=''):
    """Output of the launcher."""
    run = launcher(name, *flags(name, images, folder, start), **chip(name), **WITH_STAND_INS)
    assert run.status == 0, run.output
    return run.output


def losses(folder):
    return [record[name] for record in epochs_of(folder) for name in ('train_loss', 'test_loss') if name in record]


@pytest.fixture(scope='module')
def trained(images, pretrained, tmp_path_factory):
    """name -> (output folder, output) of a launcher, run once."""
    runs = {}

    def run(name):
        if name not in runs:
            folder = tmp_path_factory.mktemp(name)
            runs[name] = folder, on_npus(name, images, folder, pretrained / 'checkpoint-0.pth')
        return runs[name]
    return run


@pytest.mark.parametrize('name', [name for name in LOGS if name not in ('finetune_full_large_16p', 'finetune_eval_8p')])
def test_a_launcher_trains_on_its_devices(trained, name):
    folder, output = trained(name)
    scale = '2048.0' if 'large' in name else '128.0' if name in COMPARED else 'dynamic'
    device = {'910A': 'Ascend910A', '910B': 'Ascend910B1'}[chip(name)['EMULATED_NPU_CHIP']]
    assert 'device: {} (npu; found)'.format(device) in output
    assert 'processes: {}'.format('1,' if name.endswith('1p') else '8 over hccl') in output
    assert 'precision: {}, loss scale {}\n'.format('native fp16' if name == NATIVE else 'apex O2', scale) in output
    assert output.count('Final result') == 1 and 'Final result' in (folder / LOGS[name]).read_text()
    record = epochs_of(folder)[0]
    assert record['device'] == device and record['train_loss'] > 0
    assert ('(19 images)' in output) != name.startswith('pretrain')


def test_a_finetuned_model_is_evaluated_on_eight_devices(images, trained, tmp_path):
    folder, _ = trained('finetune_full_8p')
    output = on_npus('finetune_eval_8p', images, tmp_path, folder / 'checkpoint-1.pth')
    result, last = json.loads((tmp_path / 'eval.json').read_text()), epochs_of(folder)[-1]
    assert '(19 images)' in output and result['acc1'] == last['test_acc1']
    assert result['loss'] == pytest.approx(last['test_loss'], rel=1e-3)


def test_linear_probing_saves_the_encoder_unchanged_though_apex_casts_it_to_fp16(pretrained, trained):
    encoder = weights_of(pretrained / 'checkpoint-0.pth')['model']
    weights = weights_of(trained('linprobe_full_8p')[0] / 'checkpoint-1.pth')['model']
    assert {name.split('.')[1] for name in weights if name not in encoder} == {'0', '1'}
    assert all(torch.equal(value, encoder[name]) for name, value in weights.items() if name in encoder)
    assert weights['head.0.running_var'].ne(1).all() and weights['head.1.weight'].dtype == torch.float32


@pytest.mark.parametrize('name', COMPARED)
def test_eight_npus_have_the_losses_of_eight_cpu_processes(images, pretrained, trained, tmp_path, name):
    run = launcher(name, *flags(name, images, tmp_path, pretrained / 'checkpoint-0.pth'), '--device=cpu', '--nproc=8',
                   '--amp_backend=none')
    assert run.status == 0, run.output
    assert losses(trained(name)[0]) == pytest.approx(losses(tmp_path), rel=2e-3)


def test_two_nodes_of_eight_devices_train_together(images, pretrained, tmp_path):
    name, port = 'finetune_full_large_16p', free_port()
    environ = environment(PYTHON=sys.executable, **chip(name), **WITH_STAND_INS)
    nodes = [subprocess.Popen(
        ['bash', str(ROOT / 'test' / (name + '.sh')), *flags(name, images, tmp_path, pretrained / 'checkpoint-0.pth'),
         '--node_rank={}'.format(rank), '--master_addr=127.0.0.1', '--master_port={}'.format(port)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ) for rank in (0, 1)]
    outputs = [node.communicate(timeout=600)[0].decode() for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert 'processes: 16 over hccl' in outputs[0] and 'effective batch size: 64,' in outputs[0]
    assert outputs[0].count('Final result') == 1 and 'Final result' not in outputs[1]
    assert 'Final result' in (tmp_path / LOGS[name]).read_text() and len(losses(tmp_path)) == 4
    assert (tmp_path / LOGS[name].replace('.log', '_node1.log')).exists()
