"""Argument parser with one-line errors, types of numbers, and the YAML file of --config.

A value in the file is the text that would follow the flag on the command line: 1e-3, 010 and no mean the same in both.
`python -m util.config.parser FILE` prints which flags a file sets, for the launchers.
"""
import argparse
import difflib
import math
import os
import re
import sys
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

from util.errors import USER_ERROR_STATUS, UserError, report_once_per_node, run
from util.files import open_regular
from util.text import one_line

LARGEST = 2 ** 31 - 1       # integer: of seeds, and of counts on a device
NULL = ('', '~', 'null', 'Null', 'NULL')        # YAML's null: the flag keeps its default
HASHED_URL = re.compile(    # of weights, as PyTorch Hub names them
    r'https?://[^/?#\s][!-~]*?/(?P<name>[\w.+%-]*-(?P<hash>[0-9a-f]{8,64})\.(pth|pt))([?#][!-~]*)?', re.ASCII)
VISIBLE = {'npu': 'ASCEND_RT_VISIBLE_DEVICES', 'cuda': 'CUDA_VISIBLE_DEVICES'}     # environment variables
SWITCH = {'true': True, 'yes': True, 'on': True, 'false': False, 'no': False, 'off': False}     # YAML's booleans


class Parser(argparse.ArgumentParser):
    """ArgumentParser with one-line errors, no abbreviations and, by --config, a YAML file of any flags."""

    def __init__(self, **options):
        self.flags = {}             # {'--name': argparse.Action}
        self._config = ''           # the file of --config, for errors
        super().__init__(allow_abbrev=False, **options)

    def add_argument(self, *names, **options) -> argparse.Action:
        """argparse's, with the default at the end of the help text."""
        return self._register(super().add_argument(*names, **options))

    def adder(self, group: Any) -> Callable[..., argparse.Action]:
        """add_argument for an argument group of this parser."""
        return lambda *names, **options: self._register(group.add_argument(*names, **options))

    def _register(self, action):
        self.flags.update((name, action) for name in action.option_strings)
        if action.type is None and action.nargs != 0:
            action.type = os.path.expanduser        # ~, which no shell expands in --flag=~/x or a YAML file
        hidden = action.required or isinstance(action.default, bool)
        if not hidden and action.default not in (None, '', argparse.SUPPRESS):
            action.help += ' (default: %(default)s)'
        return action

    def error(self, message: str) -> None:
        """End the process with one line and status 2."""
        report_once_per_node()
        self.exit(USER_ERROR_STATUS, 'error: {} (see {} --help{})\n'.format(one_line(message), self.prog,
                                                                           one_line(self._config)))

    def parse_args(self, args: Optional[Sequence[str]] = None, namespace: Any = None) -> argparse.Namespace:
        """Parse the flags; an error ends the process with one line."""
        argv = sys.argv[1:] if args is None else list(args)
        path = _value_in_argv('--config', argv) if '--config' in self.flags else None
        if path is not None:
            self._config = ' and ' + path
            try:
                settings = read_config(path)
            except UserError as error:
                self.error(str(error))
            # Of a flag given twice, the last value counts.
            argv = [word for name, value in settings.items() for word in self._argv('--' + name, value)] + argv
        parsed, unknown = self.parse_known_args(argv, namespace)
        if unknown:
            self._unknown(unknown[0].split('=')[0])
        return parsed

    def _unknown(self, flag):
        close = difflib.get_close_matches(flag, self.flags, n=1, cutoff=.8)
        self.error('unknown argument {}{}'.format(flag, '; did you mean {}?'.format(close[0]) if close else ''))

    def _argv(self, flag, value):
        """A flag of a file as command-line arguments; `value` is read_config's."""
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
                self.error('argument {}: a switch takes true or false'.format(flag))
            # Off: the opposite switch if there is one (--pin_mem: --no_pin_mem), else the default.
            return [name for name, other in self.flags.items()
                    if other.dest == action.dest and other.const == (action.const == switched)]
        if isinstance(value, str):
            return ['{}={}'.format(flag, value)]
        if action.nargs is None or any(item.startswith('--') for item in value):
            self.error('argument {}: takes no list of this kind'.format(flag))
        return [flag, *value]


