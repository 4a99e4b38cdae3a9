"""What a training epoch tells: a line every 20 iterations, and the epoch's mean loss and speed at its end."""
import time

from util.log import logger
from util.metrics import DeviceMean, check_finite
from util.throughput import WARMUP_ITERATIONS, Throughput, duration

PRINT_EVERY = 20


class Progress:
    """Counts, times and reports the iterations of one epoch.

    The loss stays on the device; it is read, averaged over the processes and checked only when a line is due.

    Args:
        runtime: device, accelerator, world and profiler of the run.
        updates: util.updates.WeightUpdates, asked for the learning rate and for steps that overflows have skipped.
        on_line: called as on_line(fractional epoch, mean loss since the last line, learning rate).
    """

    def __init__(self, epoch, iterations, runtime, updates, on_line, first_epoch=False):
        self.epoch, self.iterations, self.runtime, self.updates = epoch, iterations, runtime, updates
        self.on_line = on_line
        self._skipped_before = updates.precision.skipped_steps
        self.loss = DeviceMean(runtime.device)
        self.throughput = Throughput(iterations, WARMUP_ITERATIONS if first_epoch else 0,
                                     runtime.accelerator.synchronize)
        self._since, self._waited, self._lines_from = time.perf_counter(), 0., 0

    def batches(self, loader):
        """(index, batch) of `loader`; the caller calls `add` for each."""
        for i, batch in enumerate(self.throughput.batches(loader)):
            self._waited += self.throughput.last_wait
            yield i, batch
            self.runtime.profiler.step()
            if (i + 1) % PRINT_EVERY == 0 or i in (0, self.iterations - 1):
                self._line(i)

    def add(self, loss, images):
        """Count an iteration by its loss (mean over `images`, on the device)."""
        self.loss.add(loss, images)
        self.throughput.add(images)

    def _skipped(self):
        """Optimizer steps of this epoch that overflows have skipped."""
        return self.updates.precision.skipped_steps - self._skipped_before

    def _line(self, i):
        loss = self.loss.read_window(self.runtime.world)
        check_finite(loss, self.epoch, i)
        now, count = time.perf_counter(), i + 1 - self._lines_from
        per_iteration = (now - self._since) / count
        peak, skipped = self.runtime.accelerator.peak_memory(), self._skipped()
        logger.info('Epoch: [%d]  [%*d/%d]  eta: %s  loss: %.4f  lr: %.3e  time: %.4f s  data: %.4f s%s%s',
                    self.epoch, len(str(self.iterations)), i + 1, self.iterations,
                    duration(per_iteration * (self.iterations - i - 1)), loss, self.updates.lr, per_iteration,
                    self._waited / count, '' if peak is None else '  max mem: {:.0f} MiB'.format(peak),
                    '  skipped steps: {}'.format(skipped) if skipped else '')
        self.on_line(self.epoch + (i + 1) / self.iterations, loss, self.updates.lr)
        self._since, self._waited, self._lines_from = now, 0., i + 1

    def finish(self, rate):
        """Close the epoch: its mean loss, learning rate, images/s over all processes and data-wait share.

        Args:
            rate: the run's util.throughput.Rate, which the epoch is added to.
        """
        images, seconds, waited = self.runtime.totals(self.throughput.images, self.throughput.seconds,
                                                      self.throughput.waited)
        fps = rate.add(images, seconds / self.runtime.world.size)
        share = waited / seconds if seconds else 0.
        logger.info('train_one_epoch FPS: %.2f  (data wait: %.1f%%)', fps, 100 * share)
        return {'train_loss': self.loss.read(self.runtime.world), 'train_lr': self.updates.lr, 'FPS': round(fps, 2),
                'data_wait': round(share, 4), 'skipped_steps': self._skipped()}
