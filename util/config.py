"""--config: flags from a YAML file.

A value is the text that would follow the flag on the command line, so that 1e-3, 010 and no mean what they mean there.
`python -m util.config FILE` prints the names of the flags that a file sets, for the launchers.
"""
import argparse
import sys

from util.errors import UserError, one_line, run

NULL = ('', '~', 'null', 'Null', 'NULL')        # of YAML: the flag keeps its default


def read(path):
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
        UserError: see read.
    """
    value, path = on_command_line(flag, command), on_command_line('--config', command)
    if value is None and path is not None:
        value = read(path).get(flag[2:])
    return value if isinstance(value, str) else None


def _main(path):
    for name in read(path):
        print(one_line(name))


if __name__ == '__main__':
    run(_main, *sys.argv[1:])
