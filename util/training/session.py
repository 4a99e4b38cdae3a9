"""Where a run takes place: device, processes, output folder, profiler; built once, said once at the head of the log."""
import json
import time
from argparse import Namespace
from types import SimpleNamespace
from typing import Optional, Tuple, Union

import torch

from util import log
from util.checkpoints import checkpointer
from util.checkpoints.checkpointer import ResumeState
from util.data.loader import seed_generators
from util.devices import accelerator as device, host
from util.devices.compile import compile_blocks
from util.devices.host import default_workers, software
from util.devices.precision import choose_precision
from util.distributed import hang_detector, world as distributed
from util.distributed.signals import SignalHandler
from util.errors import UserError
from util.log import logger
from util.models.activation_checkpointing import checkpointed
from util.reporting import output_dir
from util.reporting.run_logger import NullRunLogger, RunLogger


class Session:
    """Device, accelerator and world of this process, and the clock of the whole run."""

    def __init__(self, accelerator, world, profiling_folder=None):
        self.accelerator, self.world = accelerator, world
        self.device = accelerator.use(world.local_rank)
        self.profiler = device.Profiler(accelerator, profiling_folder if world.is_main else None)
        self.cores = ''         # those that the process is bound to
        self.signals = SimpleNamespace(requested='')      # signals have their default actions
        self._begun = time.time()

    def place(self, model):
        """Move `model` to the device, with the first process's weights everywhere.

        DistributedDataParallel would share them too, but only after a precision has made its master weights.
        """
        model.to(self.device)
        self.world.broadcast_parameters(model)

    def speed_up(self, model, compiled, grad_checkpoint):
        """Do what --compile and --grad_checkpoint ask for.

        Raises:
            UserError: gradients would be wrong.
        """
        if grad_checkpoint:
            drops_paths = any(getattr(module, 'drop_prob', None) for module in model.modules())
            if drops_paths and not self.accelerator.checkpoint_preserves_rng:
                raise UserError('--grad_checkpoint: torch {} cannot draw dropped paths twice alike on {}; add '
                                '--drop_path 0'.format(torch.__version__, self.accelerator.type))
            model.run_block = checkpointed
        if compiled:
            compile_blocks(model, self.device)

    def wrap(self, model, precision):
        """`model` in DistributedDataParallel where there is more than one process."""
        may_move = precision.gradients_stay_in_model and self.accelerator.supports_bucket_view
        return self.world.wrap(model, self.device, may_move)

    def totals(self, *values):
        """Host numbers added up over all processes."""
        if self.world.size == 1:
            return list(map(float, values))
        return self.world.sum(torch.tensor(values, dtype=torch.float32, device=self.device)).tolist()

    def check_agreement(self, epoch, images):
        """Raise UserError where processes start at different places, as when nodes do not share a disk."""
        places = self.world.gather(torch.tensor([float(epoch), float(images)], device=self.device))
        if any(place != places[0] for place in places):
            raise UserError('--resume: the processes disagree on where to start, here after {} images of epoch {}; all '
                            'nodes must see the same checkpoint, on a shared disk or as copies'.format(images, epoch))

    def seed(self, seed, epoch, iteration=0):
        """Seed everything for an iteration, differently on each process: its noise is the same after a resume."""
        value = ((seed * 1000003 + epoch) * 1000003 + iteration) * 4099 + self.world.rank
        seed_generators(value % 2 ** 63)
        self.accelerator.seed(value % 2 ** 63)

    @property
    def elapsed(self):
        """Seconds since the start of the run."""
        return time.time() - self._begun


def start_session(args):
    """Choose the device and meet the other processes, as the flags say.

    Returns:
        Session.
    Raises:
        UserError: the device or the environment does not allow it.
    """
    world = distributed.world_from_environment(args.world_size, args.local_rank, args.dist_on_itp, args.dist_url,
                                               args.addr)
    log.set_up(world.is_main)
    signals = SignalHandler()
    session = Session(device.select(args.device), world, args.output_dir if args.prof else None)
    session.signals = signals
    world.join(session.accelerator, args.dist_url, args.hang_timeout)
    session.totals(0)       # the first process holds what the others meet in: it must not end before all have met
    if args.num_workers is None:
        args.num_workers = default_workers(distributed.local_processes())
    session.cores = host.bind(world.local_rank, distributed.local_processes())
    if output_dir.restarted() and not getattr(args, 'eval', False) and checkpointer.numbered(args.output_dir):
        args.resume, args.start_epoch = 'auto', None        # a restart by the launcher, after a fault
    hang_detector.progress('its preparations')
    return session


