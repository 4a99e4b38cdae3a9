"""Core binding."""
import os

import pytest
from conftest import pretrain

from util.devices import host
from util.devices.accelerator import Cpu


@pytest.mark.parametrize('cores, index, processes, expected', [
    (range(96), 7, 8, list(range(84, 96))), ({1, 2, 30, 31, 200}, 1, 2, [30, 31]), (range(2), 5, 8, [0, 1])])
def test_shares_are_even_and_disjoint_and_too_few_cores_are_shared(cores, index, processes, expected):
    assert host.even_share(cores, index, processes) == expected


@pytest.mark.parametrize('asked, processes', [('0', 2), ('1', 1)])
def test_nothing_is_bound_unless_asked_and_useful(monkeypatch, asked, processes):
    monkeypatch.setenv('MAE_BIND_CORES', asked)
    assert host.bind_cores(0, processes) == ''


def bound(monkeypatch, rank, size, near):
    """Cores that bind_cores chooses of eight."""
    chosen = []
    monkeypatch.setenv('MAE_BIND_CORES', '1')
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(8)))
    monkeypatch.setattr(os, 'sched_setaffinity', lambda pid, cores: chosen.extend(cores))
    return host.bind_cores(rank, size, lambda: near) and chosen


def test_processes_share_the_cores_near_their_device_and_torch_npus_own_binding_stays(monkeypatch):
    far, close = [4, 5, 6, 7], [0, 1, 2, 3]
    assert [bound(monkeypatch, rank, 3, [far, close, far, close]) for rank in range(3)] == [[4, 5], close, [6, 7]]
    unknown = [], [far], [[]] * 2, [far, []], [far, [*far, 3]]          # or overlapping: even shares
    assert [bound(monkeypatch, 0, 2, near) for near in unknown] == [close] * 5
    monkeypatch.setenv('CPU_AFFINITY_CONF', '2')
    assert bound(monkeypatch, 0, 2, [far, close]) == []


def test_a_run_binds_its_process_and_logs_the_share(images, tmp_path, monkeypatch):
    monkeypatch.setenv('MAE_BIND_CORES', '1')
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    monkeypatch.setattr(host, 'even_share', lambda cores, index, processes: [min(cores)])
    when, use = [], Cpu.use         # threads of the device and of the process group would keep their cores
    monkeypatch.setattr(Cpu, 'use', lambda *given: when.append(len(os.sched_getaffinity(0))) or use(*given))
    run = pretrain('--data_path', images, '--output_dir', tmp_path, '--epochs', 1)
    core = min(os.sched_getaffinity(0))
    assert when == [1] and run.status == 0 and 'cores: {}\n'.format(core) in run.output, run.output
