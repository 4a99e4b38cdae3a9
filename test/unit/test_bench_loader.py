"""The benchmarks of the loader: they measure what they say, on any folder of images."""
import json
import sys

import pytest
from conftest import ROOT, execute


@pytest.fixture(scope='module')
def packed(images, tmp_path_factory):
    """The images in tar files."""
    folder = tmp_path_factory.mktemp('packed') / 'x'
    run = execute([sys.executable, '-m', 'util.pack_shards', images, folder])
    assert run.status == 0, run.output
    return folder


def test_the_loader_is_measured_against_the_baseline_by_stage_and_as_a_whole(images, packed, tmp_path):
    run = execute([sys.executable, ROOT / 'test' / 'bench' / 'bench_loader.py', images, '--images', 16, '--rounds', 1,
                   '--batch_size', 8, '--input_size', 32, '--workers', 0, 1, '--device', 'cpu',
                   '--packed', packed, '--json', tmp_path / 'x.json'])
    assert run.status == 0, run.output
    results = json.loads((tmp_path / 'x.json').read_text())
    assert all(mean <= worst < 4 for mean, worst in results.pop('difference from Pillow').values())
    assert set(results) == {'pretrain', 'finetune', 'evaluate'}
    for task, figures in results.items():
        assert '| {} | ours | baseline | ratio |'.format(task) in run.output
        assert all(figures['stages']['decode'][side] > 0 for side in (0, 1))
        for workers in ('0 workers', '1 workers', '0 workers from tar files', '1 workers from tar files'):
            assert figures[workers]['ratio'] > 0 and figures[workers]['ours'] > 0


def test_tar_files_are_measured_against_the_folder_that_they_were_made_of(images, packed, tmp_path):
    run = execute([sys.executable, ROOT / 'test' / 'bench' / 'bench_shards.py', images, packed, '--rounds', 1,
                   '--batch_size', 8, '--input_size', 32, '--json', tmp_path / 'x.json'])
    assert run.status == 0, run.output
    assert '| images/s (MB from the disk) | folder | tar files |' in run.output
    results = json.loads((tmp_path / 'x.json').read_text())
    assert set(results) == {'read, cold', 'read, warm', 'batches, cold', 'batches, warm'}
    assert all(speed > 0 and megabytes >= 0 for sides in results.values() for speed, megabytes in sides)
