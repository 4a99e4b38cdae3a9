"""The stress test in its short form: all that may happen to a run, a few times each."""
import subprocess
import sys

import pytest
from conftest import ROOT, TIMEOUT


@pytest.mark.slow
def test_a_little_of_everything_loses_nothing(tmp_path):
    mounted = subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', str(tmp_path)], stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT)
    if mounted.returncode:
        pytest.skip('the stress test needs the right to mount: ' + mounted.stdout.decode().strip())
    subprocess.run(['umount', '-l', str(tmp_path)], check=True)
    run = subprocess.run([sys.executable, str(ROOT / 'test' / 'bench' / 'stress.py'), '--short'],
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT)
    output = run.stdout.decode()
    assert run.returncode == 0 and '| disk full at a stage of a save | 4 | 4 | 0 |' in output, output
