"""A parser of flags whose mistakes are one line, and the types of its numbers. Nothing here imports torch."""
import argparse
import difflib
import math
import re
import sys

from util import config
from util.errors import USER_ERROR_STATUS, UserError, let_the_first_speak, one_line


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line that names the flag, and which takes no abbreviated flags.

    Where it has a flag --config, the YAML file of that name gives values to any flag; the command line wins.
    """

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=_HelpWithDefaults, **options)
        self._places = {}           # where in a file a flag was set, by its attribute

    def error(self, message):
        flag = re.match(r'argument (--[\w-]+)|', message).group(1)
        action = self._option_string_actions.get(flag)
        place = self._places.get(action.dest, '') if action else ''
        let_the_first_speak()
        self.exit(USER_ERROR_STATUS, 'error: {} (see {} --help)\n'.format(one_line(place + message), self.prog))

    def parse_args(self, args=None, namespace=None):
        words = sys.argv[1:] if args is None else list(args)
        path = config.value_of('--config', words) if '--config' in self._option_string_actions else None
        if path is not None:
            namespace = self._read(path, words)
        parsed, unknown = self.parse_known_args(words, namespace)
        if unknown:
            flag = unknown[0].split('=')[0]
            self.error('unknown argument {}{}'.format(flag, self._meant(flag)))
        return parsed

    def _meant(self, flag):
        close = difflib.get_close_matches(flag, self._option_string_actions, n=1)
        return '; did you mean {}?'.format(close[0]) if close else ''

    def _read(self, path, words):
        """The defaults and what a file sets, as a Namespace; what it sets is no longer required of the command line."""
        try:
            settings = config.read(path)
        except UserError as error:
            self.error(str(error))
        required = [action for action in self._actions if action.required]
        for action in required:
            action.required = False
        values = argparse.Namespace()
        for name, (line, value) in settings.items():
            self._set(values, '--' + name, value, '--config {}, line {}: '.format(path, line))
        for action in required:
            action.required = action.dest not in self._places
        for word in words:
            action = self._option_string_actions.get(word.split('=')[0])
            self._places.pop(getattr(action, 'dest', None), None)       # set anew
        return values

    def _set(self, values, flag, value, place):
        action = self._option_string_actions.get(flag)
        if action is None:
            self.error('{}unknown flag {}{}'.format(place, flag, self._meant(flag)))
        if action.dest in ('help', 'config'):
            self.error('{}{} belongs on the command line'.format(place, flag))
        if value is None:
            return
        set_before, before = action.dest in self._places, getattr(values, action.dest, None)
        self._places[action.dest] = place
        if action.nargs == 0:
            switched = config.switched(value)
            if switched is None:
                self.error('argument {}: is a switch, true or false'.format(flag))
            setattr(values, action.dest, switched == action.const)
        else:
            words = [flag] + value if isinstance(value, list) else ['{}={}'.format(flag, value)]
            _, unknown = self.parse_known_args(words, values)
            if unknown:
                self.error('argument {}: takes one value'.format(flag))
        if set_before and getattr(values, action.dest) != before:
            self.error('argument {}: contradicts an earlier line'.format(flag))


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


def add_device(add):
    """Add --device by `add`, which is add_argument of a parser or group."""
    add('--device', default='auto', choices=('auto', 'npu', 'cuda', 'cpu'),
        help='where to run; auto: NPU, then CUDA, then CPU')
