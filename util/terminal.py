"""The line at the bottom of a terminal that is written anew as work goes on; whatever else is written takes its place.

It is written where standard error or output is a terminal. Under test/lib/launch.sh both are a pipe, whose reader shows
the line on the terminal and leaves it out of the log; MAE_TERMINAL says that it does. No colours are used.
"""
import os
import stat
import sys

from util.columns import width

CLEAR = '\r\x1b[K'
_UNKNOWN = 80       # columns
_shown = []         # the Screen whose line stands there


class Screen:
    """Shows the line on a stream."""

    def __init__(self, stream):
        self._stream = stream

    def show(self, line):
        """Write the line anew, as much of it as fits."""
        _shown[:] = [self]
        self._write('\r{}\x1b[K'.format(fitting(line, self.columns - 1)))      # and clears what a longer line left

    def end(self, keep=False):
        """Take the line away; or keep it, on a terminal, and go on below."""
        if self in _shown:
            _shown.remove(self)
            self._write('\n' if keep and not _is_our_pipe(self._stream) else CLEAR)

    def _write(self, text):
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            pass                # the terminal is gone, and the run goes on

    @property
    def columns(self):
        """Width of the terminal, of now."""
        if os.environ.get('COLUMNS', '').isdigit():
            return int(os.environ['COLUMNS']) or _UNKNOWN
        try:
            if not _is_our_pipe(self._stream):
                return os.get_terminal_size(self._stream.fileno()).columns or _UNKNOWN
            with open('/dev/tty', 'rb', buffering=0) as terminal:
                return os.get_terminal_size(terminal.fileno()).columns or _UNKNOWN
        except (OSError, ValueError):
            return _UNKNOWN


class Guarded:
    """A stream that takes the line away before something is written to it; the line comes back when it is due."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        """Write text, as the stream does."""
        for screen in list(_shown):
            screen.end()
        return self._stream.write(text)


def guard():
    """Guard standard output and error, where a line may be shown."""
    if screen() is not None:
        sys.stdout, sys.stderr = (stream if isinstance(stream, Guarded) else Guarded(stream)
                                  for stream in (sys.stdout, sys.stderr))


def screen(*streams):
    """A Screen on the first of the streams (default: standard error and output) that can show it; None without."""
    for stream in streams or (sys.stderr, sys.stdout):
        raw = getattr(stream, '_stream', stream)        # guarded, it would take its own line away
        if os.environ.get('TERM') != 'dumb' and (raw.isatty() or _is_our_pipe(raw)):
            return Screen(raw)
    return None


def _is_our_pipe(stream):
    """Whether a stream leads to the launcher's terminal, and no other process writes there."""
    if not os.environ.get('MAE_TERMINAL') or os.environ.get('WORLD_SIZE', '1') != '1':
        return False
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):
        return False


def fitting(text, columns):
    """The beginning of a text that takes at most so many columns; Chinese letters take two."""
    used = 0
    for i, letter in enumerate(text):
        used += width(letter)
        if used > columns:
            return text[:i]
    return text
