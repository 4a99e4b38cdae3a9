"""The program as its users run it, on tiny data: pre-train, resume, fine-tune, evaluate, through launchers too."""
import json
import subprocess
import sys

import pytest
import torch
from conftest import FINETUNE, PRETRAIN, ROOT, execute, finetune, launcher, pretrain, python
from test_datasets import cifar  # noqa: F401  (a fixture)

from util.launch import free_port


def epochs_of(folder):
    return [json.loads(line) for line in (folder / 'log.txt').read_text().splitlines()]


def weights_of(path):
    return torch.load(str(path), map_location='cpu')


def moments_of(checkpoint):
    """The optimizer's state by parameter, in order; torch 1.5 names parameters by their addresses."""
    optimizer = checkpoint['optimizer']
    return [optimizer['state'][p] for group in optimizer['param_groups'] for p in group['params']]


def same(a, b):
    """True where two nested values are equal to the last bit."""
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_a_run_keeps_what_is_promised(pretrained):
    record = epochs_of(pretrained)[0]
    assert {'train_loss', 'train_lr', 'epoch', 'n_parameters', 'FPS', 'data_wait', 'skipped_steps', 'device',
            'precision'} == set(record)
    assert record['epoch'] == 0 and record['device'] == 'CPU' and record['precision'] == 'fp32'
    summary = json.loads((pretrained / 'summary.json').read_text())
    assert summary['loss'] == record['train_loss'] and summary['images_per_sec'] > 0
    state = weights_of(pretrained / 'checkpoint-0.pth')
    assert {'model', 'optimizer', 'epoch', 'scaler', 'args'} <= set(state)
    assert type(state['args']) is dict and state['args']['model'] == 'mae_vit_nano_patch16'


def test_the_log_says_where_it_ran_and_closes_with_the_final_result(images, tmp_path):
    run = pretrain('--data_path', images, '--output_dir', tmp_path, '--epochs', 1)
    assert run.status == 0
    for words in ('device: CPU (cpu; --device cpu)', 'precision: fp32', 'processes: 1', 'effective batch size: 8',
                  'train_one_epoch FPS: ', 'Epoch: [0]  [1/4]  eta: ',
                  'the loader does not keep up with the training; about '):
        assert words in run.output, words
    block = run.output[run.output.index('Final result'):]
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert 'Final Performance images/sec : {:.2f}'.format(summary['images_per_sec']) in block
    assert 'Final Loss : {:.4f}'.format(summary['loss']) in block and 'E2E Training Duration sec : ' in block


@pytest.mark.slow
def test_the_best_checkpoint_has_its_true_epoch_and_is_remembered_on_resume(images, tmp_path):
    flags = ['--data_path', images, '--output_dir', tmp_path, '--save_every', 1]
    assert finetune(*flags, '--epochs', 3, '--lr', .003).status == 0
    accuracy = [record['test_acc1'] for record in epochs_of(tmp_path)]
    best = weights_of(tmp_path / 'checkpoint-best.pth')
    assert best['epoch'] == best['best']['epoch'] == accuracy.index(max(accuracy))
    state = weights_of(tmp_path / 'checkpoint-2.pth')
    state['best'] = {'acc1': 101., 'epoch': 1}
    torch.save(state, str(tmp_path / 'checkpoint-2.pth'))
    run = finetune(*flags, '--epochs', 4, '--resume', 'auto')
    assert 'Max accuracy: 101.00% (epoch 1)' in run.output
    assert weights_of(tmp_path / 'checkpoint-best.pth')['epoch'] == best['epoch']


@pytest.mark.slow
def test_a_finished_run_that_is_resumed_says_so_and_keeps_its_results(images, tmp_path):
    flags = ['--data_path', images, '--output_dir', tmp_path, '--epochs', 1]
    assert pretrain(*flags).status == 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob('*.*') if path.is_file()}
    run = pretrain(*flags, '--resume', 'auto')
    assert run.status == 0 and 'nothing left to train; raise --epochs' in run.output
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob('*.*') if path.is_file()}


