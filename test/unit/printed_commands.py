"""What a launcher prints under DRY_RUN=1, held against the parsers that would read it."""
import os
import shlex

from conftest import ROOT

from util import arguments, launch

PARSERS = {'main_pretrain.py': arguments.parse_pretrain, 'main_finetune.py': arguments.parse_finetune,
           'main_linprobe.py': arguments.parse_linprobe}


def check_printed(command, root=ROOT):
    """Parse a command that a launcher of `root` prints, as the processes which it starts would.

    Returns:
        (flags of util/launch.py, or None where one process is started without it; flags of the script).
    """
    interpreter, script, *flags = shlex.split(command)
    assert os.access(interpreter, os.X_OK), command
    started = None
    if os.path.relpath(script, str(root)) == os.path.join('util', 'launch.py'):
        started, (script, *flags) = launch.parse(flags)
    return started, PARSERS[os.path.relpath(script, str(root))](flags)
