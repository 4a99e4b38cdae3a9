"""--config: flags from a YAML file.

A value is the text that would follow the flag on the command line, so that 1e-3, 010 and no mean what they mean there.
`python -m util.config FILE` prints the names of the flags that a file sets, for the launchers.
"""
import argparse
import sys

from util.errors import UserError, one_line, run

NULL = ('', '~', 'null', 'Null', 'NULL')        # of YAML: the flag keeps its default
SWITCH = {'true': True, 'yes': True, 'on': True, 'false': False, 'no': False, 'off': False}


def read(path):
    """The flags of a YAML file: {name without dashes: text, list of texts, or None for the default}.

    Raises:
        UserError: it cannot be read, is not YAML, or is not a mapping of flags, each set once, to values.
    """
    def fault(what, *values):
        return UserError('--config {}: {}'.format(path, what.format(*values)))

    flags = {}
    for key, value in _pairs(path, fault):
        name = key[2:] if isinstance(key, str) and key.startswith('--') else key
        if not isinstance(name, str):
            raise fault('{} is not the name of a flag', name)
        if name in flags:
            raise fault('{} is set twice', name)
        if not all(isinstance(item, str) for item in (value if isinstance(value, list) else [value or ''])):
            raise fault('{} is neither a value nor a list of values', name)
        flags[name] = value
    return flags


def _pairs(path, fault):
    """The (key, value) pairs of a YAML mapping; what `fault` makes is raised where there is none."""
    try:
        import yaml
    except ImportError as error:
        raise fault('PyYAML, which reads it, is not installed: pip install pyyaml') from error

    class Loader(yaml.BaseLoader):
        """Builds texts, None and lists alone, and keeps keys that occur twice."""

        def construct_mapping(self, node, deep=False):
            return self.construct_pairs(node, deep)

        def construct_scalar(self, node):
            text = super().construct_scalar(node)
            return None if text in NULL and node.style is None else text        # without quotes

    try:
        with open(path, encoding='utf-8') as file:
            pairs = yaml.load(file, Loader=Loader)
    except OSError as error:
        raise fault('cannot be read ({})', error.strerror) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:       # ValueError: not UTF-8
        raise fault('not YAML ({})', ' '.join(str(error).split())) from error
    if pairs is None:
        return []
    if not (isinstance(pairs, list) and all(isinstance(pair, tuple) for pair in pairs)):
        raise fault('is not a list of lines "flag: value"')
    return pairs


def on_command_line(flag, command):
    """The value that a list of words gives to a flag with one value, whatever other flags there are; None without."""
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest='value')
    return parser.parse_known_args(command)[0].value


def value_of(flag, command):
    """The text that a command line, or else the --config file that it names, gives to a flag; None where neither does.

    A switch has a text in a file only.
    Raises:
        UserError: see read.
    """
    value, path = on_command_line(flag, command), on_command_line('--config', command)
    if value is None and path is not None:
        value = read(path).get(flag[2:])
    return value if isinstance(value, str) else None


def switched(text):
    """What a text says of a switch: True or False; None where it says nothing."""
    return SWITCH.get(text.lower()) if isinstance(text, str) else None


def _main(path):
    for name in read(path):
        print(one_line(name))


if __name__ == '__main__':
    run(_main, *sys.argv[1:])
