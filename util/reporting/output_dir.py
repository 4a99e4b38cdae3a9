"""The output folder: whether a run continues there, moving an earlier run's results aside, and config.yaml.

A folder is entered when training is about to start, after every check: a failed start leaves it as it was.
"""
import fnmatch
import glob
import json
import os
import re
import time
from argparse import Namespace
from contextlib import suppress
from typing import List, Optional, Sequence, Tuple

from util.errors import UserError
from util.file_lock import OWNER, RunLock
from util.files import lines, open_regular, set_aside, unused, write_atomically
from util.log import logger
from util.text import one_line

EVENTS = 'events.out.tfevents.*'
# What runs and their launchers write; other files in the folder are the user's and stay.
RUN_FILES = ('log.txt', 'summary.json', 'checkpoint-*.pth', 'report.html', 'eval.json', 'eval.html', 'eval_config.yaml',
             'bad_images.txt', 'bad_steps.json', 'prof/trace.json', 'prof/*_ascend_pt', '910[AB]_*.log', EVENTS)
DATED = re.compile(r'\.\d{8}-\d{6}\b')     # in the name of what has been set aside already


def restarted() -> bool:
    """Whether an earlier attempt of this launch (--max_restarts) has entered the output folder."""
    marker = os.environ.get('MAE_ENTERED', '')      # a file of util.tools.launch, empty until then
    return 'MAE_RESTART' in os.environ and not (os.path.exists(marker) and os.path.getsize(marker) == 0)


def continues(folder: str, checkpoint: Optional[str]) -> bool:
    """Whether a training is a restart or resumes from a checkpoint in `folder`: then earlier results stay there.

    `checkpoint`: its path, given or found by --resume auto; None or '' for none.
    """
    if restarted():
        return True
    return bool(checkpoint) and os.path.realpath(os.path.dirname(checkpoint) or '.') == os.path.realpath(folder)


def enter(folder: str, new: bool = False, log_dir: Optional[str] = None) -> Tuple[RunLock, List[str]]:
    """Lock `folder` for this run, move an earlier run's files aside if `new`, and give the launcher's log its name.

    Args:
        new: a training that does not continue here; see `continues`.
        log_dir: the flag; TensorBoard files there move too where it is within the folder.
    Returns:
        the lock; new paths of earlier results.
    Raises:
        UserError: the folder cannot be made or written, or another run holds it.
    """
    lock = RunLock(folder)
    try:
        moved = _move_earlier(folder, log_dir) if new else []
        _remove_leftovers(folder)
        return lock, moved + take_log()
    except OSError as error:
        lock.release()
        raise UserError('--output_dir {}: cannot be written ({})'.format(folder, error.strerror)) from error


def _remove_leftovers(folder):
    """Remove temporary files of runs that were killed while they wrote; those of tools have other names."""
    for name in os.listdir(folder):
        target, _, process = name.rpartition('.tmp-')
        if any(fnmatch.fnmatch(target, pattern) for pattern in (*RUN_FILES, 'config.yaml', OWNER)) \
                and not os.path.exists('/proc/' + process.split('-')[0]):
            with suppress(OSError):
                os.remove(os.path.join(folder, name))


def take_log() -> List[str]:
    """Rename the launcher's LOG.starting to LOG, once a launch; returns the new name of an earlier LOG, if any."""
    log, marker, aside = os.environ.get('MAE_LOG_FILE'), os.environ.get('MAE_ENTERED'), []
    if log and not restarted() and os.path.exists(log + '.starting'):
        aside = [set_aside(log)] if os.path.exists(log) else []
        os.rename(log + '.starting', log)       # the launcher's tee keeps writing to it
    if marker:
        with suppress(OSError), open(marker, 'r+') as file:
            file.write('entered\n')
    return aside


def _move_earlier(folder, log_dir):
    """Move an earlier run's files into the new subfolder earlier.DATE; returns [its name], or [] without such files."""
    root = os.path.realpath(folder)
    relative = os.path.relpath(os.path.realpath(log_dir or folder), root)
    patterns = RUN_FILES + (() if relative.split(os.sep)[0] in ('.', '..') else (os.path.join(relative, EVENTS),))
    paths = {path for pattern in patterns for path in glob.glob(os.path.join(glob.escape(root), pattern))
             if not DATED.search(os.path.basename(path))}
    if not paths:
        return []
    if os.path.lexists(os.path.join(root, 'config.yaml')):   # marks no folder: a user may have written it
        paths.add(os.path.join(root, 'config.yaml'))
    date = time.strftime('%Y%m%d-%H%M%S', time.localtime(max(os.lstat(path).st_mtime for path in paths)))
    place = unused(os.path.join(root, 'earlier.' + date))
    for path in sorted(paths):
        target = os.path.join(place, os.path.relpath(path, root))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.rename(path, target)
    return [place]


def report_no_checkpoint(folder: str) -> None:
    """Log that --resume auto has found none in `folder`, and the newest one that earlier results there hold."""
    found = sorted(glob.glob(os.path.join(glob.escape(folder), 'earlier.*', 'checkpoint-*.pth')),
                   key=lambda path: os.lstat(path).st_mtime)
    logger.warning('--resume auto: no checkpoint in %s, training starts from the beginning%s', folder,
                   '; earlier results have {}'.format(found[-1]) if found else '')


def set_log_aside(folder: str, records: Sequence[str]) -> List[str]:
    """Rename log.txt and report.html if the log holds lines not in `records`, which replace it; returns new names."""
    paths = [os.path.join(folder, name) for name in ('log.txt', 'report.html')]
    return [set_aside(path) for path in paths if os.path.lexists(path)] if set(lines(paths[0])) - set(records) else []


def save_flags(args: Namespace, processes: int, evaluation: bool = False) -> List[str]:
    """Write all flags into config.yaml, or eval_config.yaml of an `evaluation`, in a form that --config takes.

    The file repeats the whole run: --resume within the same folder is a comment there, without --start_epoch. With --lr
    it records the effective batch size as base_batch_size. An existing file with other flags is renamed; returns its
    new name.
    """
    values = {flag: value for flag, value in vars(args).items() if flag != 'config'}
    head = '# All flags of a run; --config takes this file.\n'
    if not evaluation and (args.resume == 'auto' or continues(args.output_dir, args.resume)):
        head += '# Resumed by --resume {}.\n'.format(one_line(args.resume))
        values.update(resume='', start_epoch=None)
    if values.get('lr') is not None and values.get('base_batch_size') is None:
        values['base_batch_size'] = args.batch_size * args.accum_iter * processes
    text = ['{}: {}\n'.format(flag, _yaml(values[flag])) for flag in sorted(values)]
    path, asides = os.path.join(args.output_dir, 'eval_config.yaml' if evaluation else 'config.yaml'), []
    try:
        if os.path.lexists(path):
            with open_regular(path, 'r', encoding='utf-8', errors='replace') as file:
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
