"""Steps that overflow on one of two emulated NPUs are skipped on both."""
import json
import subprocess
import sys

import pytest
from conftest import ROOT, TIMEOUT, environment

from .conftest import WITH_STAND_INS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('chip', ['910A', '910B'])
def test_two_of_five_steps_are_skipped_and_change_nothing_in_every_precision(tmp_path, chip):
    script, environ = str(ROOT / 'test/unit/five_steps.py'), environment(EMULATED_NPU_CHIP=chip, **WITH_STAND_INS)
    started = [subprocess.Popen([sys.executable, script, rank, '2', str(tmp_path / 'store')], stdout=subprocess.PIPE,
                                env=environ) for rank in '01']
    for rank, process in enumerate(started):
        found = json.loads(process.communicate(timeout=TIMEOUT)[0])
        assert len(found) == (6 if chip == '910A' else 7)
        for precision, (skipped, averaged, finite, unchanged, scale) in found.items():
            assert (skipped, averaged, unchanged) == (2, 3, [1, 3]), precision
            # The 910A saturates: to look at the loss is not enough there.
            assert finite == (8 if chip == '910B' and rank == 1 else 10)
            assert scale == (2. ** 14 if 'dynamic' in precision else 128. if 'static' in precision else 1.)
