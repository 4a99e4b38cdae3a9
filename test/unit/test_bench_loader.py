"""The benchmark of the loader: it measures what it says, on any folder of images."""
import json
import sys

from conftest import ROOT, execute


def test_the_loader_is_measured_against_the_baseline_by_stage_and_as_a_whole(images, tmp_path):
    run = execute([sys.executable, ROOT / 'test' / 'bench' / 'bench_loader.py', images, '--images', 16, '--rounds', 1,
                   '--batch_size', 8, '--input_size', 32, '--workers', 0, 1, '--device', 'cpu',
                   '--json', tmp_path / 'x.json'])
    assert run.status == 0, run.output
    results = json.loads((tmp_path / 'x.json').read_text())
    assert all(mean <= worst < 4 for mean, worst in results.pop('difference from Pillow').values())
    assert set(results) == {'pretrain', 'finetune', 'evaluate'}
    for task, figures in results.items():
        assert '| {} | ours | baseline | ratio |'.format(task) in run.output
        assert all(figures['stages']['decode'][side] > 0 for side in (0, 1))
        for workers in ('0 workers', '1 workers'):
            assert figures[workers]['ratio'] > 0 and figures[workers]['ours'] > 0
