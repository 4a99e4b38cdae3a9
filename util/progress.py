"""What a training epoch tells: a line every 20 iterations, and the epoch's mean loss and speed at its end."""
import time

from util import hang_detector
from util.log import logger
from util.metrics import DeviceMean
from util.throughput import WARMUP_ITERATIONS, Throughput, duration, workers_to_keep_up

PRINT_EVERY = 20


class Progress:
    """Counts, times and reports the iterations of one epoch.

    The loss stays on the device; it is read and averaged over the processes only when a line is due.

    Args:
        done: iterations of the epoch that an earlier run did.
        loader: gives the batches that are left, pairs of tensors.
        runtime: device, accelerator, world and profiler of the run.
        updates: util.updates.WeightUpdates, asked for the learning rate and for skipped steps.
        logbook: gets {loss_tag, 'lr'} as scalars with every line.
        rate: the run's util.throughput.Rate.
        before, after: called with the index of each iteration.
        first_epoch: leave the first iterations out of the speed.
        state: what `state` gave in an earlier run, to go on from.
    """

    def __init__(self, epoch, done, loader, runtime, updates, logbook, loss_tag, rate, before, after,
                 first_epoch=False, state=None):
        self.epoch, self.done, self.iterations, self.loader = epoch, done, done + len(loader), loader
        self.runtime, self.updates = runtime, updates
        self._logbook, self._loss_tag, self._rate, self._before, self._after = logbook, loss_tag, rate, before, after
        self.loss = DeviceMean(runtime.device)
        self._skipped_before = updates.bad_steps.skipped
        self.throughput = Throughput(len(loader), WARMUP_ITERATIONS if first_epoch else 0,
                                     runtime.accelerator.synchronize)
        if state:
            self.loss.load_state(state['loss'], runtime.world)
            self._skipped_before -= state['skipped_steps']
            updates.lr = state['lr']
            images, seconds, waited = state['speed']
            self.throughput.go_on_from(images / runtime.world.size, seconds, waited)
        self._since, self._waited, self._lines_from = time.perf_counter(), 0., done

    def batches(self):
        """(index, tensors on the device) of each batch; the caller calls `add` for each."""
        batches, where = self.throughput.batches(self.loader), 'epoch {}'.format(self.epoch)
        for i, batch in hang_detector.watched(batches, where, self.done):
            self._waited += self.throughput.last_wait
            self._before(i)
            yield i, self.runtime.accelerator.to_device(batch, self.runtime.device)
            self.runtime.profiler.step()
            if (i + 1) % PRINT_EVERY == 0 or i in (0, self.iterations - 1):
                self._line(i)
            self._after(i)

    def add(self, loss, images):
        """Count an iteration by its loss (mean over `images`, on the device)."""
        self.loss.add(loss, images)
        self.throughput.add(images)

    def _skipped(self):
        """Optimizer steps of this epoch that were skipped."""
        return self.updates.bad_steps.skipped - self._skipped_before

    def _line(self, i):
        loss = self.loss.read_window(self.runtime.world)
        now, count = time.perf_counter(), i + 1 - self._lines_from
        per_iteration = (now - self._since) / count
        peak, skipped = self.runtime.accelerator.peak_memory(), self._skipped()
        logger.info('Epoch: [%d]  [%*d/%d]  eta: %s  loss: %.4f  lr: %.3e  time: %.4f s  data: %.4f s%s%s',
                    self.epoch, len(str(self.iterations)), i + 1, self.iterations,
                    duration(per_iteration * (self.iterations - i - 1)), loss, self.updates.lr, per_iteration,
                    self._waited / count, '' if peak is None else '  max mem: {:.0f} MiB'.format(peak),
                    '  skipped steps: {}'.format(skipped) if skipped else '')
        self._logbook.scalars(self.epoch + (i + 1) / self.iterations, {self._loss_tag: loss, 'lr': self.updates.lr})
        self._since, self._waited, self._lines_from = now, 0., i + 1

    def state(self):
        """What a run that is resumed within the epoch goes on from, in plain values; all processes must call it."""
        return {'loss': self.loss.state(self.runtime.world), 'skipped_steps': self._skipped(), 'lr': self.updates.lr,
                'speed': self._speed()}

    def _speed(self):
        """Images of all processes, seconds, and seconds of waiting for data: the mean over the processes."""
        images, seconds, waited = self.runtime.totals(*self.throughput.so_far())
        return images, seconds / self.runtime.world.size, waited / self.runtime.world.size

    def finish(self):
        """Close the epoch: its mean loss, learning rate, images/s over all processes and data-wait share."""
        images, seconds, waited = self._speed()
        fps = self._rate.add(images, seconds)
        share = waited / seconds if seconds else 0.
        logger.info('train_one_epoch FPS: %.2f  (data wait: %.1f%%)', fps, 100 * share)
        workers = self.loader.workers
        enough = workers_to_keep_up(workers, *self.runtime.totals(*self.throughput.steady()))
        if self._rate.news(enough):
            logger.info('the loader does not keep up with the training; about %d loader process%s for each training '
                        'process would (--num_workers, now %d)', enough, '' if enough == 1 else 'es', workers)
        return {'train_loss': self.loss.read(self.runtime.world), 'train_lr': self.updates.lr, 'FPS': round(fps, 2),
                'data_wait': round(share, 4), 'skipped_steps': self._skipped()}
