"""Meters of an epoch: loss, learning rate, images/s and data-wait share, with a log line every 20 iterations."""
import math
import time
from datetime import timedelta
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import torch

from util.data.loader import Batches
from util.distributed import hang_detector
from util.distributed.world import World
from util.log import logger
from util.reporting.run_logger import RunLogger
from util.training.optimizer_step import OptimizerStep
from util.training.session import Session

PRINT_EVERY = 20
WARMUP_ITERATIONS = 10
MAX_DATA_WAIT = .05     # share of the time waiting for data from which more loader processes are suggested


class EpochMeter:
    """Loss, speed and log lines of a run, epoch by epoch.

    The loss stays on the device; it is read, and averaged over the processes, only for a log line.

    Args:
        loader: yields the remaining batches of an epoch.
        optimizer_step: has the learning rate and the skipped steps.
        loss_tag: name of the loss among the scalars of each line, beside 'lr'.
    """

    def __init__(self, loader: Batches, session: Session, optimizer_step: OptimizerStep, loss_tag: str, seed: int):
        self.loader, self.session, self.optimizer_step = loader, session, optimizer_step
        self._loss_tag, self._seed = loss_tag, seed
        self.run_logger: Optional[RunLogger] = None     # of the scalars, once the output folder is entered
        self._images, self._seconds = 0., 0.    # of all epochs
        self._warmup = WARMUP_ITERATIONS

    def begin(self, epoch: int, done: int) -> None:
        """Begin an epoch in which an earlier run has done `done` iterations."""
        self.epoch, self.done, self.iterations = epoch, done, done + len(self.loader)
        self.loss = DeviceMean(self.session.device)
        self._skipped_before = self.optimizer_step.non_finite_steps.skipped
        self.throughput = Throughput(len(self.loader), self._warmup, self.session.accelerator.synchronize)
        self._warmup = 0                        # only in the first epoch
        self._since, self._waited, self._last_line = time.perf_counter(), 0., done

    def batches(self) -> Iterator[Tuple[int, Sequence[torch.Tensor]]]:
        """(iteration, tensors on the device) of each remaining batch; call `log` once for each."""
        batches, where = self.throughput.batches(self.loader), 'epoch {}'.format(self.epoch)
        for i, batch in hang_detector.monitored(batches, where, self.done):
            self._waited += self.throughput.last_wait
            # Reseeded in each iteration: a resumed run draws the same masks, drop paths and mixup.
            self.session.seed(self._seed, self.epoch, i)
            yield i, self.session.accelerator.to_device(batch, self.session.device)

    def log(self, i: int, loss: torch.Tensor, images: int) -> None:
        """Count iteration `i` with its loss (mean over `images`, on the device); log a line every PRINT_EVERY."""
        self.loss.add(loss, images)
        self.throughput.add(images)
        self.session.profiler.step()
        if (i + 1) % PRINT_EVERY == 0 or i in (0, self.iterations - 1):
            self._log_line(i)

    def _skipped(self):
        """Optimizer steps skipped in this epoch."""
        return self.optimizer_step.non_finite_steps.skipped - self._skipped_before

    def _log_line(self, i):
        loss = self.loss.read_window(self.session.world)
        now, count = time.perf_counter(), i + 1 - self._last_line
        per_iteration = (now - self._since) / count
        peak, skipped = self.session.accelerator.peak_memory(), self._skipped()
        logger.info('Epoch: [%d]  [%*d/%d]  eta: %s  loss: %.4f  lr: %.3e  time: %.4f s  data: %.4f s%s%s',
                    self.epoch, len(str(self.iterations)), i + 1, self.iterations,
                    timedelta(seconds=round(per_iteration * (self.iterations - i - 1))), loss, self.optimizer_step.lr,
                    per_iteration, self._waited / count, '' if peak is None else '  max mem: {:.0f} MiB'.format(peak),
                    '  skipped steps: {}'.format(skipped) if skipped else '')
        if self.run_logger:
            self.run_logger.log_scalars(self.epoch + (i + 1) / self.iterations,
                                        {self._loss_tag: loss, 'lr': self.optimizer_step.lr})
        self._since, self._waited, self._last_line = now, 0., i + 1

    def state_dict(self) -> Dict[str, Any]:
        """Collective: state within an epoch, in plain values."""
        return {'loss': self.loss.state_dict(self.session.world), 'skipped_steps': self._skipped(),
                'lr': self.optimizer_step.lr}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Restore a state_dict after `begin`; the number of processes may be another one."""
        self.loss.load_state_dict(state['loss'], self.session.world)
        self._skipped_before -= state['skipped_steps']
        self.optimizer_step.lr = state['lr']

    def finish(self) -> Dict[str, float]:
        """Collective: train_loss, train_lr, FPS, data_wait and skipped_steps of the epoch.

        FPS is the sum over all processes; after a resume within the epoch, it and data_wait are of the rest of it.
        """
        clock, size = self.throughput, self.session.world.size
        images, *seconds = self.session.all_reduce(clock.images, clock.seconds, clock.waited)
        seconds, waited = (value / size for value in seconds)
        self._images, self._seconds = self._images + images, self._seconds + seconds
        fps, data_wait = per_second(images, seconds), waited / seconds if seconds else 0.
        hint = '; try more --num_workers than {}'.format(self.loader.workers) if data_wait > MAX_DATA_WAIT else ''
        logger.info('train_one_epoch FPS: %.2f  (data wait: %.1f%%%s)', fps, 100 * data_wait, hint)
        return {'train_loss': self.loss.read(self.session.world), 'train_lr': self.optimizer_step.lr,
                'FPS': round(fps, 2), 'data_wait': round(data_wait, 4), 'skipped_steps': self._skipped()}

    @property
    def fps(self) -> float:
        """Images per second over all epochs of the run."""
        return per_second(self._images, self._seconds)


class DeviceMean:
    """Running mean of the finite device scalars (other steps are skipped): only reading synchronizes, not `add`."""

    def __init__(self, device: torch.device):
        self._zero = torch.zeros(2, device=device)
        self._window = self._zero.clone()       # sum and count in this process since the last reading
        self._total = [0., 0.]                  # sum and count in all processes up to then

    def add(self, value: torch.Tensor, count: int = 1) -> None:
        """Add a scalar that is the mean over `count` items."""
        value = value.detach().float()
        finite = torch.isfinite(value)
        # torch.where, since a product would let NaN through
        self._window += torch.where(finite, torch.stack([value * count, torch.full_like(value, count)]), self._zero)

    def read_window(self, world: World) -> float:
        """Collective: mean since the last call, over all processes."""
        window, self._window = self._window, self._zero.clone()
        total, count = world.all_reduce(window).tolist()
        self._total = [self._total[0] + total, self._total[1] + count]
        return total / count if count else math.nan

    def read(self, world: World) -> float:
        """Collective: mean of everything, over all processes."""
        self.read_window(world)
        total, count = self._total
        return total / count if count else math.nan

    def state_dict(self, world: World) -> Dict[str, List]:
        """Collective: the total, and the window of each process, in plain numbers."""
        return {'total': list(self._total), 'windows': world.all_gather(self._window)}

    def load_state_dict(self, state: Dict[str, List], world: World) -> None:
        """Restore a state_dict; if the number of processes has changed, the first takes the sum of all windows."""
        self._total = list(state['total'])
        windows = state['windows']
        if len(windows) != world.size:
            windows = [[sum(values) for values in zip(*windows)]] + [[0., 0.]] * (world.size - 1)
        self._window = self._zero.new_tensor(windows[world.rank])


class Throughput:
    """Images and seconds of one pass over a loader, without evaluation and checkpoints outside of it.

    Args:
        iterations: length of the pass.
        warmup: leading iterations to leave out; at most a third of all, so that 3 iterations still leave 2.
        synchronize: waits for the device; called only at the start and the end of the timing.
    """

    def __init__(self, iterations: int, warmup: int, synchronize: Callable[[], None]):
        self.skip = min(warmup, iterations // 3)
        self.images, self.waited, self.last_wait = 0, 0., 0.
        self._synchronize = synchronize
        self._started, self._ended = None, None

    def batches(self, loader: Iterable) -> Iterator:
        """The batches of `loader`; call `add` once for each."""
        if self.skip == 0:
            self._start()
        iterator, done = iter(loader), 0
        while True:
            before = time.perf_counter()
            batch = next(iterator, None)
            self.last_wait = time.perf_counter() - before
            if self._started is not None:
                self.waited += self.last_wait
            if batch is None:
                break
            yield batch
            done += 1
            if done == self.skip:
                self._start()
        self._synchronize()
        self._ended = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds timed so far."""
        return 0. if self._started is None else (self._ended or time.perf_counter()) - self._started

    def add(self, images: int) -> None:
        """Count the images of the current batch."""
        if self._started is not None:
            self.images += images

    def _start(self):
        self._synchronize()
        self._started = time.perf_counter()


def per_second(images: float, seconds: float) -> float:
    """Images per second; 0 if nothing was timed."""
    return images / seconds if seconds > 0 else 0.
