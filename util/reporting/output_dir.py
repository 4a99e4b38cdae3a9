"""The output folder: an earlier run's results are set aside under a dated name, never deleted nor mixed with new ones;
config.yaml keeps all flags of a run.

`python -m util.reporting.output_dir FOLDER` does it for the launchers, before they open their log.
"""
import fnmatch
import json
import os
import re
import sys

from util.config.parser import value_of
from util.errors import UserError, run
from util.file_lock import RunLock
from util.files import lines, set_aside, write_atomically
from util.log import logger
from util.text import one_line

RESULTS = ('log.txt', 'checkpoint-*.pth', '*.json', 'bad_images.txt', 'report.html', 'eval.html')
RESULTS_AND_LOGS = RESULTS + ('*.log',)


def prepare(folder, resume='', results=RESULTS):
    """Make `folder` ready for a run.

    Args:
        results: file patterns that betray an earlier run; a launcher's own log lies there before the run starts.
        resume: the --resume flag.
    Returns:
        where the earlier results went, or None.
    Raises:
        UserError: the folder cannot be made or written.
    """
    # A restarted run has its launcher's log open there.
    continues = _is_resumed(folder, resume) or 'MAE_RESTART' in os.environ
    # The log of a node other than the first is no result, it may have started sooner.
    names = [name for name in (os.listdir(folder) if os.path.isdir(folder) else ())
             if not re.search(r'_node\d+\.log$', name)]
    found = any(fnmatch.filter(names, pattern) for pattern in results)
    aside = set_aside(folder) if found and not continues else None
    _make(folder)
    if not os.access(folder, os.W_OK):
        raise UserError('--output_dir {}: may not be written'.format(folder))
    return aside


def enter(folder, resume=''):
    """Lock `folder` for this run and make it ready.

    Returns:
        RunLock, list of the places where earlier results went.
    Raises:
        UserError: the folder cannot be made or written, or another run is at work there.
    """
    _make(folder)
    lock = RunLock(folder)
    aside = prepare(folder, resume)
    if aside:                                   # and the lock went with it
        lock.release(aside)
        lock = RunLock(folder)
    for name in fnmatch.filter(os.listdir(folder), '*.tmp-*'):
        os.remove(os.path.join(folder, name))   # of a run that was killed while it wrote
    return lock, [aside] if aside else []


def _is_resumed(folder, resume):
    """Whether --resume `resume` continues the run in `folder`: by 'auto', or a checkpoint there."""
    return resume == 'auto' or bool(resume) and os.path.dirname(os.path.abspath(resume)) == os.path.abspath(folder)


def _make(folder):
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError('--output_dir {}: cannot be made ({})'.format(folder, error.strerror)) from error


def set_log_aside(folder, records):
    """Rename log.txt where it holds lines that are not in `records`, which are to take its place, and the report.html
    that shows them; returns new names."""
    paths = [os.path.join(folder, name) for name in ('log.txt', 'report.html')]
    return [set_aside(path) for path in paths if os.path.exists(path)] if set(lines(paths[0])) - set(records) else []


def save_flags(args, processes, evaluation=False):
    """Write all flags into the output folder in a form that --config takes; a file of other flags there is renamed.

    A --resume within the same folder, and its --start_epoch, are not part of the recipe: a comment names it, and the
    file repeats the whole run. The effective batch that an absolute --lr was used with is put down.
    Args:
        args: the parsed flags.
        processes: their number.
        evaluation: they are not of a training: the file is eval_config.yaml, not config.yaml.
    Returns:
        list of the new names of files that were set aside.
    """
    values = {flag: value for flag, value in vars(args).items() if flag != 'config'}
    head = '# All flags of a run; --config takes this file.\n'
    if not evaluation and _is_resumed(args.output_dir, args.resume):
        head += '# Resumed by --resume {}.\n'.format(one_line(args.resume))
        values.update(resume='', start_epoch=None)
    if values.get('lr') is not None and values.get('base_batch_size') is None:
        values['base_batch_size'] = args.batch_size * args.accum_iter * processes
    text = ['{}: {}\n'.format(flag, _yaml(values[flag])) for flag in sorted(values)]
    path, asides = os.path.join(args.output_dir, 'eval_config.yaml' if evaluation else 'config.yaml'), []
    try:
        if os.path.exists(path):
            with open(path, encoding='utf-8', errors='replace') as file:
                old = [line for line in file if not line.startswith('#')]
            asides += [set_aside(path)] if old != text else []
        write_atomically(path, (head + ''.join(text)).encode())
    except OSError as error:
        logger.error('error: %s: not written (%s)', path, error.strerror)
    return asides


def _yaml(value):
    if isinstance(value, str):      # what cannot be printed is spelt out, as YAML does it too
        return '"{}"'.format(one_line(value.replace('\\', '\\\\').replace('"', '\\"')))
    return json.dumps(value)


def _main(folder, *flags):
    if os.path.isdir(folder):
        RunLock(folder).release()       # refused where a run is at work there
    aside = prepare(folder, value_of('--resume', flags) or '', RESULTS_AND_LOGS)
    if aside:
        print('earlier results kept in {}'.format(one_line(aside)))


if __name__ == '__main__':
    run(_main, *sys.argv[1:])
