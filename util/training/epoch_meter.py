"""What a training tells: a line every 20 iterations, and the mean loss and the speed of each epoch."""
import math
import time

import torch

from util.distributed import hang_detector
from util.log import logger
from util.text import duration

PRINT_EVERY = 20
WARMUP_ITERATIONS = 10
LITTLE_WAIT = .02       # share of the time that may be spent waiting for data before anything is said of it


class EpochMeter:
    """Counts, times and reports the iterations of a run, epoch by epoch.

    The loss stays on the device; it is read and averaged over the processes only when a line is due.

    Args:
        loader: gives the batches that are left of an epoch, pairs of tensors.
        session: device, accelerator, world and profiler of the run.
        optimizer_step: OptimizerStep, asked for the learning rate and for skipped steps.
        run_logger: gets {loss_tag, 'lr'} as scalars with every line.
        seed: of the run.
    """

    def __init__(self, loader, session, optimizer_step, run_logger, loss_tag, seed):
        self.loader, self.session, self.optimizer_step = loader, session, optimizer_step
        self._run_logger, self._loss_tag, self._seed = run_logger, loss_tag, seed
        self._images, self._seconds, self._advised = 0., 0., None       # of all epochs; the last advice on the loader
        self._warmup = WARMUP_ITERATIONS

    def begin(self, epoch, done, state=None):
        """Begin an epoch.

        Args:
            done: iterations of it that an earlier run did.
            state: what `state_dict` gave in that run, to resume from.
        """
        self.epoch, self.done, self.iterations = epoch, done, done + len(self.loader)
        self.loss, speed = DeviceMean(self.session.device), (0, 0., 0.)
        self._skipped_before = self.optimizer_step.non_finite_steps.skipped
        if state:
            self.loss.load_state_dict(state['loss'], self.session.world)
            self._skipped_before -= state['skipped_steps']
            self.optimizer_step.lr = state['lr']
            images, *times = state['speed']
            speed = images / self.session.world.size, *times
        self.throughput = Throughput(len(self.loader), self._warmup, self.session.accelerator.synchronize,
                                     earlier=speed)
        self._warmup = 0                        # of the first epoch alone
        self._since, self._waited, self._lines_from = time.perf_counter(), 0., done

    def batches(self):
        """(index, tensors on the device) of each batch; the caller calls `log` for each."""
        batches, where = self.throughput.batches(self.loader), 'epoch {}'.format(self.epoch)
        for i, batch in hang_detector.monitored(batches, where, self.done):
            self._waited += self.throughput.last_wait
            # Reseeded for each iteration: a resumed run draws the same masks, dropped paths and mixtures.
            self.session.seed(self._seed, self.epoch, i)
            yield i, self.session.accelerator.to_device(batch, self.session.device)

    def log(self, i, loss, images):
        """Count iteration `i` by its loss (mean over `images`, on the device); print a line every PRINT_EVERY."""
        self.loss.add(loss, images)
        self.throughput.add(images)
        self.session.profiler.step()
        if (i + 1) % PRINT_EVERY == 0 or i in (0, self.iterations - 1):
            self._line(i)

    def _skipped(self):
        """Optimizer steps of this epoch that were skipped."""
        return self.optimizer_step.non_finite_steps.skipped - self._skipped_before

    def _line(self, i):
        loss = self.loss.read_window(self.session.world)
        now, count = time.perf_counter(), i + 1 - self._lines_from
        per_iteration = (now - self._since) / count
        peak, skipped = self.session.accelerator.peak_memory(), self._skipped()
        logger.info('Epoch: [%d]  [%*d/%d]  eta: %s  loss: %.4f  lr: %.3e  time: %.4f s  data: %.4f s%s%s',
                    self.epoch, len(str(self.iterations)), i + 1, self.iterations,
                    duration(per_iteration * (self.iterations - i - 1)), loss, self.optimizer_step.lr, per_iteration,
                    self._waited / count, '' if peak is None else '  max mem: {:.0f} MiB'.format(peak),
                    '  skipped steps: {}'.format(skipped) if skipped else '')
        self._run_logger.scalars(self.epoch + (i + 1) / self.iterations,
                                 {self._loss_tag: loss, 'lr': self.optimizer_step.lr})
        self._since, self._waited, self._lines_from = now, 0., i + 1

    def state_dict(self):
        """Collective: what a run that is resumed within the epoch needs, in plain values."""
        return {'loss': self.loss.state_dict(self.session.world), 'skipped_steps': self._skipped(),
                'lr': self.optimizer_step.lr, 'speed': self._speed()}

    def _speed(self):
        """Images of all processes, seconds, and seconds of waiting for data: the mean over the processes."""
        clock, size = self.throughput, self.session.world.size
        images, seconds, waited = self.session.totals(clock.images, clock.seconds, clock.waited)
        return images, seconds / size, waited / size

    def finish(self):
        """Close the epoch: its mean loss, learning rate, images/s over all processes and data-wait share."""
        images, seconds, waited = self._speed()
        self._images, self._seconds = self._images + images, self._seconds + seconds
        fps, share = per_second(images, seconds), waited / seconds if seconds else 0.
        logger.info('train_one_epoch FPS: %.2f  (data wait: %.1f%%)', fps, 100 * share)
        workers = self.loader.workers
        enough = workers_to_keep_up(workers, *self.session.totals(*self.throughput.steady()))
        if enough not in (None, self._advised):
            logger.info('the loader does not keep up with the training; about %d loader process%s for each training '
                        'process would (--num_workers, now %d)', enough, '' if enough == 1 else 'es', workers)
        self._advised = enough
        return {'train_loss': self.loss.read(self.session.world), 'train_lr': self.optimizer_step.lr,
                'FPS': round(fps, 2), 'data_wait': round(share, 4), 'skipped_steps': self._skipped()}

    @property
    def fps(self):
        """Images per second over all epochs of the run."""
        return per_second(self._images, self._seconds)


