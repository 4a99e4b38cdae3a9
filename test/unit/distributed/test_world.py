"""Ranks from the environment, and equality of one and two processes."""
import pytest
import torch
from conftest import FINETUNE, ROOT, finetune, succeeded, two_processes
from test_end_to_end import epochs_of, moments_of, weights_of

from util.devices.accelerator import Cpu
from util.distributed import world as distributed
from util.distributed.world import local_world_size, world_from_environment
from util.errors import SystemFailure, UserError
from util.tools.launch import free_port


def world(environ, **flags):
    found = world_from_environment(environ=environ, **flags)
    return found.rank, found.size, found.local_rank


@pytest.mark.parametrize('environ, flags, expected', [
    ({}, {}, (0, 1, 0)),
    ({'RANK': '9', 'WORLD_SIZE': '16', 'LOCAL_RANK': '1'}, {}, (9, 16, 1)),
    ({'RANK': '3', 'WORLD_SIZE': '8'}, {'local_rank': 3}, (3, 8, 3)),       # an old launcher
    ({'OMPI_COMM_WORLD_RANK': '2', 'OMPI_COMM_WORLD_SIZE': '4', 'OMPI_COMM_WORLD_LOCAL_RANK': '0'},
     {'dist_on_itp': True}, (2, 4, 0)),
    ({'SLURM_PROCID': '0', 'SLURM_NTASKS': '1', 'SLURM_LOCALID': '0'}, {}, (0, 1, 0))])     # a shell in an allocation
def test_ranks_come_from_environment_and_flags(environ, flags, expected):
    assert world(environ, **flags) == expected


@pytest.mark.parametrize('nodelist, host', [
    ('npu[07-08]', 'npu07'), ('node1,node2', 'node1'), ('n[03-07,12],x1', 'n03'), ('n[4]-ib,z', 'n4-ib')])
def test_slurm_tasks_find_their_master_in_the_node_list(nodelist, host):
    environ = {'SLURM_PROCID': '5', 'SLURM_NTASKS': '16', 'SLURM_LOCALID': '5', 'SLURM_JOB_NODELIST': nodelist,
               'SLURM_JOB_ID': '12345'}
    assert world(environ) == (5, 16, 5)
    assert environ['MASTER_ADDR'] == host and 1024 < int(environ['MASTER_PORT']) < 65536


@pytest.mark.parametrize('environ, address', [({}, '10.0.0.1'), ({'MASTER_ADDR': 'set'}, 'set')])
def test_processes_started_by_hand_have_ranks_by_flags(environ, address):
    assert world(environ, world_size=8, local_rank=5, addr='10.0.0.1') == (5, 8, 5)
    assert environ == {'MASTER_ADDR': address, 'MASTER_PORT': '29500'}


@pytest.mark.parametrize('environ, flags', [
    ({'RANK': '0', 'WORLD_SIZE': '4', 'LOCAL_RANK': '0'}, {'world_size': 8}), ({}, {'local_rank': 3})])
def test_flags_that_contradict_the_environment_or_each_other_are_refused(environ, flags):
    with pytest.raises(UserError, match='--' + list(flags)[0]):
        world(environ, **flags)


TORCHRUN = {'RANK': '1', 'WORLD_SIZE': '4', 'LOCAL_RANK': '1', 'LOCAL_WORLD_SIZE': '2', 'MASTER_PORT': '29500'}
SLURM = {'SLURM_PROCID': '1', 'SLURM_NTASKS': '4', 'SLURM_LOCALID': '1', 'SLURM_JOB_NODELIST': 'n[1-2]'}
OMPI = {'OMPI_COMM_WORLD_RANK': '1', 'OMPI_COMM_WORLD_SIZE': '4', 'OMPI_COMM_WORLD_LOCAL_RANK': '1'}
WRONG = ['-1', 'two', '', '1.5', '9' * 5000]


