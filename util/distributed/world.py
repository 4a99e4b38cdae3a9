"""Distributed setup: ranks, rendezvous, process group, collectives, DistributedDataParallel."""
import gc
import json
import os
import re
import time
from datetime import timedelta
from typing import Any, List, Mapping, MutableMapping, Optional
from urllib.parse import urlparse

import torch
from torch import distributed as dist, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from util.compat import supported
from util.devices.accelerator import Cpu
from util.distributed import hang_detector
from util.errors import SystemFailure, UserError, report_once_per_node
from util.log import logger
from util.text import first_line

DEFAULT_PORT = 29500
HANG_TIMEOUT = 600.         # seconds
NOTICE = 10.                # seconds of waiting for other processes until a line names them
COLLECTIVE_MARGIN = 60.     # seconds from the hang detector's limit to that of collectives: it reports first


class World:
    """This process among `size`: rank 0 to size - 1, local_rank 0 to (processes on this node) - 1."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0):
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.is_main = rank == 0
        self.start_hint = 'start all processes, with the same master address and port'

    def join(self, accelerator: Cpu, dist_url: str = 'env://', hang_timeout: float = HANG_TIMEOUT) -> None:
        """Create the process group and start the hang detector. HCCL requires the current device to be set before.

        Args:
            hang_timeout: seconds, of the hang detector and the rendezvous.
        Raises:
            SystemFailure: not all processes connect in time.
        """
        if self.size == 1:
            hang_detector.start(hang_timeout, self.rank, self.size, accelerator)
            return
        # The first iteration of another process may take longer, where operators are compiled.
        limit = max(hang_timeout, accelerator.first_iteration) + COLLECTIVE_MARGIN
        seconds = limit + 120. if 'MAE_RESTART' in os.environ else hang_timeout     # others notice a failure late
        accelerator.prepare_network(urlparse(dist_url).hostname or os.environ['MASTER_ADDR'], limit)
        try:
            # With world size 1: otherwise rank 0 would block here and could not report which ranks are missing.
            self._store, _, _ = next(rendezvous(dist_url, self.rank, 1, timeout=timedelta(seconds=seconds)))
            self._store.add('arrived/{}'.format(self.rank), 1)
            if self._missing(min(NOTICE, seconds)) and self.local_rank == 0:
                logger.warning('waiting for rank %s of %d; %s', self._missing(0.), self.size, self.start_hint)
            missing = self._missing(seconds - NOTICE)
            if missing:
                report_once_per_node()
                raise SystemFailure('no connection from rank {} of {} within {:.0f} s; {}; see --hang_timeout'.format(
                    missing, self.size, seconds, self.start_hint))
            hang_detector.start(hang_timeout, self.rank, self.size, accelerator)
            dist.init_process_group(accelerator.backend, store=dist.PrefixStore('group', self._store), rank=self.rank,
                                    world_size=self.size, timeout=timedelta(seconds=limit))
        except (RuntimeError, OSError) as error:        # PyTorch 1.11 raises TimeoutError
            report_once_per_node(delay_first=True)
            address = urlparse(dist_url).netloc or '{MASTER_ADDR}, port {MASTER_PORT}'.format(**os.environ)
            raise SystemFailure('rank {} of {} cannot connect to the others at {} ({})'.format(
                self.rank, self.size, address, first_line(error))) from error

    def _missing(self, seconds):
        """'1, 2': the ranks that have not arrived after `seconds`, or ''."""
        missing, deadline = range(self.size), time.monotonic() + seconds
        while True:
            missing = [rank for rank in missing if self._store.add('arrived/{}'.format(rank), 0) == 0]
            if not missing or time.monotonic() >= deadline:
                return ', '.join(map(str, missing))
            time.sleep(.1)

    def broadcast_parameters(self, model: nn.Module) -> None:
        """Copy the weights of rank 0 to all processes, whose random initialization may differ."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)

    def wrap_ddp(self, model: nn.Module, device: torch.device, bucket_view: bool) -> nn.Module:
        """`model` in DistributedDataParallel if there is more than one process.

        Args:
            bucket_view: gradients may become views of the all-reduce buckets; some fused optimizers do not support it.
        """
        if self.size == 1:
            return model
        options = supported(DistributedDataParallel, gradient_as_bucket_view=bucket_view)
        ids = None if device.type == 'cpu' else [device.index]
        return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False, **options)

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of an fp32 tensor over all processes, in place (HCCL does not support float64)."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_gather(self, tensor: torch.Tensor) -> List[List[float]]:
        """The values of a 1-D fp32 tensor of equal length on each process, by rank."""
        slots = tensor.new_zeros(self.size, len(tensor))
        slots[self.rank] = tensor
        return self.all_reduce(slots).tolist()

    def all_gather_object(self, value: Any, device: torch.device) -> List[Any]:
        """A JSON value of each process, by rank; sent as numbers, one a byte, which every backend supports."""
        text = json.dumps(value).encode()
        longest = int(max(self.all_gather(torch.tensor([float(len(text))], device=device)))[0])
        rows = self.all_gather(torch.tensor(list(text.ljust(longest)), dtype=torch.float32, device=device))
        return [json.loads(bytes(map(int, row)).decode()) for row in rows]

    def shutdown(self) -> None:
        """Destroy the process group, after the last use of the wrapped model."""
        if self.size > 1:
            # A process group kept alive by an unreachable model would be destroyed at interpreter exit, where its
            # threads can abort the process ("terminate called without an active exception").
            gc.collect()
            dist.destroy_process_group()
            self._store = None


