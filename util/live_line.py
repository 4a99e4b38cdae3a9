"""What a terminal shows of a training between two lines of the log: bar, loss, speed, and the time that is left."""
import time
from collections import deque

from util import terminal
from util.throughput import duration

EVERY = .5          # seconds from one writing to the next
WINDOW = 50         # iterations that pace and waiting are the mean of
BAR = (8, 24)       # characters that the bar has at least and at most


class NoLine:
    """Where there is no terminal, or several processes would write to it."""

    def begin(self, epoch, done, iterations):
        """An epoch begins, of whose iterations so many are done."""

    def loss(self, value):
        """The loss was read."""

    def step(self, done, waited):
        """An iteration has ended, which has waited so many seconds for data."""

    def end(self):
        """The epoch's iterations are over."""


class Line(NoLine):
    """The line of a run, through all its epochs.

    Args:
        epochs: of the whole run.
        images: of an iteration.
        screen: util.terminal.Screen.
        now: a clock in seconds.
    """

    def __init__(self, epochs, images, screen, now=time.monotonic):
        self._epochs, self._images, self._screen, self._now = epochs, images, screen, now
        self._loss, self._ended, self._between = None, None, 0.
        self._due = now() + EVERY

    def begin(self, epoch, done, iterations):
        now = self._now()
        if self._ended is not None:
            self._between = now - self._ended       # evaluation and checkpoint, which the next epochs have too
        self._epoch, self._iterations = epoch, iterations
        self._recent = deque([(now, 0.)], WINDOW + 1)

    def loss(self, value):
        self._loss = value

    def step(self, done, waited):
        now = self._now()
        self._recent.append((now, waited))
        if now >= self._due:
            self._due = now + EVERY
            self._screen.show(self.text(done, self._screen.columns - 1))

    def end(self):
        self._screen.end()
        self._ended = self._now()

    def text(self, done, columns):
        """The line after so many iterations of the epoch; what is less needed is left out where columns are few."""
        seconds = self._recent[-1][0] - self._recent[0][0]
        waited = sum(wait for _, wait in list(self._recent)[1:])
        pace = seconds / (len(self._recent) - 1)
        left = pace * (self._iterations - done)
        later = (self._epochs - self._epoch - 1) * (self._iterations * pace + self._between) + self._between
        fields = [('epoch {}/{}'.format(self._epoch, self._epochs), 0), ('', 4),
                  ('{}/{}'.format(done, self._iterations), 6),
                  ('' if self._loss is None else 'loss {:.4f}'.format(self._loss), 1),
                  ('{:,.0f} images/s'.format(self._images / max(pace, 1e-9)), 5),
                  ('data {:.0f}%'.format(100 * waited / max(seconds, 1e-9)), 7),
                  ('eta ' + duration(left), 3), ('run ' + duration(left + later), 2)]
        return fitted(fields, done / self._iterations, columns)


def fitted(fields, share, columns):
    """Texts in one line, where '' with rank 4 is a bar that is full to a share; those of the highest ranks go first.

    Args:
        fields: (text, rank) pairs.
    """
    fields, bar = [field for field in fields if field[0] or field[1] == 4], BAR[0]
    while len(fields) > 1 and _length(fields, bar) > columns:
        fields.remove(max(fields, key=lambda field: field[1]))
    bar = max(bar, min(BAR[1], bar + columns - _length(fields, bar)))
    full = int(bar * share)
    return ' '.join(text or '[{}{}]'.format('#' * full, '.' * (bar - full)) for text, _ in fields)


def _length(fields, bar):
    return sum(len(text) or bar + 2 for text, _ in fields) + len(fields) - 1


def of_training(epochs, images, processes):
    """The line of a run of so many processes: one that shows nothing where there is no terminal for it alone."""
    screen = terminal.screen() if processes == 1 else None
    return NoLine() if screen is None else Line(epochs, images, screen)