class DeviceMean:
    """A running mean of device scalars: add never waits for the device, reading does.

    Values that are not finite are left out: the step that they belong to is skipped too.
    """

    def __init__(self, device):
        self._zero = torch.zeros(2, device=device)
        self._window = self._zero.clone()       # sum and count of this process since the last reading
        self._total = [0., 0.]                  # sum and count of all processes up to there

    def add(self, value, count=1):
        """Add a scalar tensor that is the mean over `count` items."""
        value = value.detach().float()
        finite = torch.isfinite(value)
        # by where, since a product would let NaN through
        self._window += torch.where(finite, torch.stack([value * count, torch.full_like(value, count)]), self._zero)

    def read_window(self, world):
        """Mean since the last call, over all processes."""
        recent, self._window = self._window, self._zero.clone()
        total, count = world.all_reduce(recent).tolist()
        self._total = [self._total[0] + total, self._total[1] + count]
        return total / count if count else math.nan

    def read(self, world):
        """Mean of everything, over all processes."""
        self.read_window(world)
        total, count = self._total
        return total / count if count else math.nan

    def state_dict(self, world):
        """What a resumed run starts from: the total, and what each process has added since; plain numbers."""
        return {'total': list(self._total), 'windows': world.all_gather(self._window)}

    def load_state_dict(self, state, world):
        """Restore what `state_dict` gave; where the number of processes has changed, the first takes what all had."""
        self._total = list(state['total'])
        windows = state['windows']
        if len(windows) != world.size:
            windows = [[sum(values) for values in zip(*windows)]] + [[0., 0.]] * (world.size - 1)
        self._window = self._zero.new_tensor(windows[world.rank])


class Throughput:
    """Times one pass over a loader; evaluation and checkpoints happen outside of it.

    Args:
        iterations: how many there will be.
        warmup: how many of the first to leave out; at most a third of all, so that 3 iterations still give 2.
        synchronize: waits for the device; called only where the timed stretch begins and ends.
        now: a clock in seconds.
        earlier: images, seconds and seconds of waiting that an interrupted run had timed of the same pass.
    """

    def __init__(self, iterations, warmup, synchronize, now=time.perf_counter, earlier=(0, 0., 0.)):
        self.skip = min(warmup, iterations // 3)
        self.images, self._seconds, self.waited = earlier
        self.last_wait = 0.
        self._first_wait = 0.           # as the loader starts anew, which more loader processes would not shorten
        self._synchronize, self._now = synchronize, now
        self._started, self._ended = None, None

    def batches(self, loader):
        """The batches of `loader`; call `add` once for each."""
        if self.skip == 0:
            self._start()
        iterator, done = iter(loader), 0
        while True:
            before = self._now()
            batch = next(iterator, None)
            self.last_wait = self._now() - before
            if self._started is not None:
                self.waited += self.last_wait
                self._first_wait += 0. if done else self.last_wait
            if batch is None:
                break
            yield batch
            done += 1
            if done == self.skip:
                self._start()
        self._synchronize()
        self._ended = self._now()

    @property
    def seconds(self):
        """Seconds that have been timed so far."""
        return self._seconds + (0. if self._started is None else (self._ended or self._now()) - self._started)

    def steady(self):
        """Seconds, and seconds of waiting for data, without the start of the loader."""
        return self.seconds - self._first_wait, self.waited - self._first_wait

    def add(self, images):
        """Count the images of the batch at hand."""
        if self._started is not None:
            self.images += images

    def _start(self):
        self._synchronize()
        self._started = self._now()


def workers_to_keep_up(workers, seconds, waited):
    """How many loader processes would, where `workers` leave the device waiting; None where they keep up."""
    if waited <= LITTLE_WAIT * seconds:
        return None
    return math.ceil((seconds if workers else waited) * max(workers, 1) / max(seconds - waited, 1e-9))


def per_second(images, seconds):
    """Images per second; 0 where nothing was timed."""
    return images / seconds if seconds > 0 else 0.