@pytest.mark.slow
def test_launchers_pretrain_resume_finetune_and_evaluate_on_two_processes(images, tmp_path):
    pre, fine, evaluated = tmp_path / 'pre', tmp_path / 'fine', tmp_path / 'evaluated'
    two = ['--nproc=2', '--data_path=' + str(images), '--amp_backend=none']      # as one process below
    run = launcher('pretrain_full_8p', *two, *PRETRAIN, '--epochs=2', '--save_every=1', '--output_dir=' + str(pre))
    assert run.status == 0, run.output
    assert 'processes: 2 over gloo' in run.output and 'effective batch size: 16' in run.output
    assert run.output.count('Final result') == 1 and len(epochs_of(pre)) == 2

    run = launcher('pretrain_full_8p', *two, *PRETRAIN, '--epochs=3', '--resume=auto', '--output_dir=' + str(pre))
    assert run.status == 0 and [record['epoch'] for record in epochs_of(pre)] == [0, 1, 2], run.output

    run = launcher('finetune_performance_8p', *two, '--finetune_pth=' + str(pre / 'checkpoint-2.pth'), *FINETUNE,
                   '--output_dir=' + str(fine))
    assert run.status == 0 and '(19 images)' in run.output, run.output
    assert 'Warning' not in run.output, run.output
    trained = json.loads((fine / 'summary.json').read_text())

    run = launcher('finetune_eval_8p', *two, '--resume_pth=' + str(fine / 'checkpoint-0.pth'), *FINETUNE,
                   '--output_dir=' + str(evaluated))
    assert run.status == 0, run.output
    two_processes = json.loads((evaluated / 'eval.json').read_text())
    assert two_processes['images'] == 19
    assert 'Final Accuracy : {:.2f}'.format(two_processes['acc1']) in run.output
    assert two_processes['acc1'] == pytest.approx(trained['acc1'])
    for log in (pre / '910A_8p_pretrain_full.log', fine / '910A_8p_finetune.log',
                evaluated / '910A_8p_finetune_eval.log'):
        assert 'Final result' in log.read_text()
    assert list(pre.glob('events.out.tfevents.*')) and list(fine.glob('events.out.tfevents.*'))

    run = finetune('--eval', '--data_path', images, '--resume', fine / 'checkpoint-0.pth', '--output_dir', evaluated)
    one_process = json.loads((evaluated / 'eval.json').read_text())
    for name in ('acc1', 'acc5', 'loss', 'images'):
        assert one_process[name] == pytest.approx(two_processes[name], rel=1e-5), name
    assert len(list(evaluated.glob('eval*.json'))) == 2      # the first evaluation's file was set aside


@pytest.mark.slow
def test_without_dist_eval_rank_0_evaluates_everything_once(images, tmp_path):
    start = tmp_path / 'start'
    assert finetune('--data_path', images, '--output_dir', start, '--epochs', 1).status == 0
    run = execute([sys.executable, ROOT / 'util' / 'launch.py', '--nproc', 2, ROOT / 'main_finetune.py', '--eval',
                   '--data_path', images, '--resume', start / 'checkpoint-0.pth', '--output_dir', tmp_path, *FINETUNE])
    assert run.status == 0 and '(19 images)' in run.output, run.output


@pytest.mark.slow
def test_cifar_batches_pretrain_and_finetune(cifar, tmp_path):  # noqa: F811
    small = ['--data_path', cifar, '--batch_size', 4, '--patch_size', 4, '--epochs', 1]
    assert pretrain(*small, '--output_dir', tmp_path / 'pre', '--prof').status == 0
    run = finetune(*small, '--output_dir', tmp_path / 'fine', '--finetune', tmp_path / 'pre' / 'checkpoint-0.pth')
    assert run.status == 0 and '(6 images)' in run.output, run.output
    assert 'left out: the decoder' in run.output


@pytest.mark.slow
@pytest.mark.parametrize('flags, needed', [
    (['--in_chans', 1], 'checkpoint-0.pth'), (['--amp', '--amp_backend', 'none'], 'checkpoint-0.pth'),
    (['--prof', '--batch_size', 2], 'prof/trace.json'), (['--log_dir', '{tmp}/tb'], 'tb'),
    (['--start_epoch', 1, '--epochs', 2], 'checkpoint-1.pth'), (['--no_pin_mem', '--pin_mem'], 'checkpoint-0.pth')])
def test_a_flag_of_the_run_does_what_it_says(images, tmp_path, flags, needed):
    flags = [str(flag).format(tmp=tmp_path) for flag in flags]
    run = pretrain('--data_path', images, '--output_dir', tmp_path, '--epochs', 1, *flags)
    assert run.status == 0 and (tmp_path / needed).exists(), run.output
    if '--start_epoch' in flags:
        assert [record['epoch'] for record in epochs_of(tmp_path)] == [1]


@pytest.mark.slow
def test_bf16_on_the_cpu_trains_when_asked_for(images, tmp_path):
    if not hasattr(torch, 'autocast'):
        pytest.skip('this torch has no autocast on the CPU')
    run = pretrain('--data_path', images, '--output_dir', tmp_path, '--epochs', 1, '--amp_dtype', 'bf16')
    assert run.status == 0 and 'precision: native bf16' in run.output, run.output


@pytest.mark.slow
def test_processes_started_by_hand_meet_by_the_flags(images, tmp_path):
    url = 'tcp://127.0.0.1:{}'.format(free_port())
    running = [subprocess.Popen([python(), str(ROOT / 'main_pretrain.py'), '--data_path', str(images), *PRETRAIN,
                                 '--output_dir', str(tmp_path), '--epochs', '1', '--world_size', '2', '--local_rank',
                                 str(rank), '--dist_url', url], stdout=subprocess.PIPE) for rank in (0, 1)]
    outputs = [process.communicate(timeout=120)[0].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert 'processes: 2 over gloo' in outputs[0] and outputs[1] == ''


@pytest.mark.slow
def test_the_demo_runs_every_step(tmp_path):
    run = launcher('demo', '--quick', '--output_dir=' + str(tmp_path / 'demo'))
    assert run.status == 0, run.output
    assert 'pre-training gave' in run.output and (tmp_path / 'demo' / 'reconstructions.png').stat().st_size > 10000
