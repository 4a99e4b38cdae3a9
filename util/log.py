"""A logger that speaks on rank 0 alone, so that no print has to ask for the rank."""
import logging
import sys

logger = logging.getLogger('mae')


def set_up(is_main):
    """Send the logger's lines to standard output; processes other than the main one only warn."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter('%(message)s'))
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if is_main else logging.WARNING)