def world_from_environment(world_size: Optional[int] = None, local_rank: int = -1, dist_on_itp: bool = False,
                           dist_url: str = 'env://', addr: Optional[str] = None,
                           environ: MutableMapping[str, str] = os.environ) -> World:
    """Ranks from OpenMPI, torchrun, Slurm or the flags; adds MASTER_ADDR and MASTER_PORT to `environ` if missing.

    The flags `world_size` and `local_rank` count if the environment sets no ranks. UserError for what is not a rank,
    size or port, and for contradictions.
    """
    if dist_on_itp:
        names = ('OMPI_COMM_WORLD_' + name for name in ('RANK', 'SIZE', 'LOCAL_RANK'))
        world = _world(environ, *names)
    elif 'RANK' in environ or 'WORLD_SIZE' in environ:
        local = {**environ, 'LOCAL_RANK': environ.get('LOCAL_RANK', str(max(local_rank, 0)))}
        world = _world(local, 'RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE')
    elif 'SLURM_PROCID' in environ and environ.get('SLURM_NTASKS', '1') != '1':
        world = _world(environ, *('SLURM_' + name for name in ('PROCID', 'NTASKS', 'LOCALID')))
        world.start_hint = ('this Slurm job has {} tasks: start the script with srun, which starts one process for each'
                            .format(world.size))
        nodes = environ.get('SLURM_STEP_NODELIST') or environ.get('SLURM_JOB_NODELIST', '127.0.0.1')
        environ.setdefault('MASTER_ADDR', first_slurm_host(nodes))
        # The same port for all tasks of a job, different ones for two jobs on a host.
        job = int(environ['SLURM_JOB_ID']) if environ.get('SLURM_JOB_ID', '').isdigit() else 0
        environ.setdefault('MASTER_PORT', str(20000 + job % 20000))
    else:
        world = World(max(local_rank, 0), world_size or 1, max(local_rank, 0))

    if world_size not in (None, world.size):
        raise UserError('--world_size {}: the environment sets {} processes; omit the flag'
                        .format(world_size, world.size))
    if world.rank >= world.size:
        raise UserError('--local_rank {}: there are {} processes; pass --world_size'.format(world.rank, world.size))
    if world.size > 1 and dist_url == 'env://':
        environ['MASTER_ADDR'] = environ.get('MASTER_ADDR') or addr or '127.0.0.1'
        environ.setdefault('MASTER_PORT', str(DEFAULT_PORT))
        _number(environ, 'MASTER_PORT', 1, 2 ** 16 - 1)
    return world


def _world(environ, rank, size, local_rank, local_size=''):
    """World by the environment variables of these names."""
    count = _number(environ, size, 1, 2 ** 16)
    local_count = _number(environ, local_size, 1, count) if local_size in environ else count
    return World(_number(environ, rank, 0, count - 1), count, _number(environ, local_rank, 0, local_count - 1))


def _number(environ, name, low, high):
    """An integer of the environment, from `low` to `high`."""
    value = environ.get(name, 'unset')
    if not (re.match('[0-9]{1,9}$', value) and low <= int(value) <= high):
        raise UserError('{}={} in the environment: not a number from {} to {}'.format(name, value, low, high))
    return int(value)


def first_slurm_host(nodelist: str) -> str:
    """The first host of a Slurm node list: 'node[03-07,12],gpu1' -> 'node03'."""
    return ''.join(re.match(r'([^,\[]*)(?:\[([^\],-]+)[^\]]*\]([^,]*))?', nodelist).groups(''))


def local_world_size(environ: Mapping[str, str] = os.environ) -> int:
    """Number of processes on this node according to the environment; 1 if not set."""
    for name in ('LOCAL_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_SIZE', 'SLURM_NTASKS_PER_NODE'):
        if re.match('[1-9][0-9]*$', environ.get(name, '')):
            return int(environ[name])
    return 1
