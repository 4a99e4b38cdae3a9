"""A parser of flags whose errors are one line, the types of its numbers, and the YAML file of --config.

A value in the file is the text that would follow the flag on the command line, so that 1e-3, 010 and no mean what they
mean there. `python -m util.config.parser FILE` prints which flags a file sets, for the launchers. Nothing here
imports torch.
"""
import argparse
import difflib
import math
import sys

from util.errors import USER_ERROR_STATUS, UserError, report_once_per_node, run
from util.text import one_line

NULL = ('', '~', 'null', 'Null', 'NULL')        # of YAML: the flag keeps its default
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
        report_once_per_node()
        self.exit(USER_ERROR_STATUS, 'error: {} (see {} --help)\n'.format(one_line(self._source + message), self.prog))

    def parse_args(self, args=None, namespace=None):
        """The flags as a Namespace; a mistake ends the process with one line."""
        words = sys.argv[1:] if args is None else list(args)
        path = on_command_line('--config', words) if '--config' in self.flags else None
        parsed, unknown = self.parse_known_args(words, namespace if path is None else self._read(path))
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
            settings = read_config(path)
        except UserError as error:
            self.error(str(error))
        self._source = '--config {}: '.format(path)
        values = self.parse_args([word for name, value in settings.items() for word in self._words('--' + name, value)])
        self._source = ''
        for action in required:
            action.required = getattr(values, action.dest) is None
        return values

    def _words(self, flag, value):
        """A flag of a file as words of a command line; `value` as read_config gives it."""
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


def number(kind, low=-math.inf, high=math.inf, excluded=()):
    """An argparse type: `kind`, int or float, from `low` to `high`, both included, but for the `excluded` ones."""
    expected = '{} from {} to {}'.format('a whole number' if kind is int else 'a number', low, high)
    expected += ''.join(', not {}'.format(value) for value in excluded)

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and math.isfinite(value)) or value in excluded:
            raise argparse.ArgumentTypeError('{!r} is not {}'.format(text, expected))
        return value
    return parse


positive_int = number(int, 1)
non_negative_int = number(int, 0)
non_negative = number(float, 0)
positive = number(float, 0, excluded=[0])
fraction = number(float, 0, 1)
fraction_below_one = number(float, 0, 1, excluded=[1])
open_fraction = number(float, 0, 1, excluded=[0, 1])


def add_device(add):
    """Add --device by `add`, which is add_argument of a parser or group."""
    add('--device', default='auto', choices=('auto', 'npu', 'cuda', 'cpu'),
        help='where to run; auto: NPU, then CUDA, then CPU')


def read_config(path):
    """The flags of a YAML file: {name without dashes: text, list of texts, or None for the default}.

    Raises:
        UserError: it cannot be read, is not YAML, or is not a mapping of flags, each set once, to values.
    """
    try:
        import yaml
    except ImportError as error:
        raise UserError('--config {}: PyYAML, which reads it, is not installed: pip install pyyaml'.format(path)
                        ) from error
    try:
        with open(path, encoding='utf-8') as file:
            # Nodes still have keys that occur twice, and tell "null" in quotes from null.
            root = yaml.compose(file, Loader=yaml.BaseLoader)
        if root and not isinstance(root, yaml.MappingNode):
            raise ValueError('not lines "flag: value"')
        flags = {}
        for key, value in root.value if root else ():
            name = _text(key, 'a key')
            name = name[2:] if name.startswith('--') else name
            if name in flags:
                raise ValueError(name + ' is set twice')
            if isinstance(value, yaml.SequenceNode):
                flags[name] = [_text(item, name) for item in value.value]
            else:
                flags[name] = None if value.value in NULL and value.style is None else _text(value, name)
        return flags
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError('--config {}: {}'.format(path, ' '.join(str(error).split()))) from error


def _text(node, name):
    if not isinstance(node.value, str):
        raise ValueError(name + ' is neither a text nor a list of texts')
    return node.value


def on_command_line(flag, command):
    """The value that a list of words gives to a flag with one value, whatever other flags there are; None without."""
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest='value')
    return parser.parse_known_args(command)[0].value


def value_of(flag, command):
    """The text that a command line, or else the --config file that it names, gives to a flag; None where neither does.

    A switch has a text in a file only.
    Raises:
        UserError: see read_config.
    """
    value, path = on_command_line(flag, command), on_command_line('--config', command)
    if value is None and path is not None:
        value = read_config(path).get(flag[2:])
    return value if isinstance(value, str) else None


def _main(path):
    for name in read_config(path):
        print(one_line(name))


if __name__ == '__main__':
    run(_main, *sys.argv[1:])
