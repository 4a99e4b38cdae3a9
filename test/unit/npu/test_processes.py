"""Several processes in half precision on emulated NPUs: apex O2 and native fp16."""
import json
import sys
from pathlib import Path

import pytest
from conftest import ROOT, execute

from .conftest import FOLDER, WITH_STAND_INS, require_emulator

require_emulator()
pytestmark = pytest.mark.slow


def train(folder, processes, accum_iter, backend):
    """(losses, weights of each process)."""
    result = folder / '{}.json'.format(processes)
    start = [ROOT / 'util' / 'launch.py', '--nproc', processes] if processes > 1 else []
    run = execute([sys.executable, *start, Path(FOLDER) / 'in_processes.py', result, accum_iter, backend],
                  **WITH_STAND_INS)
    assert run.status == 0, run.output
    found = json.loads(result.read_text())
    return found['losses'], found['weights']


@pytest.mark.parametrize('accum_iter, backend', [(1, 'apex'), (2, 'apex'), (2, 'native')])
def test_two_processes_step_as_one_with_twice_the_batch(tmp_path, accum_iter, backend):
    losses, [weights] = train(tmp_path, 1, accum_iter, backend)
    losses_of_two, [first, second] = train(tmp_path, 2, accum_iter, backend)
    assert first == second
    assert losses_of_two == pytest.approx(losses, rel=3e-3)
    assert first == pytest.approx(weights, abs=2e-3)
