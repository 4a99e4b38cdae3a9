"""Choosing the device, what differs between devices, and where accelerators may be named."""
import os
import re
import sys
import types

import pytest
import torch
from conftest import ROOT, execute

from util.devices import accelerator, host
from util.errors import UserError


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)


@pytest.mark.compat
def test_with_a_broken_torch_npu_auto_is_the_cpu_and_npu_is_one_clear_error(monkeypatch, no_gpu, tmp_path):
    (tmp_path / 'torch_npu.py').write_text('raise SystemExit(1)')       # as 1.8.1
    monkeypatch.syspath_prepend(str(tmp_path))
    chosen = accelerator.select('auto')
    assert chosen.type == 'cpu' and re.search(r'does not load .*set_env.sh.*release for torch', chosen.reason)
    with pytest.raises(UserError, match='--device npu: .*does not load'):
        accelerator.select('npu')


@pytest.mark.slow
def test_pytorch_does_not_load_torch_npu_by_itself(tmp_path):
    """As it would where the user's own TORCH_DEVICE_BACKEND_AUTOLOAD is PyTorch's default, 1."""
    for name, text in (('torch_npu/__init__.py', 'raise ImportError("libhccl.so: cannot open shared object file")'),
                       ('torch_npu-1.dist-info/METADATA', 'Metadata-Version: 2.1\nName: torch_npu\nVersion: 1\n'),
                       ('torch_npu-1.dist-info/entry_points.txt', '[torch.backends]\ntorch_npu = torch_npu:load\n')):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    code = 'from util.devices import accelerator; print(accelerator.select("auto").reason)'
    run = execute([sys.executable, '-c', code],
                  PYTHONPATH=os.pathsep.join([str(ROOT), str(tmp_path)]), CUDA_VISIBLE_DEVICES='',
                  TORCH_DEVICE_BACKEND_AUTOLOAD='1')
    assert (run.status, run.output.count('\n')) == (0, 1) and 'libhccl.so' in run.output, run.output


def fake_npu(available=True, count=2):
    return types.SimpleNamespace(is_available=lambda: available, device_count=lambda: count,
                                 set_device=lambda where: None, manual_seed_all=lambda seed: None,
                                 synchronize=lambda: None, max_memory_allocated=lambda: 3 * 2 ** 20)


def test_an_npu_is_preferred(monkeypatch):
    monkeypatch.setattr(torch, 'npu', fake_npu(), raising=False)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    chosen = accelerator.select('auto')
    assert (chosen.type, chosen.backend, chosen.count(), chosen.peak_memory()) == ('npu', 'hccl', 2, 3)
    assert chosen.supports_bf16() is False      # missing in torch.npu of 1.8
    assert chosen.name == 'NPU'                 # the name of the chip is missing in 1.5


def test_a_missing_npu_is_one_line_that_names_the_tool_or_flag_to_use(monkeypatch, no_gpu):
    monkeypatch.setattr(torch, 'npu', fake_npu(count=2), raising=False)
    with pytest.raises(UserError, match='--nproc=2'):
        accelerator.select('npu').use(2)
    monkeypatch.setattr(torch, 'npu', fake_npu(available=False))
    assert 'npu-smi' in accelerator.select('auto').reason
    with pytest.raises(UserError, match='--device cuda'):
        accelerator.select('cuda')


TOPOLOGY = """cat << END
           NPU0       NPU1       NPU2       CPU Affinity
NPU0       X          HCCS       HCCS       0-1,8
NPU1       HCCS       X          HCCS       2-3
NPU2       HCCS       HCCS       X
  X    = Self
END
"""


@pytest.mark.parametrize('visible, program, expected', [
    ('', TOPOLOGY, [[0, 1, 8], [2, 3], []]), ('1,0', TOPOLOGY, [[2, 3], [0, 1, 8]]),
    ('', 'exec sleep 60', []), ('', 'echo no topology; exit 1', []), ('', None, [])])
def test_npu_smi_tells_the_cores_near_each_visible_npu(monkeypatch, tmp_path, visible, program, expected):
    if program:
        (tmp_path / 'npu-smi').write_text('#!/bin/sh\nPATH=/usr/bin:/bin\n' + program)
        (tmp_path / 'npu-smi').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setenv('ASCEND_RT_VISIBLE_DEVICES', visible)
    monkeypatch.setattr(accelerator, 'TOPOLOGY_SECONDS', .5 if not expected else 10.)
    assert accelerator.Npu(fake_npu()).near_cores() == expected


def test_hccl_gets_the_address_that_reaches_the_master_unless_it_is_set(monkeypatch):
    npu = accelerator.Npu(fake_npu())
    monkeypatch.setattr(os, 'environ', {})
    assert host.local_address_towards('127.0.0.1') is None        # of no use to another node
    monkeypatch.setattr(host, 'local_address_towards', lambda host: '10.0.0.7')
    npu.prepare_network('10.0.0.1', 660.)
    assert os.environ['HCCL_IF_IP'] == '10.0.0.7'
    assert 660 <= int(os.environ['HCCL_EXEC_TIMEOUT']) // 68 * 68 <= 17340     # as the 910A takes it
    monkeypatch.setenv('HCCL_IF_IP', '192.168.1.1')
    monkeypatch.setenv('HCCL_EXEC_TIMEOUT', '100')
    npu.prepare_network('10.0.0.1', 660.)
    assert (os.environ['HCCL_IF_IP'], os.environ['HCCL_EXEC_TIMEOUT']) == ('192.168.1.1', '100')


@pytest.mark.compat
def test_an_older_npu_build_is_profiled_by_autograds_profiler(monkeypatch):
    """Ascend's builds of 1.5, 1.8 and 1.11 add use_npu to autograd's profiler; torch_npu.profiler came later."""
    asked = []

    def profile(enabled=True, use_npu=False):
        asked.append(use_npu)
    monkeypatch.setattr(torch.autograd.profiler, 'profile', profile)
    monkeypatch.delitem(sys.modules, 'torch_npu', raising=False)
    accelerator.Npu(fake_npu()).profile('')
    assert asked == [True]


@pytest.mark.compat
def test_adamw_is_not_fused_on_a_device_that_does_not_support_it(monkeypatch):
    plain = torch.optim.AdamW

    def fused_on_cuda_only(params, lr=1e-3, betas=(.9, .999), fused=False):
        if fused:
            raise RuntimeError('`fused=True` requires all the params to be on cuda')
        return plain(params, lr=lr, betas=betas)

    monkeypatch.setattr(torch.optim, 'AdamW', fused_on_cuda_only)
    assert type(accelerator.Cpu().adamw([torch.nn.Parameter(torch.ones(3))], lr=.1)) is plain
