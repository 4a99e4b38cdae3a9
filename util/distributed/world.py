"""Processes: who they are, how they meet, what they add up, and how they part."""
import gc
import json
import os
import re
import time
from contextlib import nullcontext
from datetime import timedelta
from urllib.parse import urlparse

import torch
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from util.compat import supported
from util.distributed import hang_detector
from util.errors import SystemFailure, UserError, report_once_per_node
from util.text import first_line

DEFAULT_PORT = 29500
HANG_TIMEOUT = 600.         # seconds
COLLECTIVE_LATER = 60.      # seconds after the hang timeout at which collectives give up: the hang detector comes first
# Seconds that a restart waits for the other nodes beyond the hang timeout: until their collective operations give up,
# their launchers have ended what is left, and PyTorch is imported.
RESTART_LATER = COLLECTIVE_LATER + 120.


class World:
    """This process among `size`: rank 0 to size - 1, local_rank 0 to (processes on this node) - 1."""

    def __init__(self, rank=0, size=1, local_rank=0):
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.is_main = rank == 0

    def join(self, accelerator, dist_url='env://', hang_timeout=HANG_TIMEOUT):
        """Meet the other processes. The device must be current already, as HCCL demands.

        Args:
            hang_timeout: seconds to wait for the others; the hang detector watches from then on.
        Raises:
            SystemFailure: not all have come.
        """
        if self.size == 1:
            hang_detector.start(hang_timeout)
            return
        limit, seconds = hang_timeout + COLLECTIVE_LATER, meeting_seconds(hang_timeout)
        accelerator.prepare_network(urlparse(dist_url).hostname or os.environ['MASTER_ADDR'], limit)
        try:
            # As if alone: process 0 would wait for all here, and could not say who is missing.
            self._store, _, _ = next(rendezvous(dist_url, self.rank, 1, timeout=timedelta(seconds=seconds)))
            self._store.add('arrived/{}'.format(self.rank), 1)
            missing, deadline = range(self.size), time.monotonic() + seconds
            while missing and time.monotonic() < deadline:
                time.sleep(.1)
                missing = [rank for rank in missing if self._store.add('arrived/{}'.format(rank), 0) == 0]
            if missing:
                report_once_per_node()
                raise SystemFailure('no sign of process {} of {} within {:.0f} s; start all of them, with the same '
                                    'master address and port; see --hang_timeout'.format(
                                        ', '.join(map(str, missing)), self.size, seconds))
            hang_detector.start(hang_timeout, self.rank, self.size)
            dist.init_process_group(accelerator.backend, store=dist.PrefixStore('group', self._store), rank=self.rank,
                                    world_size=self.size, timeout=timedelta(seconds=limit))
        except (RuntimeError, OSError) as error:        # PyTorch 1.11 raises TimeoutError
            address = dist_url.replace('env://', '{MASTER_ADDR}, port {MASTER_PORT}').format(**os.environ)
            raise SystemFailure('process {} of {} cannot meet the others at {} ({})'.format(
                self.rank, self.size, address, first_line(error))) from error

    def broadcast_parameters(self, model):
        """Give every process the weights of the first: each may have drawn its own."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)

    def wrap(self, model, device, may_move_gradients):
        """`model` in DistributedDataParallel where there is more than one process.

        Args:
            may_move_gradients: into the memory that they are exchanged in; fused optimizers would not find them there.
        """
        if self.size == 1:
            return model
        options = supported(DistributedDataParallel, gradient_as_bucket_view=may_move_gradients)
        ids = None if device.type == 'cpu' else [device.index]
        return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False, **options)

    def sum(self, tensor):
        """`tensor` added up over all processes (in place). fp32, since HCCL refuses float64."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor):
        """The values of a 1-D tensor on each process, as a list of lists of numbers by rank."""
        slots = tensor.new_zeros(self.size, len(tensor))
        slots[self.rank] = tensor
        return self.sum(slots).tolist()

    def all_gather_object(self, value, device):
        """A JSON value of each process, as a list by rank; goes as bytes in numbers, which every backend exchanges."""
        text = json.dumps(value).encode()
        longest = int(max(self.gather(torch.tensor([float(len(text))], device=device)))[0])
        rows = self.gather(torch.tensor(list(text.ljust(longest)), dtype=torch.float32, device=device))
        return [json.loads(bytes(map(int, row)).decode()) for row in rows]

    def shutdown(self):
        """Part from the other processes, when nothing uses the wrapped model any more."""
        hang_detector.stop()
        if self.size > 1:
            # A process group that lives on in an unreachable model would be torn down at interpreter exit, where its
            # threads can abort the process ("terminate called without an active exception").
            gc.collect()
            dist.destroy_process_group()
            self._store = None


