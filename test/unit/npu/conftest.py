"""How tests reach the emulated packages: apex for one test at a time, torch_npu in other processes only."""
import importlib
import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import WARM_PATHS

FOLDER = str(Path(__file__).parent)
WITH_STAND_INS = {'PYTHONPATH': os.pathsep.join([FOLDER, os.environ['PYTHONPATH']])}     # of another process
WARM_PATHS.add(WITH_STAND_INS['PYTHONPATH'])


def require_emulator():
    """Skip a module of tests where this PyTorch cannot host the emulated NPU."""
    if not hasattr(getattr(torch._C, '_acc', None), 'PrivateUse1Hooks'):
        pytest.skip('this torch cannot emulate a device in Python', allow_module_level=True)


@pytest.fixture
def apex(monkeypatch):
    """The stand-in, imported afresh; what it does to torch.nn.Module ends with the test."""
    monkeypatch.setattr(torch.nn.Module, 'zero_grad', torch.nn.Module.zero_grad)
    monkeypatch.syspath_prepend(FOLDER)
    forget_apex()
    yield importlib.import_module('apex')
    forget_apex()


def forget_apex():
    for name in [name for name in sys.modules if name.split('.')[0] == 'apex']:
        del sys.modules[name]
