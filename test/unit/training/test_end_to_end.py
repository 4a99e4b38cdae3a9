"""End-to-end runs on tiny data: each script once, and the launchers with two processes."""
import json
import subprocess
import sys

import pytest
import torch
from conftest import FINETUNE, PRETRAIN, ROOT, call, finetune, launcher, linprobe, pretrain

from util.tools.launch import free_port


def epochs_of(folder):
    """The records of log.txt."""
    return [json.loads(line) for line in (folder / 'log.txt').read_text().splitlines()]


def weights_of(path):
    """Contents of a checkpoint, by torch.load."""
    return torch.load(str(path), map_location='cpu')


def moments_of(checkpoint):
    """Optimizer state by parameter, in order; torch 1.5 uses addresses of parameters as keys."""
    optimizer = checkpoint['optimizer']
    return [optimizer['state'][p] for group in optimizer['param_groups'] for p in group['params']]


def same(a, b):
    """Whether two nested values are bit-equal."""
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.compat
def test_a_checkpoint_has_the_documented_keys(pretrained):
    state = weights_of(pretrained / 'checkpoint-0.pth')
    assert {'model', 'optimizer', 'epoch', 'scaler', 'args'} <= set(state)
    assert type(state['args']) is dict and state['args']['model'] == 'mae_vit_nano_patch16'


def test_the_log_has_progress_lines_and_closes_with_the_final_result(images, tmp_path):
    run = pretrain('--data_path', images, '--output_dir', tmp_path, '--epochs', 2, '--start_epoch', 1, '--prof',
                   '--batch_size', 2, '--log_dir', tmp_path / 'tb')
    assert run.status == 0, run.output
    assert 'train_one_epoch FPS: ' in run.output and '/16]  eta: ' in run.output
    block = run.output[run.output.index('Final result'):]
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert 'Final Performance images/sec : {:.2f}'.format(summary['images_per_sec']) in block
    assert 'Final Loss : {:.4f}'.format(summary['loss']) in block and 'E2E Training Duration sec : ' in block
    record, = epochs_of(tmp_path)
    assert record['epoch'] == 1 and record['train_loss'] == summary['loss'] and summary['images_per_sec'] > 0
    assert list((tmp_path / 'tb').glob('events.out.tfevents.*')) and (tmp_path / 'prof' / 'trace.json').is_file()


@pytest.mark.compat
@pytest.mark.slow
def test_a_classifier_is_trained_probed_and_predicts(images, pretrained, tmp_path):
    start = ['--data_path', images, '--finetune', pretrained / 'checkpoint-0.pth', '--epochs', 1]
    for task, folder in ((finetune, tmp_path / 'tuned'), (linprobe, tmp_path / 'probed')):
        run = task(*start, '--output_dir', folder)
        assert run.status == 0, run.output
        assert {'test_acc1', 'test_acc5', 'test_loss', 'train_loss'} <= set(epochs_of(folder)[0])
    found = tmp_path / 'found.jsonl'
    run = call('main_predict', '--resume', tmp_path / 'tuned' / 'checkpoint-0.pth', '--device', 'cpu', '--num_workers',
               0, '--output', found, images / 'val')
    assert run.status == 0 and len(found.read_text().splitlines()) == 19, run.output


@pytest.mark.slow
def test_the_best_checkpoint_has_its_epoch_and_is_kept_on_resume(images, tmp_path):
    flags = ['--data_path', images, '--output_dir', tmp_path, '--save_every', 1]
    assert finetune(*flags, '--epochs', 3, '--lr', .003).status == 0
    accuracy = [record['test_acc1'] for record in epochs_of(tmp_path)]
    best = weights_of(tmp_path / 'checkpoint-best.pth')
    assert best['epoch'] == best['best']['epoch'] == accuracy.index(max(accuracy))
    state = weights_of(tmp_path / 'checkpoint-2.pth')
    state['best'] = {'acc1': 101., 'epoch': 1}
    torch.save(state, str(tmp_path / 'checkpoint-2.pth'))
    assert finetune(*flags, '--epochs', 4, '--resume', 'auto').status == 0
    assert weights_of(tmp_path / 'checkpoint-3.pth')['best'] == state['best']
    assert weights_of(tmp_path / 'checkpoint-best.pth')['epoch'] == best['epoch']


