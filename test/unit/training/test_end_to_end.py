"""End-to-end runs on tiny data; linear probing and predictions have some in their own files."""
import json
import shutil

import pytest
import torch
from conftest import FINETUNE, finetune, launcher, pretrain, succeeded
from test_report import Page


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
def test_the_log_has_progress_lines_and_closes_with_the_final_result(images, tmp_path):
    output = succeeded(pretrain('--data_path', images, '--output_dir', tmp_path, '--epochs', 2, '--start_epoch', 1,
                                '--prof', '--batch_size', 2, '--log_dir', tmp_path / 'tb'))
    assert 'train_one_epoch FPS: ' in output and '/16]  eta: ' in output
    block = output[output.index('Final result'):]
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert 'Final Performance images/sec : {:.2f}'.format(summary['images_per_sec']) in block
    assert 'Final Loss : {:.4f}'.format(summary['loss']) in block and 'E2E Training Duration sec : ' in block
    record, = epochs_of(tmp_path)
    assert record['epoch'] == 1 and record['train_loss'] == summary['loss'] and summary['images_per_sec'] > 0
    assert list((tmp_path / 'tb').glob('events.out.tfevents.*'))
    assert 'layer_norm' in (tmp_path / 'prof' / 'trace.json').read_text()


def test_a_training_goes_on_without_an_unreadable_image_and_lists_it(images, tmp_path):
    shutil.copytree(str(images), str(tmp_path / 'data'))
    broken = next(tmp_path.glob('data/train/*/*.jpg'))
    broken.write_bytes(b'')
    succeeded(pretrain('--data_path', tmp_path / 'data', '--output_dir', tmp_path / 'o', '--epochs', 1))
    assert (tmp_path / 'o' / 'bad_images.txt').read_text() == '{}\tan empty file\n'.format(broken)


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
    succeeded(pretrain('--data_path', images, '--output_dir', pretrained, '--epochs', 1, '--resume', 'auto'))
    assert before == [path.read_bytes() for path in files]


@pytest.mark.compat
@pytest.mark.slow
def test_a_launcher_finetunes_on_two_processes_as_one_process_evaluates_and_reports(images, pretrained, tmp_path):
    start = ['--data_path', images, '--output_dir', tmp_path]
    run = launcher('finetune_performance_8p', '--nproc=2', *start, *FINETUNE, '--batch_size=4', '--dist_eval',
                   '--amp_backend=none', '--finetune_pth', pretrained / 'checkpoint-0.pth')
    assert run.status == 0 and (tmp_path / '910A_8p_finetune.log').read_text() == run.output, run.output
    assert 'processes: 2 over gloo' in run.output and run.output.count('Final result') == 1, run.output
    trained, report = Page(tmp_path / 'report.html'), (tmp_path / 'report.html').read_bytes()
    assert len(trained.curves) == 5 and all(jpegs for *_, jpegs in trained.parts['Worst-confused classes']['pairs'])

    for _ in range(2):
        assert finetune(*start, '--eval', '--resume', tmp_path / 'checkpoint-0.pth').status == 0
    assert [len(list(tmp_path.glob('eval*' + kind))) for kind in ('.json', '.html')] == [2, 2]      # first: renamed
    result, (epoch,) = json.loads((tmp_path / 'eval.json').read_text()), epochs_of(tmp_path)
    for name in ('acc1', 'acc5', 'loss'):
        assert result[name] == pytest.approx(epoch['test_' + name], rel=1e-5), name
    classes = Page(tmp_path / 'eval.html').parts['All classes']
    assert classes == trained.parts['All classes'] and (tmp_path / 'report.html').read_bytes() == report
    assert result['images'] == sum(map(sum, classes['matrix']['counts'])) == 19


@pytest.mark.slow
def test_the_demo_runs_every_step(tmp_path):
    succeeded(launcher('demo', '--quick', '--output_dir=' + str(tmp_path / 'demo')))
    accuracy = epochs_of(tmp_path / 'demo' / 'finetune')[-1]['test_acc1']
    assert '{:5.2f}'.format(accuracy) in (tmp_path / 'demo' / 'demo.log').read_text()
    assert (tmp_path / 'demo' / 'reconstructions.png').stat().st_size > 10000
