"""A logger that speaks on rank 0 alone, so that no print has to ask for the rank."""
import logging
import sys

from util.errors import one_line
from util.progress_bar import Bar

logger = logging.getLogger('mae')


class _OneLineValues(logging.Formatter):
    """Names of files and classes come from outside: each stays within its line."""

    def format(self, record):
        if isinstance(record.args, tuple):
            record.args = tuple(value if isinstance(value, (int, float)) else one_line(value) for value in record.args)
        return super().format(record)


class _BesideBars(logging.StreamHandler):
    """A progress bar makes way for a line and comes back below it."""

    def emit(self, record):
        with Bar.external_write_mode(self.stream):
            super().emit(record)


def set_up(is_main, results=False):
    """Send the logger's lines to standard output; processes other than the main one only warn.

    Args:
        results: standard output is for results, and the lines go to standard error.
    """
    handler = _BesideBars(sys.stderr if results else sys.stdout)
    handler.setFormatter(_OneLineValues('%(message)s'))
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if is_main else logging.WARNING)