def open_run_logger(args: Namespace, session: Session, resumed: Optional[ResumeState] = None,
                    start: Tuple[int, int] = (0, 0), begin: Optional[float] = None) -> Union[RunLogger, NullRunLogger]:
    """Collective: enter the output folder on the main process, which gets a RunLogger.

    Called last before training starts, so that a mistake found earlier leaves earlier results where they are.
    Args:
        resumed: of a training; None for an evaluation, which moves no results.
        start, begin: (epoch, images of it) and fractional epoch that the training starts at.
    Raises:
        UserError: the folder cannot be written, or another run holds it.
    """
    hang_detector.progress('the opening of the output folder')
    if not session.world.is_main:
        session.totals(0)           # until the main process has moved what is there
        if session.world.local_rank == 0:
            output_dir.take_log()
        return NullRunLogger()
    new = resumed is not None and not output_dir.continues(args.output_dir, resumed.path)
    lock, asides = output_dir.enter(args.output_dir, new, args.log_dir, (args.data_path,))
    session.totals(0)
    records = None
    if resumed is not None:
        if args.resume == 'auto' and not resumed.path:
            output_dir.report_no_checkpoint(args.output_dir)
        asides += checkpointer.set_newer_aside(args.output_dir, start, resumed.path) if resumed.path else []
        records = resumed.records_before(start[0], args.output_dir)
        if args.resume != 'auto' or not resumed.path:       # else the course is the same: lines are written again
            asides += output_dir.set_log_aside(args.output_dir, records)
    asides += output_dir.save_flags(args, session.world.size, evaluation=resumed is None)
    for aside in asides:
        logger.info('earlier results kept in %s', aside)
    return RunLogger(args.output_dir, args.log_dir, lock, records, begin)


def setup_precision(args, session):
    """The precision that the flags ask for; says at the head of the log what the run uses, and why."""
    accelerator, world = session.accelerator, session.world
    precision = choose_precision(accelerator, args.amp, args.amp_backend, args.amp_dtype,
                                  getattr(args, 'loss_scale', 'dynamic'))
    hang_detector.progress('the preparation of data and model')
    logger.info('flags: %s', json.dumps(vars(args), sort_keys=True))
    logger.info('software: %s', ', '.join('{} {}'.format(*pair) for pair in software().items()))
    logger.info('device: %s (%s; %s)', accelerator.name, accelerator.type, accelerator.reason)
    logger.info('processes: %d%s, %d loader processes each%s', world.size,
                ' over ' + accelerator.backend if world.size > 1 else '', args.num_workers,
                ', cores {} of this one'.format(session.cores) if session.cores else '')
    logger.info('precision: %s', precision.name)
    return precision


def batch_and_lr(args, world):
    """(effective batch size, peak learning rate) of the flags; says where --lr is for another batch and stays.

    The rate is scaled linearly to the batch (arXiv:1706.02677); --blr is for 256 images.
    """
    effective_batch, lr_batch = args.batch_size * args.accum_iter * world.size, args.base_batch_size
    if args.lr is None:
        return effective_batch, args.blr * effective_batch / 256
    scaled = args.lr * effective_batch / (lr_batch or effective_batch)
    if args.auto_scale_lr:
        logger.info('lr scaled from %.3e for a batch of %d images', args.lr, lr_batch)
        return effective_batch, scaled
    if lr_batch not in (None, effective_batch):
        logger.warning('--lr %g is for a batch of %d images, the effective batch is %d: --auto_scale_lr would make it '
                       '%.3e', args.lr, lr_batch, effective_batch, scaled)
    return effective_batch, args.lr


def log_training_setup(args, world, dataset, model, val_set=None):
    """Log what is trained, on what, how fast, and warn of settings that would waste the run.

    Args:
        val_set: the validation images, where there are classes.
    Returns:
        the peak learning rate.
    """
    effective_batch, lr = batch_and_lr(args, world)
    logger.info('data: %d images', len(dataset))
    logger.info('model: %.2f M trained parameters',
                sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6)
    logger.info('effective batch size: %d, peak lr: %.3e', effective_batch, lr)
    if args.warmup_epochs >= args.epochs > 1:
        logger.info('warning: --warmup_epochs %g of --epochs %d: the learning rate never falls, and reaches %.0f%% of '
                    'its peak', args.warmup_epochs, args.epochs, 100 * args.epochs / args.warmup_epochs)
    if effective_batch > len(dataset):
        logger.info('warning: the effective batch of %d is more than the %d training images: an epoch is one step; '
                    'lower --accum_iter', effective_batch, len(dataset))
    if val_set is not None:
        warn_of_empty_classes(val_set)
    return lr


def warn_of_empty_classes(val_set):
    """Warn of classes without validation images."""
    present = set(map(int, val_set.labels))
    missing = [name for label, name in enumerate(val_set.classes) if label not in present]
    if missing:
        logger.info('warning: no validation images of %d of %d classes: %s%s', len(missing), len(val_set.classes),
                    ', '.join(missing[:5]), ', ...' if len(missing) > 5 else '')


def write_result(session, run_logger, name, result):
    """Write and print the Final result; returns all that it holds."""
    session.profiler.finish()
    result = {**result, 'duration_sec': round(session.elapsed, 1), 'processes': session.world.size,
              'device': session.accelerator.name}
    run_logger.finish(name, result)
    return result
