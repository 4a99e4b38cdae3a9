"""Several processes in half precision: apex O2 and native fp16, on CPUs and on emulated NPUs."""
import json
import sys
from pathlib import Path

import pytest
from conftest import ROOT, execute

from .conftest import FOLDER, WITH_STAND_INS, require_emulator

require_emulator()
pytestmark = pytest.mark.slow


def train(folder, processes, accum_iter, device, backend, *flags):
    """(losses, weights of each process)."""
    result = folder / '{}.json'.format(processes)
    start = [ROOT / 'util' / 'launch.py', '--nproc', processes] if processes > 1 else []
    script = Path(FOLDER) / 'in_processes.py'
    run = execute([sys.executable, *start, script, result, accum_iter, device, backend, *flags], **WITH_STAND_INS)
    assert run.status == 0, run.output
    found = json.loads(result.read_text())
    return found['losses'], found['weights']


@pytest.mark.parametrize('device, backend, accum_iter', [
    ('cpu', 'apex', 1), ('cpu', 'apex', 2), ('npu', 'apex', 2), ('npu', 'native', 1), ('npu', 'native', 2)])
def test_two_processes_step_as_one_with_twice_the_batch(tmp_path, device, backend, accum_iter):
    losses, [weights] = train(tmp_path, 1, accum_iter, device, backend)
    losses_of_two, [first, second] = train(tmp_path, 2, accum_iter, device, backend)
    assert first == second
    assert losses_of_two == pytest.approx(losses, rel=3e-3)
    assert first == pytest.approx(weights, abs=2e-3)


@pytest.mark.parametrize('hazard, device, backend', [
    ('moved', 'cpu', 'apex'),       # gradients, by DistributedDataParallel: fused optimizers do not find them there
    ('moved', 'npu', 'native'),
    ('unshared', 'cpu', 'apex')])   # weights, when apex makes its masters: each process goes on with its own
def test_a_naive_program_would_train_something_else(tmp_path, hazard, device, backend):
    losses, _ = train(tmp_path, 1, 1, device, backend)
    naive, _ = train(tmp_path, 2, 1, device, backend, hazard)
    assert naive != pytest.approx(losses, rel=1e-2)     # ours: the test above
