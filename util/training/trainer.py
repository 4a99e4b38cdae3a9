"""Trainer: iterates over the remaining epochs, decides when to checkpoint, stop or abort, and writes the results."""
import time
from argparse import Namespace
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch

from util.checkpoints.checkpointer import BEST, Checkpointer, name_after, name_within
from util.data.loader import Batches
from util.data.unreadable import UnreadableTracker
from util.devices.precision import FullPrecision
from util.errors import Preempted, SaveFailed, UserError
from util.log import logger, progress_bar
from util.reporting.report import Report
from util.training.ema import EMA
from util.training.epoch_meter import EpochMeter
from util.training.optimizer_step import OptimizerStep
from util.training.session import Session, enter_output_folder, write_result

# Processes check for save and stop requests together: about once a second, and after this many steps at the latest.
CHECK_SECONDS, CHECK_STEPS = 1., 50


class Trainer:
    """State of a training run.

    The output folder is entered after the first optimizer step: a start that fails, even for a batch that does not fit
    into memory, leaves earlier results where they are. It stays locked until the end of the `with` block.

    Args:
        model: as its precision made it, not in DistributedDataParallel; loaded, as optimizer_step is.
        loss_tag: name of the training loss in TensorBoard.
        report_part: ReconstructionSnapshots or ConfusionTracker.
        values: further plain values to keep in checkpoints, such as classes.
    Raises:
        UserError: the checkpoint does not fit the data.
    """

    def __init__(self, args: Namespace, session: Session, optimizer_step: OptimizerStep, model: torch.nn.Module,
                 loader: Batches, checkpointer: Checkpointer, loss_tag: str, report_part: Any, **values: Any):
        self.optimizer_step, self.values = optimizer_step, values
        self._args, self._session, self._model, self._loader = args, session, model, loader
        self._checkpointer, self._loss_tag, self._report_part = checkpointer, loss_tag, report_part
        self._epoch, self._images = checkpointer.start(args.start_epoch)
        self._meter_state = checkpointer.get('progress') if self._images else None
        if self._images > len(loader.dataset):
            raise UserError('--resume {}: was saved after {} images of an epoch, but --data_path has only {}; '
                            'add --start_epoch to begin an epoch'.format(checkpointer.path, self._images,
                                                                         len(loader.dataset)))
        checkpointer.report_changes(args, session.world.size)
        self._batch = args.batch_size * session.world.size      # images per iteration, all processes
        self._check_every, self._steps, self._since = 1, 0, time.monotonic()    # steps and time since the last check
        self._open_iterations = 0                               # of the current accumulation window

    def nothing_left(self) -> bool:
        """True, with a log line, if the resumed run is already complete."""
        if self._epoch < self._args.epochs:
            return False
        logger.info('all %d epochs of the checkpoint are done: nothing left to train; raise --epochs to train longer',
                    self._args.epochs)
        return True

    def __enter__(self):
        args, session, dataset = self._args, self._session, self._loader.dataset
        self._run_logger = self._report = None          # until the output folder is entered
        self.unreadable_images = UnreadableTracker.of_run(args.output_dir, args.max_bad_images, dataset, session.world)
        self._loader.unreadable_images = self.unreadable_images
        self.meter = EpochMeter(self._loader, session, self.optimizer_step, self._loss_tag, args.seed)
        session.signals.graceful = True
        iterations = len(dataset) // self._batch        # per epoch
        self._bar = progress_bar('training', 'iterations', args.epochs * iterations,
                                 self._epoch * iterations + self._images // self._batch)
        return self

    def __exit__(self, kind, error, trace):
        self._bar.close()
        self._checkpointer.wait()
        if self._report:
            self._report.close(error)
            self._run_logger.close()

    def _enter_folder(self):
        """Collective: enter the output folder; earlier results move away unless the run continues there."""
        begin = self._epoch + self._images / len(self._loader.dataset)
        self._run_logger = self.meter.run_logger = enter_output_folder(
            self._args, self._session, self._checkpointer, (self._epoch, self._images), begin)
        self._checkpointer.begin()
        self._report = Report(self._args, self._session, self.optimizer_step.precision, len(self._loader.dataset),
                              self._run_logger, self._report_part)

    def epochs(self) -> Iterator[int]:
        """Each remaining epoch, counted from 0; the caller trains it, then calls close_epoch."""
        sampler = self._loader.sampler
        while self._epoch < self._args.epochs:
            sampler.epoch, sampler.start = self._epoch, self._images
            done = self.optimizer_step.first_iteration = round(self._images / self._batch)
            self.meter.begin(self._epoch, done)
            if self._meter_state:
                self.meter.load_state_dict(self._meter_state)
                self._meter_state = None
            if not (len(self._loader) or self._report):     # resumed at the end of an epoch: no `check` will do it
                self._enter_folder()
            yield self._epoch

    def check(self, i: int) -> Tuple[bool, bool]:
        """Count iteration `i`; about once a second, and at the end of an epoch, agree whether to (`save`, `stop`).

        After the first optimizer step, enter the output folder.
        """
        self._bar.update()
        self._open_iterations += 1
        if not self.optimizer_step.due:
            return False, False
        if not self._report:
            self._enter_folder()
        self._images += self._open_iterations * self._batch
        self._steps, self._open_iterations = self._steps + 1, 0
        single = self._session.world.size == 1          # no need to wait for the others
        if (self._steps >= self._check_every or i + 1 == self.meter.iterations
                or single and (self._session.signals.requested or self._checkpointer.due)):
            return self._check()
        return False, False

    def _check(self):
        """Collective: (save, stop): whether a process has a checkpoint due or a stop signal; `stop` itself saves.

        Raises:
            UserError: too many consecutive steps were skipped, or too many images are unreadable.
        """
        session, non_finite_steps = self._session, self.optimizer_step.non_finite_steps
        seconds = time.monotonic() - self._since
        stop, save, abort, unreadable, seconds = session.all_reduce(
            bool(session.signals.requested), self._checkpointer.due, non_finite_steps.limit_reached,
            len(self.unreadable_images.pending), seconds)
        per_step = seconds / session.world.size / max(self._steps, 1)
        self._check_every = int(min(max(1., CHECK_SECONDS / max(per_step, 1e-9)), CHECK_STEPS))
        self._steps, self._since = 0, time.monotonic()
        if unreadable:
            self.unreadable_images.sync(session.world, session.device)
        if abort:
            non_finite_steps.abort(session.world, self.optimizer_step.precision.loss_scale, self._files_of)
        return bool(save and not stop), bool(stop)

    def stop_if_requested(self) -> None:
        """Collective, outside of the training loop: check, and `stop` if a process was asked to."""
        _, stop = self._check()
        if stop:
            self.stop()

    def _files_of(self, rank, epoch, iteration):
        """Names of the images in an iteration of a process."""
        sampler, size = self._loader.sampler, self._args.batch_size
        done, start = (self.meter.done, sampler.start) if epoch == sampler.epoch else (0, 0)
        keys = sampler.samples(rank, epoch, start)[(iteration - done) * size:][:size]
        return [self._loader.dataset.name_of(index) for index, _ in keys]

    def state_dict(self) -> Dict[str, Any]:
        """Contents of a checkpoint, in tensors and plain types; util.checkpoints.schema lists the keys."""
        step = self.optimizer_step
        return {**model_state(self._model, step.optimizer, step.precision, step.ema),
                'epoch': self._epoch - 1, 'images': self._images,
                'progress': self.meter.state_dict() if self._images else None,
                'args': dict(vars(self._args)), 'processes': self._session.world.size,
                **step.non_finite_steps.state_dict(), 'log': list(self._run_logger.records), **self.values}

    def save(self, names: Optional[List[str]] = None) -> None:
        """Collective: copy the state and write it in the background, by default as a checkpoint within the epoch."""
        self._checkpointer.save(self.state_dict(), names or [name_within(self._epoch, self._images)])

    def stop(self) -> None:
        """Collective: save, wait until the checkpoint is on disk, and end the run.

        Raises:
            Preempted: always; or SaveFailed.
        """
        self.save()
        self._wait_until_saved()
        raise Preempted('stopped by {} in epoch {} after {} of {} iterations; {} is saved, resume with --resume auto'
                        .format(self._session.signals.requested or 'a signal to another process', self._epoch,
                                self._images // self._batch, self.meter.iterations,
                                name_within(self._epoch, self._images))
                        if self._session.world.is_main else '')

    def _wait_until_saved(self):
        """Collective: wait until the last checkpoint is on disk; raises SaveFailed if it could not be written."""
        if self._session.all_reduce(not self._checkpointer.wait())[0]:
            raise SaveFailed('the last checkpoint could not be saved' if self._session.world.is_main else '')

    def close_epoch(self, stats: Dict[str, Any], tests: Dict[str, float], result: Dict[str, Any],
                    improved: bool = False) -> None:
        """Log an epoch and save if due; after the last epoch, write the Final result.

        Args:
            stats: training metrics for log.txt; tests: evaluation metrics for log.txt and TensorBoard.
            result: entries of the Final result, besides the loss; improved: also save as checkpoint-best.pth.
        Raises:
            SaveFailed: the last checkpoint could not be written.
        """
        epoch, step = self._epoch, self.optimizer_step
        trained = sum(p.numel() for p in step.model.parameters() if p.requires_grad)
        self._run_logger.log_epoch({**stats, **tests, 'n_parameters': trained, 'epoch': epoch,
                                    'device': self._session.accelerator.name, 'precision': step.precision.name})
        self._run_logger.log_scalars(epoch + 1, {'perf/' + name: value for name, value in tests.items()})
        self._report.on_epoch_end(epoch)
        self._epoch, self._images = epoch + 1, 0
        last = self._epoch == self._args.epochs
        names = [name_after(epoch)] * (last or self._epoch % self._args.save_every == 0) + [BEST] * improved
        if names:
            self.save(names)
        if last:
            self._report.result = write_result(self._session, self._run_logger, 'summary', {
                'task': 'Training', 'images_per_sec': self.meter.fps, 'loss': stats['train_loss'], **result,
                'epochs': self._args.epochs})
            self._wait_until_saved()


def model_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer, precision: FullPrecision,
                ema: Optional[EMA] = None) -> Dict[str, Any]:
    """Part of a checkpoint: weights in fp32, EMA weights, optimizer and loss scale; `model` is not in DDP."""
    weights = precision.model_state(model, optimizer)
    state = {'model': weights, 'optimizer': optimizer.state_dict(), 'scaler': precision.state_dict()}
    if ema:
        averages = ema.state_dict()
        state.update(averages, model_ema={**weights, **averages['model_ema']})
    return state
