"""config.yaml: all flags of a run, kept in its output folder in a form that --config takes again."""
import json
import os

from util.errors import one_line
from util.files import write_atomically
from util.log import logger
from util.output_dir import is_resumed, set_aside

TRAINING, EVALUATION = 'config.yaml', 'eval_config.yaml'        # file names


def save(args, processes, name):
    """Write all flags as `name` into the output folder; a file of other flags there is renamed.

    A --resume within the same folder, and its --start_epoch, are not part of the recipe: a comment names it, and the
    file repeats the whole run. The effective batch that an absolute --lr was used with is put down.
    Args:
        args: the parsed flags.
        processes: their number.
    Returns:
        list of the new names of files that were set aside.
    """
    values = {flag: value for flag, value in vars(args).items() if flag != 'config'}
    head = ['# All flags of a run; --config takes this file.']
    if name == TRAINING and is_resumed(args.output_dir, args.resume):
        head.append('# Resumed by --resume {}.'.format(one_line(args.resume)))
        values.update(resume='', start_epoch=None)
    if values.get('lr') is not None and values.get('base_batch_size') is None:
        values['base_batch_size'] = args.batch_size * args.accum_iter * processes
    lines = ['{}: {}'.format(flag, _yaml(values[flag])) for flag in sorted(values)]
    path, asides = os.path.join(args.output_dir, name), []
    try:
        if os.path.exists(path) and _settings(path) != lines:
            asides.append(set_aside(path))
        write_atomically(path, ''.join(line + '\n' for line in head + lines).encode())
    except OSError as error:
        logger.error('error: %s: not written (%s)', path, error.strerror)
    return asides


def _settings(path):
    """The lines of a file without its comments."""
    with open(path, encoding='utf-8', errors='replace') as file:
        return [line for line in file.read().split('\n') if line and not line.startswith('#')]


def _yaml(value):
    if isinstance(value, str):      # what cannot be printed is spelt out, as YAML does it too
        return '"{}"'.format(one_line(value.replace('\\', '\\\\').replace('"', '\\"')))
    if isinstance(value, (list, tuple)):
        return '[{}]'.format(', '.join(map(_yaml, value)))
    return json.dumps(value)
