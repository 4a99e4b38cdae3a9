"""The stress test in its short form: all that may happen to a run, a few times each."""
import subprocess
import sys

import pytest
from conftest import ROOT, execute


@pytest.mark.slow
def test_a_little_of_everything_loses_nothing(tmp_path):
    mounted = subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', str(tmp_path)], stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT)
    if mounted.returncode:
        pytest.skip('the stress test needs the right to mount: ' + mounted.stdout.decode().strip())
    subprocess.run(['umount', '-l', str(tmp_path)], check=True)
    run = execute([sys.executable, ROOT / 'test' / 'bench' / 'stress.py', '--short'])
    assert run.status == 0 and '| disk full at a stage of a save | 4 | 4 | 0 |' in run.output, run.output
