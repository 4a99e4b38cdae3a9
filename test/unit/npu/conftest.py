"""How tests reach the emulated packages: apex for one test at a time, torch_npu in other processes only."""
import importlib
import os
import sys
from pathlib import Path

import pytest
import torch

FOLDER = str(Path(__file__).parent)
WITH_STAND_INS = {'PYTHONPATH': os.pathsep.join([FOLDER, os.environ['PYTHONPATH']])}     # of another process


def require_emulator():
    """Skip a module of tests where this PyTorch cannot host the emulated NPU."""
    if not hasattr(getattr(torch._C, '_acc', None), 'PrivateUse1Hooks'):
        pytest.skip('this torch cannot emulate a device in Python', allow_module_level=True)


@pytest.fixture
def apex(monkeypatch):
    """The stand-in, which is gone after the test."""
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module('apex')
    for name in [name for name in sys.modules if name.split('.')[0] == 'apex']:
        del sys.modules[name]
