"""One line on a terminal that is written anew as work goes on: bar, count, pace and time left; elsewhere, nothing."""
import shutil
import sys
import time

from util.errors import one_line
from util.throughput import duration

EVERY = .2          # seconds from one writing to the next
WIDTH = 24          # characters of the bar


class Silent:
    """For output that is no terminal."""
    live = False

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        pass

    def add(self, count=1, earlier=False):
        """Count what is done; `earlier` where it was done before this began, and says nothing of the pace."""

    def over(self, items):
        """The items, each counted as the next one is asked for."""
        with self:
            for item in items:
                yield item
                self.add()


class Bar(Silent):
    """The line, from `patience` seconds after the beginning; see `progress_bar`."""
    live = True

    def __init__(self, what, unit, total, patience, stream, now=time.monotonic):
        self._what, self._unit, self._total, self._stream, self._now = one_line(what), unit, total, stream, now
        self._done, self._earlier, self._began = 0, 0, now()
        self._due, self._shown = self._began + patience, False

    def add(self, count=1, earlier=False):
        self._done += count
        self._earlier += count if earlier else 0
        now = self._now()
        if now >= self._due:
            self._due, self._shown = now + EVERY, True
            self._write(now)

    def __exit__(self, *raised):
        if self._shown:
            self._write(self._now())
            self._stream.write('\n')
            self._stream.flush()

    def _write(self, now):
        line = self._line(now - self._began)[:shutil.get_terminal_size().columns - 1]
        self._stream.write('\r{}\x1b[K'.format(line))       # and clears what a longer line left
        self._stream.flush()

    def _line(self, seconds):
        pace = (self._done - self._earlier) / max(seconds, 1e-9)
        if not self._total:
            return '{}: {:,} {}, {:,.0f}/s'.format(self._what, self._done, self._unit, pace)
        full = WIDTH * min(self._done, self._total) // self._total
        left = duration((self._total - self._done) / pace) if pace else '?'
        return '{}: [{}{}] {:,} of {:,} {}, {:,.0f}/s, {} left'.format(
            self._what, '#' * full, '.' * (WIDTH - full), self._done, self._total, self._unit, pace, left)


def progress_bar(what, unit, total=None, patience=0., stream=None):
    """A context that tells of work as its `add` is called, where standard error (or `stream`) is a terminal.

    Args:
        what: the words before the bar; unit: what is counted, in the plural.
        total: how many there will be, if that is known.
        patience: seconds for which nothing is shown; work that takes less is not told of.
    """
    stream = sys.stderr if stream is None else stream
    return Bar(what, unit, total, patience, stream) if stream.isatty() else Silent()
