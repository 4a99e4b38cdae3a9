"""The benchmark of several processes: it measures what it says."""
import json
import os
import sys

import pytest
from conftest import ROOT, execute

from models_mae import mae_vit_nano_patch16

BENCH = [sys.executable, ROOT / 'test' / 'bench' / 'bench_scaling.py']
CORES = len(os.sched_getaffinity(0))


@pytest.mark.skipif(CORES < 2, reason='each process needs a core of its own')
def test_a_step_is_timed_alone_together_and_without_the_exchange(tmp_path):
    run = execute([*BENCH, '--model', 'mae_vit_nano_patch16', '--batch_size', 2, '--rounds', 1, '--steps', 1,
                   '--options', '{"bucket_cap_mb": 1}', '--json', tmp_path / 'x.json', '--', '--input_size', 32,
                   '--patch_size', 8])
    assert run.status == 0, run.output
    report = json.loads((tmp_path / 'x.json').read_text())
    assert set(report['milliseconds']) == {'alone', 'together', 'no_sync', 'exchange', 'other options'}
    assert set(report['milliseconds']) == set(report['processor']) and set(report['ratios'].values()) - {0}
    assert all(len(values) == 1 and values[0] > 0 for values in report['milliseconds'].values())
    model = mae_vit_nano_patch16(img_size=32, patch_size=8)
    assert report['megabytes'] == sum(p.numel() for p in model.parameters() if p.requires_grad) * 4 / 1e6
    assert '| efficiency |' in run.output and '| together |' in run.output


@pytest.mark.parametrize('flags, words', [
    (['--processes', CORES + 1], '--processes: {} on {} cores'.format(CORES + 1, CORES)),
    (['--rounds', '0'], "--rounds: '0' is not"), (['--options', '{'], '--options: invalid')])
def test_a_mistake_is_one_line(flags, words):
    run = execute([*BENCH, *flags])
    assert run.status == 2 and run.output.count('\n') == 1 and words in run.output, run.output
