"""Access to the emulated packages in subprocesses."""
import os
from pathlib import Path

import pytest
import torch

FOLDER = str(Path(__file__).parent)
WITH_STAND_INS = {'PYTHONPATH': os.pathsep.join([FOLDER, os.environ['PYTHONPATH']])}     # of a subprocess


@pytest.fixture(scope='session', autouse=True)
def emulator():
    """Skip these tests if this PyTorch does not support the emulated NPU."""
    if not hasattr(getattr(torch._C, '_acc', None), 'PrivateUse1Hooks'):
        pytest.skip('this torch cannot emulate a device in Python')