def meeting_seconds(hang_timeout):
    """How long processes or nodes wait for each other: longer when started again, since others notice a death later."""
    return hang_timeout + (RESTART_LATER if 'MAE_RESTART' in os.environ else 0.)


def gradient_sync(model, wanted):
    """A context: in an accumulation window only the last backward exchanges gradients; the others keep them local."""
    return nullcontext() if wanted or not isinstance(model, DistributedDataParallel) else model.no_sync()


def world_from_environment(world_size=None, local_rank=-1, dist_on_itp=False, dist_url='env://', addr=None,
                           environ=os.environ):
    """Who this process is, by OpenMPI, torchrun, Slurm or the flags; also completes MASTER_ADDR and MASTER_PORT.

    Args:
        world_size, local_rank: the flags, used where the environment says nothing.
        environ: a mapping like os.environ; variables that are set in it stay as they are.
    Raises:
        UserError: the environment and the flags contradict each other.
    """
    if dist_on_itp:
        try:
            world = World(*(int(environ['OMPI_COMM_WORLD_' + name]) for name in ('RANK', 'SIZE', 'LOCAL_RANK')))
        except KeyError as error:
            raise UserError('--dist_on_itp: {} is not set in the environment'.format(error.args[0])) from error
    elif 'RANK' in environ and 'WORLD_SIZE' in environ:
        world = World(int(environ['RANK']), int(environ['WORLD_SIZE']),
                      int(environ.get('LOCAL_RANK', max(local_rank, 0))))
    elif 'SLURM_PROCID' in environ and int(environ.get('SLURM_NTASKS', 1)) > 1:
        world = World(*(int(environ['SLURM_' + name]) for name in ('PROCID', 'NTASKS', 'LOCALID')))
        nodes = environ.get('SLURM_STEP_NODELIST') or environ.get('SLURM_JOB_NODELIST', '127.0.0.1')
        environ.setdefault('MASTER_ADDR', first_slurm_host(nodes))
        # Every task must find the same port, and two jobs on a host different ones.
        environ.setdefault('MASTER_PORT', str(20000 + int(environ.get('SLURM_JOB_ID', 0)) % 20000))
    else:
        world = World(max(local_rank, 0), world_size or 1, max(local_rank, 0))

    if world_size not in (None, world.size):
        raise UserError('--world_size {}: the environment says {} processes; leave the flag out'
                        .format(world_size, world.size))
    if world.rank >= world.size:
        raise UserError('--local_rank {}: there are {} processes; give --world_size'.format(world.rank, world.size))
    if world.size > 1 and dist_url == 'env://':
        environ.setdefault('MASTER_ADDR', addr or '127.0.0.1')
        environ.setdefault('MASTER_PORT', str(DEFAULT_PORT))
    return world


def first_slurm_host(nodelist):
    """The first host of a Slurm node list: 'node[03-07,12],gpu1' -> 'node03'."""
    return ''.join(re.match(r'([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?', nodelist).groups(''))


def local_processes(environ=os.environ):
    """Processes on this node, as far as the environment tells; else 1."""
    for name in ('LOCAL_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_SIZE', 'SLURM_NTASKS_PER_NODE'):
        if environ.get(name, '').isdigit():
            return int(environ[name])
    return 1
