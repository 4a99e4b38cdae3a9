"""The command that starts a run again: quoted for a shell, with the processes that it had."""
import os
import re
import shlex
import sys


def reproducing(world, argv=None, environ=os.environ):
    """The command line of this run, as text to paste into a shell in the repository's root; a line for each flag.

    Args:
        world: util.distributed.World.
        argv: script and flags; default: this process's.
    """
    script, *flags = sys.argv if argv is None else argv
    start = ['python']
    if 'RANK' in environ and 'WORLD_SIZE' in environ:
        flags = [flag for flag in flags if not re.match('--local[-_]rank=', flag)]      # a launcher's doing
        local = int(environ.get('LOCAL_WORLD_SIZE') or world.size)
        if world.size > 1:
            start += ['util/launch.py', '--nproc', str(local)]
        if world.size > local:          # on several nodes the command of the first
            start += ['--nnodes', str(world.size // local), '--node_rank', '0', '--master_addr', 'ADDRESS']
    elif world.size > 1 and '--dist_on_itp' in flags:
        start = ['mpirun', '-n', str(world.size), 'python']
    elif world.size > 1 and 'SLURM_PROCID' in environ:
        start = ['srun', '--ntasks={}'.format(world.size), 'python']
    begun = ' '.join(map(quoted, [*start, os.path.basename(script)]))
    return begun + ''.join((' \\\n    ' if flag.startswith('--') else ' ') + quoted(flag) for flag in flags)


def quoted(word):
    """A word as bash reads it back to the last byte, in one line."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'{}'".format(''.join('\\x{:02x}'.format(byte) for byte in os.fsencode(word)))
