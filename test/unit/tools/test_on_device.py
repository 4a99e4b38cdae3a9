"""test/bench/on_device.sh on the CPU: it runs whole, and what is measured outlives an end at any moment."""
import json
import subprocess
import sys
import time

import pytest
from conftest import ROOT, TIMEOUT, environment, execute

QUICK = ['bash', ROOT / 'test' / 'bench' / 'on_device.sh', '--quick']


def found_in(folder):
    """The results up to now, {} before the first."""
    return next((json.loads(path.read_text()) for path in folder.glob('on_device-*.json')), {})


@pytest.mark.slow
def test_every_part_is_complete_and_every_check_passes(tmp_path):
    run = execute([*QUICK, '--output_dir={}'.format(tmp_path)], PYTHON=sys.executable)
    parts = found_in(tmp_path).get('parts')
    assert run.status == 0 and list(parts) == ['correctness', 'step', 'loader', 'lesson'], run.output
    assert all(part['complete'] for part in parts.values())
    assert not [row for row in parts['correctness']['rows'] if row['result'] == 'FAILED']
    assert not [row for row in parts['step']['rows'] if 'failed' in row]
    assert {row['run'] for row in parts['lesson']['rows']} == {'pretrain', 'finetune', 'scratch'}
    assert next(tmp_path.glob('on_device-*.md')).read_text().count('\n| ---') == 4


@pytest.mark.slow
def test_a_stopped_run_keeps_its_rows_and_ends_its_processes(tmp_path):
    script = subprocess.Popen([*map(str, QUICK), '--output_dir={}'.format(tmp_path)], stdout=subprocess.PIPE,
                              env=environment(PYTHON=sys.executable))
    while not found_in(tmp_path).get('parts', {}).get('correctness', {}).get('rows') and script.poll() is None:
        time.sleep(.02)
    script.terminate()
    script.communicate(timeout=TIMEOUT)         # until the last process has closed its output
    part = found_in(tmp_path)['parts']['correctness']
    assert script.returncode == 130 and part['rows'] and not part['complete']
