"""Core binding."""
import os

import pytest
from conftest import pretrain

from util.devices import host
from util.devices.accelerator import Cpu

FOUR_NODES = [list(range(24 * i, 24 * (i + 1))) for i in range(4)]


@pytest.mark.parametrize('nodes, allowed, rank, size, expected', [
    (FOUR_NODES, range(96), 7, 8, list(range(84, 96))), ([[0, 2, 4, 6], [1, 3, 5, 7]], range(8), 1, 2, [1, 3, 5, 7]),
    ([[0, 1]], range(2), 5, 8, [0, 1]), (FOUR_NODES, {1, 2, 30, 31, 200}, 1, 2, [30, 31])])
def test_shares_follow_the_numa_nodes_within_the_allowed_cores_and_too_few_are_shared(nodes, allowed, rank, size,
                                                                                      expected):
    assert host.cores_of_rank(nodes, allowed, rank, size) == expected


def test_nodes_are_read_in_the_order_of_their_numbers(tmp_path):
    for number, cores in ((0, '0-1,8'), (10, '4'), (2, '2-3')):
        (tmp_path / 'node{}'.format(number)).mkdir()
        (tmp_path / 'node{}'.format(number) / 'cpulist').write_text(cores + '\n')
    assert host.numa_nodes(str(tmp_path)) == [[0, 1, 8], [2, 3], [4]]


@pytest.mark.parametrize('asked, processes', [('0', 2), ('1', 1)])
def test_nothing_is_bound_unless_asked_and_useful(monkeypatch, asked, processes):
    monkeypatch.setenv('MAE_BIND_CORES', asked)
    assert host.bind_cores(0, processes) == ''


def bound(monkeypatch, rank, size, near):
    """Cores that bind_cores chooses of eight in two NUMA nodes."""
    chosen = []
    monkeypatch.setenv('MAE_BIND_CORES', '1')
    monkeypatch.setattr(host, 'numa_nodes', lambda: [[0, 1, 2, 3], [4, 5, 6, 7]])
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
    monkeypatch.setattr(host, 'cores_of_rank', lambda nodes, allowed, rank, size: [min(allowed)])
    when, use = [], Cpu.use         # threads of the device and of the process group would keep their cores
    monkeypatch.setattr(Cpu, 'use', lambda *given: when.append(len(os.sched_getaffinity(0))) or use(*given))
    run = pretrain('--data_path', images, '--output_dir', tmp_path, '--epochs', 1)
    core = min(os.sched_getaffinity(0))
    assert when == [1] and run.status == 0 and 'cores: {}\n'.format(core) in run.output, run.output
