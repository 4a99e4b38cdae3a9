"""Honest clocks: images per second of training iterations alone, and the share of it spent waiting for data."""
import math
import time

WARMUP_ITERATIONS = 10
LITTLE_WAIT = .02       # share of the time that may be spent waiting for data before anything is said of it


def duration(seconds):
    """3725 -> '1:02:05'."""
    minutes, seconds = divmod(int(seconds), 60)
    return '{}:{:02d}:{:02d}'.format(minutes // 60, minutes % 60, seconds)


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
