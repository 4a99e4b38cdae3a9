"""The stand-in for Ascend's apex, for one test at a time."""
import importlib
import sys
from pathlib import Path

import pytest
import torch

FOLDER = str(Path(__file__).parent)


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
