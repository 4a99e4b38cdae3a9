"""--to torchscript: a traced graph, which torch.jit.load runs without this program."""
import os
import subprocess
import sys
import warnings

import torch

from util.errors import UserError
from util.exported_part import named
from util.files import atomic_file

# Runs in a process of its own, where nothing of this program is.
TRY = '''import sys, torch
torch.set_num_threads(1)
graph = torch.jit.load(sys.argv[1])
with torch.no_grad():
    found = graph(*torch.load(sys.argv[2]))
torch.save(list(found) if isinstance(found, tuple) else [found], sys.argv[3])
'''


def write(part, path):
    """Trace, write, run in a new process, and compare.

    Returns:
        lines that say what was compared.
    Raises:
        UserError: the outputs differ, or the new process fails.
    """
    with part.graph() as graph, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')         # of what the trace keeps constant, and that PyTorch has newer ways
        traced = torch.jit.trace(graph, tuple(value[:-1] for value in part.inputs.values()), check_trace=False)
        with atomic_file(path) as file:
            torch.jit.save(traced, file)
    inputs, outputs = path + '.inputs', path + '.outputs'
    torch.save(list(part.inputs.values()), inputs)
    done = subprocess.run([sys.executable, '-c', TRY, path, inputs, outputs], cwd=os.path.dirname(path),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise UserError('--to torchscript: the graph does not run in a new process: {}'
                        .format(done.stdout.decode(errors='replace').strip().split('\n')[-1]))
    return [part.compare(named(part.output_names, torch.load(outputs)), 'torch.jit in a new process')]


def loading(part, path):
    """Lines of Python that load it."""
    shapes = ', '.join('torch.zeros{}'.format(tuple(value.shape)) for value in part.inputs.values())
    return ['import torch', 'model = torch.jit.load({!r})'.format(path),
            '{} = model({})'.format(', '.join(part.output_names), shapes)]
