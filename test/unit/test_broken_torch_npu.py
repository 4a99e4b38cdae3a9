"""torch_npu without a working CANN: the program itself runs on the CPU and says why, or ends with one clear line.

    python -m pytest test/unit/test_broken_torch_npu.py

One torch_npu is the real one, installed once into the cache folder; the others imitate what torch_npu 1.8.1 does.
"""
import os
import re

import pytest
import torch
from conftest import ROOT, pretrain
from torch_npu_wheel import RELEASES, installed


@pytest.fixture(params=['torch_npu that leaves with a message', 'torch_npu that prints and leaves',
                        pytest.param('the real torch_npu', marks=pytest.mark.slow)])
def broken(request, tmp_path):
    """(PYTHONPATH on which torch_npu does not load, what the program says about it)."""
    if request.param == 'the real torch_npu':
        made_for = RELEASES['2.11'][0].split('.post')[0]
        if torch.__version__.split('+')[0] != made_for:
            pytest.skip('this torch_npu is made for torch {}, found {}'.format(made_for, torch.__version__))
        folder, said = installed('2.11'), 'libhccl.so: cannot open shared object file: No such file or directory'
    else:
        folder, leave = tmp_path / 'packages', 'import sys\nsys.exit("CANN is not found.")\n'
        said = 'CANN is not found'
        if 'prints' in request.param:
            leave, said = 'import sys\nprint("CANN is not found.")\nsys.exit()\n', 'its import ends the program'
        (folder / 'torch_npu').mkdir(parents=True)
        (folder / 'torch_npu' / '__init__.py').write_text(leave)
    return os.pathsep.join([str(ROOT), str(folder)]), said


def run(broken, device, images, folder, **environ):
    # A user's own TORCH_DEVICE_BACKEND_AUTOLOAD=1, PyTorch's default, would let `import torch` itself fail.
    return pretrain('--data_path', images, '--output_dir', folder, '--epochs', 1, '--device', device,
                    PYTHONPATH=broken[0], TORCH_DEVICE_BACKEND_AUTOLOAD='1', **environ)


def test_auto_runs_on_the_cpu_and_says_why_in_one_line(broken, images, tmp_path):
    done = run(broken, 'auto', images, tmp_path / 'out', CUDA_VISIBLE_DEVICES='')
    assert done.status == 0 and 'Final result' in done.output, done.output
    about = [line for line in done.output.split('\n') if 'torch_npu' in line]
    assert len(about) == 1 and 'device: CPU' in about[0] and broken[1] in about[0], done.output
    assert not re.search('Traceback|Warning', done.output), done.output


def test_asked_for_by_name_it_is_one_error(broken, images, tmp_path):
    done = run(broken, 'npu', images, tmp_path / 'out')
    errors = [line for line in done.output.strip().split('\n') if line != 'CANN is not found.']
    assert (done.status, len(errors)) == (2, 1), done.output
    assert errors[0].startswith('error: --device npu: ') and broken[1] in errors[0]
