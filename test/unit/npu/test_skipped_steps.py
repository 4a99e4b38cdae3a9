"""Steps that overflow on one of two emulated NPUs are skipped on both, without a read by the host."""
import json
import subprocess
import sys

import pytest
from conftest import ROOT, TIMEOUT, environment
from five_steps import BAD_STEPS, PRECISIONS

from .conftest import WITH_STAND_INS, require_emulator

require_emulator()
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def printed(tmp_path_factory):
    """{chip: what each of two processes has printed}."""
    script, folder = str(ROOT / 'test' / 'unit' / 'five_steps.py'), tmp_path_factory.mktemp('stores')
    started = {chip: [subprocess.Popen([sys.executable, script, rank, '2', str(folder / chip)], stdout=subprocess.PIPE,
                                       env=environment(EMULATED_NPU_CHIP=chip, **WITH_STAND_INS)) for rank in '01']
               for chip in ('910A', '910B')}
    return {chip: [json.loads(process.communicate(timeout=TIMEOUT)[0]) for process in processes]
            for chip, processes in started.items()}


@pytest.mark.parametrize('chip, precision', [(chip, name) for chip in ('910A', '910B') for name in PRECISIONS
                                             if (chip, name) != ('910A', 'bf16')])
def test_two_of_five_steps_are_skipped_and_change_nothing(printed, chip, precision):
    for rank, values in enumerate(printed[chip]):
        found = values[precision]
        assert (found['skipped'], found['ema'], found['unchanged']) == (2, 3, list(BAD_STEPS))
        # The first chip saturates: to see whether a loss is finite is not enough there.
        assert found['finite'] == (8 if chip == '910B' and rank == 1 else 10)
        assert found['reads'] == 0 or 'apex' in precision
        assert found['scale'] == {'fp32': 1., 'fp32 clipped': 1., 'bf16': 1.}.get(
            precision, 2. ** 14 if 'dynamic' in precision else 128.)