@pytest.mark.parametrize('environ, name, values', [
    *((TORCHRUN, name, [*WRONG, '0' if 'SIZE' in name else '4']) for name in TORCHRUN if name != 'MASTER_PORT'),
    (TORCHRUN, 'MASTER_PORT', [*WRONG, '0', '65536']),
    *((SLURM, name, WRONG) for name in ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID')),
    *((OMPI, name, [*WRONG, '0' if 'SIZE' in name else '4']) for name in OMPI),
    (TORCHRUN, 'WORLD_SIZE', ['100000000']), (TORCHRUN, 'LOCAL_RANK', ['2']),
    (TORCHRUN, 'RANK', [None]), (TORCHRUN, 'WORLD_SIZE', [None]), (SLURM, 'SLURM_LOCALID', [None])])
def test_a_wrong_variable_of_the_environment_is_named(environ, name, values):
    assert world(dict(environ), dist_on_itp=environ is OMPI) == (1, 4, 1)
    for value in values:
        changed = {**environ, name: value} if value is not None else {k: v for k, v in environ.items() if k != name}
        with pytest.raises(UserError, match=name):
            world(changed, dist_on_itp=environ is OMPI)


def test_a_slurm_job_without_srun_learns_after_seconds_who_is_missing(monkeypatch, caplog):
    for name, value in {**SLURM, 'SLURM_PROCID': '0', 'SLURM_LOCALID': '0', 'MASTER_ADDR': '127.0.0.1',
                        'MASTER_PORT': '29500'}.items():
        monkeypatch.setenv(name, value)
    found = world_from_environment()
    monkeypatch.setattr(distributed, 'NOTICE', .1)
    with pytest.raises(SystemFailure, match='rank 1, 2, 3 of 4 within 1 s.* srun'):
        found.join(Cpu(), 'tcp://127.0.0.1:{}'.format(free_port()), hang_timeout=1.)
    line, = caplog.messages
    assert 'waiting for rank 1, 2, 3 of 4' in line and 'srun' in line


def test_the_local_world_size_is_read_from_the_environment():
    environments = {}, {'LOCAL_WORLD_SIZE': '8'}, {'SLURM_NTASKS_PER_NODE': '4(x2)'}, {'LOCAL_WORLD_SIZE': '0'}
    assert [local_world_size(environ) for environ in environments] == [1, 8, 1, 1]


def test_collectives_wait_for_the_first_iteration_of_another_process(monkeypatch):
    found, store = {}, torch.distributed.HashStore()
    store.add('arrived/1', 1)
    monkeypatch.setattr(distributed, 'rendezvous', lambda *where, **limits: iter([(store, 0, 1)]))
    monkeypatch.setattr(distributed.hang_detector, 'start', lambda *limits: found.update(detector=limits))
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda backend, **given: found.update(given))
    accelerator = Cpu()
    accelerator.first_iteration = 1800.
    accelerator.prepare_network = lambda master, limit: found.update(network=limit)
    for hang_timeout, limit in ((600., 1860.), (7200., 7260.)):
        distributed.World(0, 2).join(accelerator, 'tcp://10.0.0.1:1', hang_timeout)
        assert found['timeout'].total_seconds() == found['network'] == limit
        assert found['detector'] == (hang_timeout, 0, 2, accelerator)


@pytest.mark.slow
@pytest.mark.compat
def test_two_processes_equal_one_with_twice_the_batch(images, tmp_path):
    """The second of two windows is shorter. Moments are sums of gradients; weights follow AdamW's rounding."""
    flags = ['--data_path', images, '--epochs', 1, '--accum_iter', 3, '--lr', 1e-4, '--mixup', 0, '--cutmix', 0,
             '--reprob', 0, '--drop_path', 0, '--output_dir']
    succeeded(finetune(*flags, tmp_path / '1'))
    succeeded(two_processes(ROOT / 'main_finetune.py', *FINETUNE, *flags, tmp_path / '2', '--batch_size', 4))
    (one,), (two,) = (epochs_of(tmp_path / name) for name in '12')
    assert two['train_loss'] == pytest.approx(one['train_loss'], rel=1e-5)
    for moments in zip(*(moments_of(weights_of(tmp_path / name / 'checkpoint-0.pth')) for name in '12')):
        whole, parts = (each['exp_avg'] for each in moments)
        assert (whole - parts).norm() <= 1e-5 * whole.norm() + 1e-9
