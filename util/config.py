"""--config: flags from a YAML file.

A value is read as the text that would follow the flag on the command line, so that 1e-3, 010 and no mean what they mean
there. `python -m util.config FILE` prints the names that a file sets, for the launchers.
"""
import sys
from collections import namedtuple

from util.errors import UserError, one_line, run

_SWITCH = {'true': True, 'yes': True, 'on': True, 'false': False, 'no': False, 'off': False}
_NULL = 'tag:yaml.org,2002:null'
# line: where it stands, from 1; value: text, a list of texts, or None for the default.
Setting = namedtuple('Setting', 'line value')


def read(path):
    """The settings of a file, {name of the flag without dashes: Setting}.

    Raises:
        UserError: it cannot be read, is no YAML, or is not a list of names with plain values.
    """
    try:
        import yaml
    except ImportError as error:
        raise UserError('--config {}: PyYAML, which reads it, is not installed: pip install pyyaml'
                        .format(path)) from error
    try:
        with open(path, encoding='utf-8') as file:
            root = yaml.compose(file, Loader=yaml.SafeLoader)       # nodes only: nothing is built from them
    except OSError as error:
        raise UserError('--config {}: cannot be read ({})'.format(path, error.strerror)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, 'problem_mark', None)
        raise UserError('--config {}{}: is no YAML ({})'.format(
            path, ', line {}'.format(mark.line + 1) if mark else '',
            getattr(error, 'problem', None) or str(error).split('\n')[0])) from error
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise UserError('--config {}: is no list of lines "flag: value"'.format(path))
    settings = {}
    for key, value in root.value:
        line = key.start_mark.line + 1
        if not isinstance(key.value, str):
            raise _fault(path, line, 'what stands before the colon is no name of a flag')
        name = _name(key.value)
        if name in settings:
            raise _fault(path, line, '{} is set a second time, after line {}'.format(name, settings[name].line))
        settings[name] = Setting(line, _plain(value, path, line, name))
    return settings


def _name(key):
    """Name of a flag, which may be written with its dashes."""
    return key[2:] if key.startswith('--') else key


def _plain(node, path, line, name):
    """A node's text, or those of its items."""
    if isinstance(node.value, str):
        return None if node.tag == _NULL else node.value
    if node.id == 'mapping' or not all(isinstance(item.value, str) for item in node.value):
        raise _fault(path, line, '{} is neither a value nor a list of values'.format(name))
    return [item.value for item in node.value]


def _fault(path, line, what):
    return UserError('--config {}, line {}: {}'.format(path, line, what))


def value_of(flag, command):
    """The text that a command line, or else the --config file that it names, gives to a flag of one value;
    None where neither does.

    The last one counts. A switch has a text in a file only.
    Raises:
        UserError: see read.
    """
    value, path = _on_command_line(flag, command), _on_command_line('--config', command)
    if value is None and path is not None:
        value = read(path).get(_name(flag), Setting(0, None)).value
    return value if isinstance(value, str) else None


def switched(value):
    """What a value says of a switch: True or False; None where it says nothing."""
    return _SWITCH.get(value.lower()) if isinstance(value, str) else None


def _on_command_line(flag, command):
    value = None
    for i, word in enumerate(command):
        if word == flag and i + 1 < len(command):
            value = command[i + 1]
        if word.startswith(flag + '='):
            value = word.split('=', 1)[1]
    return value


def _main(path):
    for name in read(path):
        print(one_line(name))


if __name__ == '__main__':
    run(_main, *sys.argv[1:])
