"""Session of a run: device, processes, profiler and signals, set up once; output folder; head and end of the log."""
import json
import time
from argparse import Namespace
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List, Optional, Tuple, Union

import torch

from util import log
from util.checkpoints.checkpointer import Checkpointer, numbered
from util.data.loader import seed_generators
from util.devices import accelerator as device, host
from util.devices.precision import FullPrecision, choose_precision
from util.devices.profiler import Profiler
from util.distributed import hang_detector, world as distributed
from util.distributed.signals import SignalHandler
from util.errors import UserError
from util.log import logger
from util.reporting import output_dir
from util.reporting.report import environment
from util.reporting.run_logger import NullRunLogger, RunLogger


class Session:
    """Device, accelerator and world of this process, and the run's clock.

    Args:
        profiling_folder: of --prof, or None.
    """

    def __init__(self, accelerator: device.Cpu, world: distributed.World, profiling_folder: Optional[str] = None):
        self.accelerator, self.world = accelerator, world
        self.device = accelerator.use(world.local_rank)
        self.profiler = Profiler(accelerator, profiling_folder if world.is_main else None)
        self.cores = ''         # that the process is bound to
        self.signals = SimpleNamespace(requested='')      # signals have their default actions
        self.started = time.time()

    def place(self, model: torch.nn.Module) -> None:
        """Move `model` to the device and broadcast its weights from rank 0."""
        model.to(self.device)
        # DistributedDataParallel broadcasts them too, but only after a precision has made its master weights.
        self.world.broadcast_parameters(model)

    def wrap(self, model: torch.nn.Module, precision: FullPrecision) -> torch.nn.Module:
        """`model` in DistributedDataParallel if there is more than one process."""
        bucket_view = precision.supports_bucket_view and self.accelerator.supports_bucket_view
        return self.world.wrap_ddp(model, self.device, bucket_view)

    def all_reduce(self, *values: float) -> List[float]:
        """Collective: sums of host numbers over all processes, in fp32."""
        if self.world.size == 1:
            return list(map(float, values))
        return self.world.all_reduce(torch.tensor(values, dtype=torch.float32, device=self.device)).tolist()

    def check_same_start(self, found: bool, epoch: int, images: int) -> None:
        """Raise UserError if processes have `found` different checkpoints, e.g. because nodes do not share a disk."""
        places = self.world.all_gather(torch.tensor([float(found), epoch, images], device=self.device))
        if any(place != places[0] for place in places):
            raise UserError('--resume: processes start at different places, this one at image {} of epoch {}; all '
                            'nodes must see the same checkpoint, on a shared disk or as copies'.format(images, epoch))

    def seed(self, seed: int, epoch: int, iteration: int = 0) -> None:
        """Seed all generators for an iteration, differently on each process: a resumed run draws the same noise."""
        value = ((seed * 1000003 + epoch) * 1000003 + iteration) * 4099 + self.world.rank
        seed_generators(value % 2 ** 63)
        self.accelerator.seed(value % 2 ** 63)


@contextmanager
def start_session(args: Namespace) -> Iterator[Session]:
    """Select the device, bind cores and join the process group by the flags; UserError if that is not possible.

    The block handles stop signals and is watched for hangs.
    """
    with ExitStack() as stack:
        world = distributed.world_from_environment(args.world_size, args.local_rank, args.dist_on_itp, args.dist_url,
                                                   args.addr)
        log.set_up(world.is_main)
        signals = stack.enter_context(SignalHandler())
        accelerator = device.select(args.device)
        if args.deterministic:
            accelerator.make_deterministic()
        local_size = distributed.local_world_size()
        if args.num_workers is None:
            args.num_workers = host.default_workers(local_size)     # of all cores that the processes share
        cores = host.bind_cores(world.local_rank, local_size, accelerator.near_cores)
        session = Session(accelerator, world, args.output_dir if args.prof else None)
        session.signals, session.cores = signals, cores
        stack.callback(hang_detector.stop)
        world.join(session.accelerator, args.dist_url, args.hang_timeout)
        session.all_reduce(0)   # rank 0 holds the store of the rendezvous: it must not end before all have joined
        if output_dir.restarted() and not getattr(args, 'eval', False) and numbered(args.output_dir):
            args.resume, args.start_epoch = 'auto', None        # the launcher has restarted the run after a failure
        hang_detector.heartbeat('setting up')
        yield session
        # Not after a failure: while others wait in a collective operation this can block, so the process just ends.
        world.shutdown()


def enter_output_folder(args: Namespace, session: Session, checkpointer: Optional[Checkpointer] = None,
                        start: Tuple[int, int] = (0, 0),
                        begin: Optional[float] = None) -> Union[RunLogger, NullRunLogger]:
    """Collective: enter the output folder on the main process, which gets a RunLogger.

    Called last before training starts, so that a mistake found earlier leaves earlier results where they are; without a
    checkpointer (an evaluation) they stay. A training begins at `start`, (epoch, images of it), and fractional epoch
    `begin`. UserError if the folder cannot be written, or another run holds it.
    """
    hang_detector.heartbeat('opening the output folder')
    if not session.world.is_main:
        session.all_reduce(0)       # until the main process has moved what is there
        if session.world.local_rank == 0:
            output_dir.take_log()
        return NullRunLogger()
    new = checkpointer is not None and not output_dir.continues(args.output_dir, checkpointer.path)
    lock, asides = output_dir.enter(args.output_dir, new, args.log_dir)
    session.all_reduce(0)
    records = None
    if checkpointer is not None:
        if args.resume == 'auto' and not checkpointer.path:
            output_dir.report_no_checkpoint(args.output_dir)
        asides += checkpointer.set_newer_aside(start) if checkpointer.path else []
        records = checkpointer.records_before(start[0])
        if args.resume != 'auto' or not checkpointer.path:  # else the log continues: its lines are written again
            asides += output_dir.set_log_aside(args.output_dir, records)
    asides += output_dir.save_flags(args, session.world.size, evaluation=checkpointer is None)
    for aside in asides:
        logger.info('earlier results kept in %s', aside)
    return RunLogger(args.output_dir, args.log_dir, lock, records, begin)


def setup_precision(args: Namespace, session: Session) -> FullPrecision:
    """Choose the precision; log flags, versions, device, processes and precision."""
    precision = choose_precision(session.accelerator, args.amp, args.amp_backend, args.amp_dtype,
                                 getattr(args, 'loss_scale', 'dynamic'))
    hang_detector.heartbeat('building data and model')
    logger.info('flags: %s', json.dumps(vars(args), sort_keys=True))
    for fact in environment(args, session, precision):
        logger.info('%s: %s', *fact)
    return precision


def write_result(session: Session, run_logger: RunLogger, name: str, result: Dict[str, Any]) -> Dict[str, Any]:
    """Write NAME.json and print the Final result; returns it with duration, processes and device."""
    session.profiler.finish()
    result = {**result, 'duration_sec': round(time.time() - session.started, 1), 'processes': session.world.size,
              'device': session.accelerator.name}
    run_logger.write_result(name, result)
    return result
