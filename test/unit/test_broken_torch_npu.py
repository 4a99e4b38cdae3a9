"""The real torch_npu without a working CANN: the program runs on the CPU and says why, or ends with one clear line.

It is installed once into the cache folder; test_device.py imitates the other ways in which it fails.
"""
import os
import re

import pytest
import torch
from conftest import ROOT, pretrain
from torch_npu_wheel import RELEASES, installed

REASON = 'libhccl.so: cannot open shared object file: No such file or directory'


@pytest.mark.slow
def test_auto_runs_on_the_cpu_and_says_why_and_asked_for_by_name_it_is_one_error(images, tmp_path):
    made_for = RELEASES['2.11'][0].split('.post')[0]
    if torch.__version__.split('+')[0] != made_for:
        pytest.skip('this torch_npu is made for torch {}, found {}'.format(made_for, torch.__version__))
    # A user's own TORCH_DEVICE_BACKEND_AUTOLOAD=1, PyTorch's default, would let `import torch` itself fail.
    environ = {'PYTHONPATH': os.pathsep.join([str(ROOT), str(installed('2.11'))]), 'CUDA_VISIBLE_DEVICES': '',
               'TORCH_DEVICE_BACKEND_AUTOLOAD': '1'}
    flags = ['--data_path', images, '--epochs', 1, '--output_dir', tmp_path, '--device']
    done = pretrain(*flags, 'auto', **environ)
    assert done.status == 0 and 'Final result' in done.output, done.output
    about = [line for line in done.output.split('\n') if 'torch_npu' in line]
    assert len(about) == 1 and 'device: CPU' in about[0] and REASON in about[0], done.output
    assert not re.search('Traceback|Warning', done.output), done.output
    done = pretrain(*flags, 'npu', **environ)
    assert (done.status, done.output.count('\n')) == (2, 1), done.output
    assert done.output.startswith('error: --device npu: ') and REASON in done.output
