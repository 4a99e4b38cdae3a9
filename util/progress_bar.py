"""One line on a terminal that is written anew as work goes on: bar, count, pace and time left; elsewhere, nothing."""
import sys
import time

from util import terminal
from util.columns import fitted, width
from util.errors import one_line
from util.throughput import duration

EVERY = .2          # seconds from one writing to the next
BAR = (8, 24)       # characters that the bar has at least and at most


class Silent:
    """For output that is no terminal."""
    live = False

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        self.close()

    def close(self):
        """The work is done."""

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

    def __init__(self, what, unit, total, patience, screen, keep=True, now=time.monotonic):
        self._what, self._unit, self._total, self._now = one_line(what), unit, total, now
        self._screen, self._keep = screen, keep
        self._done, self._earlier, self._began = 0, 0, now()
        self._due, self._shown = self._began + patience, False

    def add(self, count=1, earlier=False):
        self._done += count
        self._earlier += count if earlier else 0
        now = self._now()
        if now >= self._due:
            self._due, self._shown = now + EVERY, True
            self._screen.show(self._line(now - self._began))

    def close(self):
        if self._shown:
            if self._keep:
                self._screen.show(self._line(self._now() - self._began))
            self._screen.end(self._keep)

    def _line(self, seconds):
        pace = (self._done - self._earlier) / max(seconds, 1e-9)
        if not self._total:
            figures = '{:,} {}, {:,.0f}/s'.format(self._done, self._unit, pace)
            return '{}: {}'.format(self._fitted(len(figures) + 2), figures)
        left = duration((self._total - self._done) / pace) if pace else '?'
        figures = '{:,} of {:,} {}, {:,.0f}/s, {} left'.format(self._done, self._total, self._unit, pace, left)
        beside = len(figures) + len(': [] ')
        what = self._fitted(beside + BAR[0])
        bar = min(max(self._screen.columns - 1 - beside - width(what), BAR[0]), BAR[1])
        full = bar * min(self._done, self._total) // self._total
        return '{}: [{}{}] {}'.format(what, '#' * full, '.' * (bar - full), figures)

    def _fitted(self, beside):
        """The words, of which only the end is left where they do not fit beside so many characters."""
        room = max(self._screen.columns - 1 - beside, BAR[0])
        return fitted(self._what, min(room, width(self._what)), end=True)


def progress_bar(what, unit, total=None, patience=0., stream=None, keep=True):
    """A context that tells of work as its `add` is called, where standard error (or `stream`) is a terminal.

    Args:
        what: the words before the bar; unit: what is counted, in the plural.
        total: how many there will be, if that is known.
        patience: seconds for which nothing is shown; work that takes less is not told of.
        keep: let the line stand when the work is done.
    """
    screen = terminal.screen(sys.stderr if stream is None else stream)
    return Silent() if screen is None else Bar(what, unit, total, patience, screen, keep)
