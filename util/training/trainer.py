"""A training from where it stands to its last epoch: it saves on the way, stops when asked, gives up where it must."""
import time

from util.checkpoints import checkpointer
from util.data import unreadable
from util.errors import Stopped, Unsaved, UserError
from util.log import logger, progress_bar
from util.reporting import report
from util.training import session as runtimes
from util.training.epoch_meter import Progress

AGREE_SECONDS, AGREE_STEPS = 1., 50     # processes agree about once a second, and after so many steps at the latest


class Course:
    """Its `with` block holds the output folder.

    Args:
        updates: WeightUpdates.
        model: as its precision made it, not in DistributedDataParallel.
        loader: of util.data.loader.training_loader.
        resumed: Resumed, restored already.
        loss_tag: TensorBoard's name of the training loss.
        exhibit: pictures for the report: Reconstructions or Mistakes.
        values: further plain values that checkpoints keep, such as classes.
    """

    def __init__(self, args, runtime, updates, model, loader, resumed, loss_tag, exhibit, **values):
        self._args, self._runtime, self._updates, self._model, self._loader = args, runtime, updates, model, loader
        self._loss_tag, self.values, self._exhibit = loss_tag, values, exhibit
        self._epoch, self._images, self._progress_state = resumed.start(args.start_epoch)
        if self._images > len(loader.dataset):
            raise UserError('--resume {}: it was saved after {} images of an epoch, and --data_path has {} in all; '
                            'add --start_epoch to begin an epoch'.format(resumed.path, self._images,
                                                                         len(loader.dataset)))
        runtime.check_agreement(self._epoch, self._images)
        self._first_epoch, self._resumed = self._epoch, resumed
        self._every, self._steps, self._since = 1, 0, time.monotonic()
        self._pending = 0                               # iterations of the window that is open
        resumed.report_changes(args, runtime.world.size)

    def nothing_left(self):
        """True, with a line, where a resumed run is already complete."""
        complete = self._epoch >= self._args.epochs
        if complete:
            logger.info('the checkpoint has all %d epochs: nothing left to train; raise --epochs to go on',
                        self._args.epochs)
        return complete

    def __enter__(self):
        args = self._args
        begin = self._epoch + self._images / len(self._loader.dataset)
        self._logbook = runtimes.open_logbook(args, self._runtime, self._resumed, (self._epoch, self._images), begin)
        self._resumed.forget()
        self._report = report.Report(args, self._runtime, self._updates.precision, len(self._loader.dataset),
                                     self._logbook, self._exhibit)
        self._saver = checkpointer.Saver(args.output_dir if self._runtime.world.is_main else None,
                                       args.save_every_minutes, args.keep_last)
        self.bad_images = unreadable.ledger(args.output_dir, args.max_bad_images, self._loader.dataset, self._runtime)
        self._loader.bad_images = self.bad_images
        self._progress = Progress(self._loader, self._runtime, self._updates, self._logbook, self._loss_tag, args.seed,
                                  self._after)
        self._runtime.stops.patient = True
        images = args.batch_size * self._runtime.world.size         # of an iteration
        iterations = len(self._loader.dataset) // images            # of an epoch
        self._bar = progress_bar('training', 'iterations', args.epochs * iterations,
                                 self._epoch * iterations + self._images // images)
        return self

    def __exit__(self, kind, error, trace):
        self._bar.close()
        self._saver.wait()
        self._report.close(error)
        self._logbook.close()

    def epochs(self):
        """Progress of each epoch that is left; the caller trains it, then calls close_epoch."""
        sampler, world = self._loader.sampler, self._runtime.world
        while self._epoch < self._args.epochs:
            sampler.epoch, sampler.start = self._epoch, self._images
            done = self._updates.first = round(self._images / (self._args.batch_size * world.size))
            if self._epoch == self._first_epoch:
                self._begun_at = done, self._images
            self._progress.begin(self._epoch, done, self._progress_state)
            self._progress_state = None
            yield self._progress

    def _after(self, iteration):
        self._bar.update()
        self._pending += 1
        if not self._updates.complete:
            return
        self._images += self._pending * self._args.batch_size * self._runtime.world.size
        self._steps, self._pending = self._steps + 1, 0
        alone = self._runtime.world.size == 1           # and need not wait for a moment that all have agreed on
        if (self._steps >= self._every or iteration + 1 == self._progress.iterations
                or alone and (self._runtime.stops.requested or self._saver.due)):
            self.agree()

    def agree(self):
        """Meet the other processes: save where it is due, stop where one was asked to, give up where all must.

        Raises:
            Stopped, Unsaved: a signal has asked to stop, and the state is saved, or could not be.
            UserError: too many steps in a row were skipped, or too many images cannot be read.
        """
        runtime, bad_steps = self._runtime, self._updates.bad_steps
        seconds = time.monotonic() - self._since
        stop, due, over, unread, seconds = runtime.totals(bool(runtime.stops.requested), self._saver.due,
                                                          bad_steps.too_many, self.bad_images.pending, seconds)
        per_step = seconds / runtime.world.size / max(self._steps, 1)
        self._every = int(min(max(1., AGREE_SECONDS / max(per_step, 1e-9)), AGREE_STEPS))
        self._steps, self._since = 0, time.monotonic()
        if unread:
            self.bad_images.share(runtime.world, runtime.device)
        if over:
            bad_steps.give_up(self._args.output_dir, runtime.world, self._updates.precision.scale, self._files_of)
        if stop:
            self._stop()
        elif due:
            self._save([checkpointer.name_within(self._epoch, self._images)])

    def _files_of(self, rank, epoch, iteration):
        """Names of the images that a process had in an iteration."""
        dataset, size = self._loader.dataset, self._args.batch_size
        done, start = self._begun_at if epoch == self._first_epoch else (0, 0)
        keys = self._loader.sampler.of(rank, epoch, start)[(iteration - done) * size:][:size]
        return [dataset.name_of(index) for index, _ in keys]

    def _save(self, names):
        state = checkpointer.training_state(
            self._model, self._updates.optimizer, self._updates.precision, self._epoch - 1, self._args,
            self._updates.average, images=self._images, progress=self._progress.state() if self._images else None,
            processes=self._runtime.world.size, bad_steps_in_row=self._updates.bad_steps.in_row,
            log=list(self._logbook.records), **self.values)
        self._saver.save(state, names)

    def _stop(self):
        world, name = self._runtime.world, checkpointer.name_within(self._epoch, self._images)
        self._save([name])
        self._end_saved()
        done = self._images // (self._args.batch_size * world.size)
        raise Stopped('stopped by {} in epoch {} after {} of {} iterations; {} is saved, go on with --resume auto'
                      .format(self._runtime.stops.requested or 'a signal to another process', self._epoch, done,
                              self._progress.iterations, name) if world.is_main else '')

    def _end_saved(self):
        """Wait until the last checkpoint is on the disk, on all processes; raises Unsaved where it is not."""
        if self._runtime.totals(not self._saver.wait())[0]:
            raise Unsaved('the last checkpoint could not be saved' if self._runtime.world.is_main else '')

    def close_epoch(self, stats, tests, result, improved=False):
        """Log an epoch, and save where it is due; after the last, write the Final result.

        Args:
            stats, tests: of training and of evaluation, for log.txt; the latter for TensorBoard too.
            result: what the Final result says, beside the loss.
            improved: keep it as the best too.
        Raises:
            Unsaved: the last checkpoint is not on the disk.
        """
        epoch, scalars = self._epoch, {'perf/' + name: value for name, value in tests.items()}
        trained = sum(p.numel() for p in self._updates.model.parameters() if p.requires_grad)
        self._logbook.epoch({**stats, **tests, 'n_parameters': trained, 'epoch': epoch,
                             'device': self._runtime.accelerator.name, 'precision': self._updates.precision.name})
        self._logbook.scalars(epoch + 1, scalars)
        if epoch == self._first_epoch:
            self._logbook.hyperparameters(vars(self._args), [self._loss_tag, *scalars])
        self._report.epoch(epoch)
        self._epoch, self._images = epoch + 1, 0
        last = self._epoch == self._args.epochs
        due = last or self._epoch % self._args.save_every == 0
        names = [checkpointer.name_after(epoch)] * due + [checkpointer.BEST] * improved
        if names:
            self._save(names)
        if last:
            self._report.finish(runtimes.finish(self._runtime, self._logbook, 'summary', {
                'task': 'Training', 'images_per_sec': self._progress.fps, 'loss': stats['train_loss'], **result,
                'epochs': self._args.epochs}))
            self._end_saved()