def test_a_finished_run_that_is_resumed_keeps_its_results(images, pretrained):
    files = [pretrained / name for name in ('checkpoint-0.pth', 'log.txt', 'summary.json', 'report.html')]
    before = [path.read_bytes() for path in files]
    run = pretrain('--data_path', images, '--output_dir', pretrained, '--epochs', 1, '--resume', 'auto')
    assert run.status == 0, run.output
    assert before == [path.read_bytes() for path in files]


@pytest.mark.compat
@pytest.mark.slow
def test_launchers_pretrain_resume_finetune_and_evaluate_on_two_processes(images, tmp_path):
    pre, fine, evaluated = tmp_path / 'pre', tmp_path / 'fine', tmp_path / 'evaluated'
    two = ['--nproc=2', '--data_path=' + str(images), '--amp_backend=none']      # as one process below
    for name, folder, log, flags in [
            ('pretrain_full_8p', pre, '910A_8p_pretrain_full.log', [*PRETRAIN, '--epochs=2', '--save_every=1']),
            ('pretrain_full_8p', pre, '910A_8p_pretrain_full.log', [*PRETRAIN, '--epochs=3', '--resume=auto']),
            ('finetune_performance_8p', fine, '910A_8p_finetune.log',
             [*FINETUNE, '--finetune_pth=' + str(pre / 'checkpoint-2.pth')]),
            ('finetune_eval_8p', evaluated, '910A_8p_finetune_eval.log',
             [*FINETUNE, '--resume_pth=' + str(fine / 'checkpoint-0.pth')])]:
        run = launcher(name, *two, *flags, '--output_dir=' + str(folder))
        assert run.status == 0, run.output
        assert 'processes: 2 over gloo' in run.output and run.output.count('Final result') == 1, run.output
        assert 'Final result' in (folder / log).read_text()
    assert [record['epoch'] for record in epochs_of(pre)] == [0, 1, 2]
    two_processes = json.loads((evaluated / 'eval.json').read_text())
    assert two_processes['images'] == 19
    assert two_processes['acc1'] == pytest.approx(json.loads((fine / 'summary.json').read_text())['acc1'])

    run = finetune('--eval', '--data_path', images, '--resume', fine / 'checkpoint-0.pth', '--output_dir', evaluated)
    one_process = json.loads((evaluated / 'eval.json').read_text())
    for name in ('acc1', 'acc5', 'loss', 'images'):
        assert one_process[name] == pytest.approx(two_processes[name], rel=1e-5), name
    assert len(list(evaluated.glob('eval*.json'))) == 2      # that of the first evaluation was renamed


@pytest.mark.slow
def test_processes_started_by_hand_rendezvous_by_the_flags(images, tmp_path):
    url = 'tcp://127.0.0.1:{}'.format(free_port())
    running = [subprocess.Popen([sys.executable, str(ROOT / 'main_pretrain.py'), '--data_path', str(images), *PRETRAIN,
                                 '--output_dir', str(tmp_path), '--epochs', '1', '--world_size', '2', '--local_rank',
                                 str(rank), '--dist_url', url], stdout=subprocess.PIPE) for rank in (0, 1)]
    outputs = [process.communicate(timeout=120)[0].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert 'processes: 2 over gloo' in outputs[0] and outputs[1] == ''


@pytest.mark.slow
def test_the_demo_runs_every_step(tmp_path):
    run = launcher('demo', '--quick', '--output_dir=' + str(tmp_path / 'demo'))
    assert run.status == 0, run.output
    accuracy = epochs_of(tmp_path / 'demo' / 'finetune')[-1]['test_acc1']
    assert '{:5.2f}'.format(accuracy) in (tmp_path / 'demo' / 'demo.log').read_text()
    assert (tmp_path / 'demo' / 'reconstructions.png').stat().st_size > 10000
