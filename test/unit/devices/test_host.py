"""Which cores a process keeps to."""
import os

import pytest
from conftest import FINETUNE, ROOT, two_processes

from util.devices import host

FOUR_NODES = [list(range(24 * i, 24 * (i + 1))) for i in range(4)]


@pytest.mark.parametrize('nodes, rank, size, expected', [
    (FOUR_NODES, 7, 8, list(range(84, 96))), ([[0, 2, 4, 6], [1, 3, 5, 7]], 1, 2, [1, 3, 5, 7]),
    ([[0, 1]], 5, 8, [0, 1])])
def test_shares_follow_the_numa_nodes_and_few_cores_are_for_all(nodes, rank, size, expected):
    assert host.share(nodes, range(sum(map(len, nodes))), rank, size) == expected


def test_only_allowed_cores_are_shared():
    shares = [host.share(FOUR_NODES, {1, 2, 30, 31, 200}, rank, 2) for rank in (0, 1)]
    assert shares == [[1, 2], [30, 31]]


def test_nodes_are_read_in_the_order_of_their_numbers(tmp_path):
    for number, cores in ((0, '0-1,8'), (10, '4'), (2, '2-3')):
        (tmp_path / 'node{}'.format(number)).mkdir()
        (tmp_path / 'node{}'.format(number) / 'cpulist').write_text(cores + '\n')
    assert host.numa_nodes(str(tmp_path)) == [[0, 1, 8], [2, 3], [4]]


@pytest.mark.parametrize('asked, processes', [('0', 2), ('1', 1)])
def test_nothing_is_bound_unless_asked_and_useful(monkeypatch, asked, processes):
    monkeypatch.setenv('MAE_BIND_CORES', asked)
    assert host.bind(0, processes) == ''


@pytest.mark.slow
def test_two_processes_that_are_bound_say_so_and_share_the_cores(images, tmp_path):
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip('this machine has one core')
    os.sched_setaffinity(0, allowed[:2])
    run = two_processes(ROOT / 'main_finetune.py', '--data_path', images, '--output_dir', tmp_path, *FINETUNE,
                        '--epochs', 1, MAE_BIND_CORES='1')
    os.sched_setaffinity(0, allowed)
    assert run.status == 0 and ', cores {} of this one\n'.format(allowed[0]) in run.output, run.output
