"""A parser of flags whose errors are one line, and the types of its numbers. Nothing here imports torch."""
import argparse
import difflib
import math
import sys

from util import config
from util.errors import USER_ERROR_STATUS, UserError, let_the_first_speak, one_line

SWITCH = {'true': True, 'yes': True, 'on': True, 'false': False, 'no': False, 'off': False}     # in a file

class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line that names the flag, and which takes no abbreviated flags.

    Where it has a flag --config, the YAML file of that name gives values to any flag; the command line wins.
    """

    def __init__(self, **options):
        self.flags = {}             # {'--name': argparse.Action}
        self._source = ''           # the file whose flags are parsed
        super().__init__(allow_abbrev=False, **options)

    def add_argument(self, *names, **options):
        """argparse's, with the default at the end of the help text."""
        return self._note(super().add_argument(*names, **options))

    def adder(self, group):
        """A function like add_argument that adds to a group of this parser."""
        return lambda *names, **options: self._note(group.add_argument(*names, **options))

    def _note(self, action):
        self.flags.update((name, action) for name in action.option_strings)
        hidden = action.required or isinstance(action.default, bool)
        if not hidden and action.default not in (None, '', argparse.SUPPRESS):
            action.help += ' (default: %(default)s)'
        return action

    def error(self, message):
        """End the process with one line."""
        let_the_first_speak()
        self.exit(USER_ERROR_STATUS, 'error: {} (see {} --help)\n'.format(one_line(self._source + message), self.prog))

    def parse_args(self, args=None, namespace=None):
        """The flags as a Namespace; a mistake ends the process with one line."""
        words = sys.argv[1:] if args is None else list(args)
        path = config.on_command_line('--config', words) if '--config' in self.flags else None
        return self._parse(words, namespace if path is None else self._read(path))

    def _parse(self, words, namespace=None):
        parsed, unknown = self.parse_known_args(words, namespace)
        if unknown:
            self._unknown(unknown[0].split('=')[0])
        return parsed

    def _unknown(self, flag):
        close = difflib.get_close_matches(flag, self.flags, n=1)
        self.error('unknown argument {}{}'.format(flag, '; did you mean {}?'.format(close[0]) if close else ''))

    def _read(self, path):
        """What a file sets, and other flags' defaults, as a Namespace; no longer required of the command line."""
        required = [action for action in self.flags.values() if action.required]
        for action in required:
            action.required = False
        try:
            settings = config.read(path)
        except UserError as error:
            self.error(str(error))
        self._source = '--config {}: '.format(path)
        values = self._parse([word for name, value in settings.items() for word in self._words('--' + name, value)])
        self._source = ''
        for action in required:
            action.required = getattr(values, action.dest) is None
        return values

    def _words(self, flag, value):
        """A flag of a file as words of a command line; `value` as config.read gives it."""
        action = self.flags.get(flag)
        if action is None:
            self._unknown(flag)
        if flag in ('--help', '--config'):
            self.error('{} belongs on the command line'.format(flag))
        if value is None:
            return []
        if action.nargs == 0:
            switched = SWITCH.get(str(value).lower())
            if switched is None:
                self.error('argument {}: is a switch, true or false'.format(flag))
            # Switched off: its opposite if there is one (--pin_mem: --no_pin_mem), else off is the default.
            return [name for name, other in self.flags.items()
                    if other.dest == action.dest and other.const == (action.const == switched)]
        if isinstance(value, str):
            return ['{}={}'.format(flag, value)]
        if action.nargs is None or any(item.startswith('--') for item in value):
            self.error('argument {}: takes no such list'.format(flag))
        return [flag, *value]


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
