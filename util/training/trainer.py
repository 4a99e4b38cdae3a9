"""The trainer: runs the epochs that are left, decides when to checkpoint, stop or abort, and writes the results."""
import time

from util.checkpoints import checkpointer
from util.data.unreadable import track_unreadable
from util.errors import Preempted, SaveFailed, UserError
from util.log import logger, progress_bar
from util.reporting.report import Report
from util.training.epoch_meter import EpochMeter
from util.training.session import open_run_logger, write_result

AGREE_SECONDS, AGREE_STEPS = 1., 50     # processes agree about once a second, and after so many steps at the latest


class Trainer:
    """State of a training run; its `with` block holds the output folder.

    In an epoch, `meter` and `optimizer_step` belong to it, and `save_due` and `stop_due` are what agree_when_due found.
    Args:
        optimizer_step: OptimizerStep.
        model: as its precision made it, not in DistributedDataParallel.
        loader: of util.data.loader.training_loader.
        resume: ResumeState, restored already.
        loss_tag: TensorBoard's name of the training loss.
        report_part: images for the report: ReconstructionSnapshots or ConfusionTracker.
        values: further plain values that checkpoints keep, such as classes.
    Raises:
        UserError: the checkpoint does not fit the data, or processes do not have the same one.
    """

    def __init__(self, args, session, optimizer_step, model, loader, resume, loss_tag, report_part, **values):
        self.optimizer_step, self.values = optimizer_step, values
        self._args, self._session, self._model, self._loader, self._resume = args, session, model, loader, resume
        self._loss_tag, self._report_part = loss_tag, report_part
        self._epoch, self._images, self._meter_state = resume.start(args.start_epoch)
        if self._images > len(loader.dataset):
            raise UserError('--resume {}: it was saved after {} images of an epoch, and --data_path has {} in all; '
                            'add --start_epoch to begin an epoch'.format(resume.path, self._images,
                                                                         len(loader.dataset)))
        session.check_agreement(self._epoch, self._images)
        self._first_epoch = self._epoch
        self._batch = args.batch_size * session.world.size              # images of an iteration, all processes
        self._agree_every, self._steps, self._since = 1, 0, time.monotonic()    # steps, and when, since they agreed
        self._pending = 0                               # iterations of the accumulation window that is open
        self.save_due = self.stop_due = False
        resume.report_changes(args, session.world.size)

    def nothing_left(self):
        """True, with a log line, if a resumed run is already complete."""
        complete = self._epoch >= self._args.epochs
        if complete:
            logger.info('the checkpoint has all %d epochs: nothing left to train; raise --epochs to train longer',
                        self._args.epochs)
        return complete

    def __enter__(self):
        args, session, dataset = self._args, self._session, self._loader.dataset
        begin = self._epoch + self._images / len(dataset)
        self._run_logger = open_run_logger(args, session, self._resume, (self._epoch, self._images), begin)
        self._resume.release()
        self._report = Report(args, session, self.optimizer_step.precision, len(dataset), self._run_logger,
                              self._report_part)
        self._saver = checkpointer.Saver(args.output_dir if session.world.is_main else None, args.save_every_minutes,
                                         args.keep_last)
        self.unreadable_images = track_unreadable(args.output_dir, args.max_bad_images, dataset, session)
        self._loader.unreadable_images = self.unreadable_images
        self.meter = EpochMeter(self._loader, session, self.optimizer_step, self._run_logger, self._loss_tag, args.seed)
        session.signals.graceful = True
        iterations = len(dataset) // self._batch        # of an epoch
        self._bar = progress_bar('training', 'iterations', args.epochs * iterations,
                                 self._epoch * iterations + self._images // self._batch)
        return self

    def __exit__(self, kind, error, trace):
        self._bar.close()
        self._saver.wait()
        self._report.close(error)
        self._run_logger.close()

    def epochs(self):
        """Number of each epoch that is left, counted from 0; the caller trains it, then calls close_epoch."""
        sampler = self._loader.sampler
        while self._epoch < self._args.epochs:
            sampler.epoch, sampler.start = self._epoch, self._images
            done = self.optimizer_step.first = round(self._images / self._batch)
            if self._epoch == self._first_epoch:
                self._begun_at = done, self._images
            self.meter.begin(self._epoch, done, self._meter_state)
            self._meter_state = None
            yield self._epoch

    def agree_when_due(self, i):
        """Count iteration `i`. About once a second, and at the end of an epoch, processes agree: see `agree`."""
        self._bar.update()
        self._pending += 1
        self.save_due = self.stop_due = False
        if not self.optimizer_step.due:
            return
        self._images += self._pending * self._batch
        self._steps, self._pending = self._steps + 1, 0
        alone = self._session.world.size == 1           # and need not wait for the others
        if (self._steps >= self._agree_every or i + 1 == self.meter.iterations
                or alone and (self._session.signals.requested or self._saver.due)):
            self.agree()

    def agree(self):
        """Collective: set `save_due` and `stop_due` if any process is due or was asked to stop; abort if all must.

        Raises:
            UserError: too many steps in a row were skipped, or too many images cannot be read.
        """
        session, non_finite_steps = self._session, self.optimizer_step.non_finite_steps
        seconds = time.monotonic() - self._since
        stop, due, over, unread, seconds = session.totals(
            bool(session.signals.requested), self._saver.due, non_finite_steps.limit_reached,
            self.unreadable_images.pending, seconds)
        per_step = seconds / session.world.size / max(self._steps, 1)
        self._agree_every = int(min(max(1., AGREE_SECONDS / max(per_step, 1e-9)), AGREE_STEPS))
        self._steps, self._since = 0, time.monotonic()
        if unread:
            self.unreadable_images.share(session.world, session.device)
        if over:
            non_finite_steps.abort(self._args.output_dir, session.world, self.optimizer_step.precision.loss_scale,
                                   self._files_of)
        self.stop_due = bool(stop)
        self.save_due = bool(due) and not self.stop_due

    def stop_if_asked(self):
        """Collective, outside of the training loop: agree, and stop if a process was asked to; see `stop`."""
        self.agree()
        if self.stop_due:
            self.stop()

    def _files_of(self, rank, epoch, iteration):
        """Names of the images that a process had in an iteration."""
        dataset, size = self._loader.dataset, self._args.batch_size
        done, start = self._begun_at if epoch == self._first_epoch else (0, 0)
        keys = self._loader.sampler.of(rank, epoch, start)[(iteration - done) * size:][:size]
        return [dataset.name_of(index) for index, _ in keys]

    def state_dict(self):
        """All that a run needs to resume here, in tensors and plain types; util.checkpoints.schema lists the keys."""
        step = self.optimizer_step
        return {**model_state(self._model, step.optimizer, step.precision, step.ema),
                'epoch': self._epoch - 1, 'images': self._images,
                'progress': self.meter.state_dict() if self._images else None,
                'args': dict(vars(self._args)), 'processes': self._session.world.size,
                'bad_steps_in_row': step.non_finite_steps.in_row, 'log': list(self._run_logger.records), **self.values}

    def save(self, names=None):
        """Collective: copy the state and write it in the background, by default as a checkpoint within the epoch."""
        self._saver.save(self.state_dict(), names or [checkpointer.name_within(self._epoch, self._images)])

    def stop(self):
        """Collective: save, wait until the checkpoint is on the disk, and end the run.

        Raises:
            Preempted: always; or SaveFailed.
        """
        self.save()
        self._wait_until_saved()
        raise Preempted('stopped by {} in epoch {} after {} of {} iterations; {} is saved, resume with --resume auto'
                        .format(self._session.signals.requested or 'a signal to another process', self._epoch,
                                self._images // self._batch, self.meter.iterations,
                                checkpointer.name_within(self._epoch, self._images))
                        if self._session.world.is_main else '')

    def _wait_until_saved(self):
        """Collective: wait until the last checkpoint is on the disk; raises SaveFailed if it is not."""
        if self._session.totals(not self._saver.wait())[0]:
            raise SaveFailed('the last checkpoint could not be saved' if self._session.world.is_main else '')

    def close_epoch(self, stats, tests, result, improved=False):
        """Log an epoch and save if due; after the last epoch, write the Final result.

        Args:
            stats, tests: of training and of evaluation, for log.txt; the latter for TensorBoard too.
            result: what the Final result says, beside the loss.
            improved: save it as the best too.
        Raises:
            SaveFailed: the last checkpoint is not on the disk.
        """
        epoch, step = self._epoch, self.optimizer_step
        scalars = {'perf/' + name: value for name, value in tests.items()}
        trained = sum(p.numel() for p in step.model.parameters() if p.requires_grad)
        self._run_logger.epoch({**stats, **tests, 'n_parameters': trained, 'epoch': epoch,
                                'device': self._session.accelerator.name, 'precision': step.precision.name})
        self._run_logger.scalars(epoch + 1, scalars)
        if epoch == self._first_epoch:
            self._run_logger.hyperparameters(vars(self._args), [self._loss_tag, *scalars])
        self._report.epoch(epoch)
        self._epoch, self._images = epoch + 1, 0
        last = self._epoch == self._args.epochs
        due = last or self._epoch % self._args.save_every == 0
        names = [checkpointer.name_after(epoch)] * due + [checkpointer.BEST] * improved
        if names:
            self.save(names)
        if last:
            self._report.finish(write_result(self._session, self._run_logger, 'summary', {
                'task': 'Training', 'images_per_sec': self.meter.fps, 'loss': stats['train_loss'], **result,
                'epochs': self._args.epochs}))
            self._wait_until_saved()


def model_state(model, optimizer, precision, ema=None):
    """Part of a checkpoint: weights in fp32, EMA weights, optimizer and loss scaler.

    Args:
        model: not in DistributedDataParallel.
    """
    weights = precision.model_state(model, optimizer)
    return {'model': weights, **(ema.state_dict(weights) if ema else {}), 'optimizer': optimizer.state_dict(),
            'scaler': precision.state_dict()}