def number(kind: type, low: float = -math.inf, high: float = math.inf, excluded: Sequence[float] = ()) -> Callable:
    """argparse type: int or float from `low` to `high`, both included unless `excluded`."""
    limits = ['{}{} {}'.format(sign, '' if limit in excluded else '=', limit)
              for sign, limit in (('>', low), ('<', high)) if math.isfinite(limit)]
    high = min(high, LARGEST) if kind is int else high
    expected = ('an integer ' if kind is int else 'a number ') + ' and '.join(limits)

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and math.isfinite(value)) or value in excluded:
            raise argparse.ArgumentTypeError('{:.60} is not {}'.format(repr(text), expected.rstrip()))
        return value
    return parse


def word_or(word: str, value: Any, number_type: Callable) -> Callable:
    """argparse type: `word` for `value`, or a number."""
    return lambda text: value if text.lower() == word else number_type(text)


positive_int = number(int, 1)
non_negative_int = number(int, 0)
port = number(int, 1, 65535)
non_negative = number(float, 0)
positive = number(float, 0, excluded=[0])
fraction = number(float, 0, 1)
fraction_below_one = number(float, 0, 1, excluded=[1])
open_fraction = number(float, 0, 1, excluded=[0, 1])


def is_url(path: str) -> bool:
    """Whether `path` has a scheme: http://..., file://... or the like."""
    return bool(re.match(r'[A-Za-z][A-Za-z0-9+.-]*://', path))


def weights(text: str) -> str:
    """argparse type: location of weights, 'auto' or ''."""
    location = os.path.expanduser(text)
    fault = None if text in ('', 'auto') else _location_fault(location)
    if fault:
        raise argparse.ArgumentTypeError('{} {}'.format(location, fault))
    return location


def _location_fault(location: str) -> Optional[str]:
    """Why weights cannot be loaded from a path or URL, as the end of a sentence; None if the location is valid."""
    if is_url(location):
        if not re.match('https?://', location):
            return 'is not an http:// or https:// URL; download it and give the path of the file'
        return None if HASHED_URL.fullmatch(location) else \
            'has no hash in its name (name-<at least 8 digits of its SHA-256>.pth) to check the download; download ' \
            'it yourself and give the path of the file'
    if re.fullmatch(r'[\w.-]+/[\w.-]+', location) and not os.path.lexists(os.path.dirname(location)):
        return 'is not a file; if it is a model of the Hugging Face hub, download its folder (hf download {} ' \
               '--local-dir FOLDER) and give that'.format(location)
    if not os.path.isdir(location):
        return None if os.path.isfile(location) else 'is not a file'
    return None if os.path.isfile(os.path.join(location, 'config.json')) else 'is a folder without config.json'


def add_device(add: Callable) -> None:
    """Add --device by `add`, add_argument of a parser or group."""
    add('--device', type=_device_type, default='auto', choices=('auto', *VISIBLE, 'cpu'),
        help='device type; auto: NPU, then CUDA, then CPU')


def _device_type(text):
    kind, colon, index = text.partition(':')
    if colon and kind in VISIBLE:
        raise argparse.ArgumentTypeError('{!r} is not a type of device; give {}, and choose one by {}={} in the '
                                         'environment'.format(text, kind, VISIBLE[kind], index))
    return text


def read_config(path: str) -> Dict[str, Union[str, List[str], None]]:
    """The flags in a YAML file, by names without dashes; None for the default; UserError for a file of another form."""
    try:
        import yaml
    except ImportError as error:
        raise UserError('--config {}: requires PyYAML: pip install pyyaml'.format(path)) from error
    try:
        with open_regular(os.path.expanduser(path), 'r', encoding='utf-8') as file:
            # Nodes, unlike values, keep duplicate keys and distinguish "null" from null.
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
        raise ValueError(name + ' is neither a scalar nor a list of scalars')
    return node.value


def _value_in_argv(flag, argv):
    """The value of a flag with one value among arguments of any other flags; None without it."""
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest='value')
    return parser.parse_known_args(argv)[0].value


def value_of(flag: str, argv: Sequence[str]) -> Optional[str]:
    """The text of a flag in `argv`, else in the --config file it names; None if neither sets it.

    Switches have a text in the file only. UserError: see read_config.
    """
    value, path = _value_in_argv(flag, argv), _value_in_argv('--config', argv)
    if value is None and path is not None:
        value = read_config(path).get(flag[2:])
    return value if isinstance(value, str) else None


def _main(path):
    for name in read_config(path):
        print(one_line(name))


if __name__ == '__main__':
    run(_main, *sys.argv[1:])
