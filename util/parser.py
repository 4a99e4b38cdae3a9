"""A parser of flags whose mistakes are one line, and the types of its numbers. Nothing here imports torch."""
import argparse
import difflib
import math

from util.errors import USER_ERROR_STATUS, one_line


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line that names the flag, and which takes no abbreviated flags."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=_HelpWithDefaults, **options)

    def error(self, message):
        self.exit(USER_ERROR_STATUS, 'error: {} (see {} --help)\n'.format(one_line(message), self.prog))

    def parse_args(self, args=None, namespace=None):
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].split('=')[0]
            close = difflib.get_close_matches(flag, self._option_string_actions, n=1)
            self.error('unknown argument {}{}'.format(flag, '; did you mean {}?'.format(close[0]) if close else ''))
        return parsed


class _HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action):
        if action.default in (None, '') or isinstance(action.default, bool) or action.required:
            return action.help
        return super()._get_help_string(action)


def number(kind, low=-math.inf, high=math.inf, open_low=False, open_high=False):
    """An argparse type: `kind` within [low, high], either end open if so said."""
    expected = 'a whole number' if kind is int else 'a number'
    if low > -math.inf:
        expected += ' {} {}'.format('above' if open_low else 'at least', low)
    if high < math.inf:
        expected += ' and {} {}'.format('below' if open_high else 'at most', high)

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        good = (value > low if open_low else value >= low) and (value < high if open_high else value <= high)
        if not (good and math.isfinite(value)):
            raise argparse.ArgumentTypeError('{!r} is not {}'.format(text, expected))
        return value
    return parse


COUNT = number(int, 1)
INDEX = number(int, 0)
NOT_NEGATIVE = number(float, 0)
POSITIVE = number(float, 0, open_low=True)
SHARE = number(float, 0, 1)
SHARE_BELOW_1 = number(float, 0, 1, open_high=True)
INSIDE_0_1 = number(float, 0, 1, open_low=True, open_high=True)
