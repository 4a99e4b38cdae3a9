"""A record of the operators launched on the npu, and of what makes the host wait for it, step by step.

Off by default; EMULATED_NPU_RECORD=FILE writes it to a file when the process ends, and start() returns it:

    [{'begins': place, 'operators': {signature\tplace: count}, 'waits': {kind\tplace: count}}, ...]

A step begins where a batch is copied to the npu on a side stream; what precedes the first batch is step 0. A signature
is what a chip that compiles operators online keys on: name, shapes, types, strides where not dense, and attributes, but
no values of scalars. Views launch nothing. A place lists the program's lines, innermost first. Kinds: 'read' (of a
value or a tensor, or a shape that depends on data), 'read later' (a copy to the host that is not waited for), 'write'
(a blocking copy from the host, which waits for the queue too) and 'synchronize'.
"""
import atexit
import collections
import json
import os
import sys
import threading
from pathlib import Path

import torch

ROOT = str(Path(__file__).resolve().parents[4]) + os.sep
OUTSIDE = ROOT + 'test', ROOT + '.'
INDEXING = 'aten::index', 'aten::index_put', 'aten::index_put_', 'aten::_index_put_impl_'
DATA_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_steps = []


def start():
    """Start a new record, which is the list that is returned."""
    _steps[:] = [_step('')]
    return _steps


def begin_step():
    """What follows belongs to a new step."""
    if _steps:
        _steps.append(_step(_place()))


def _step(place):
    return {'begins': place, 'operators': collections.Counter(), 'waits': collections.Counter()}


def wait(kind):
    """The host waits for the npu."""
    if _steps:
        _steps[-1]['waits'][kind + '\t' + _place()] += 1


def operator(op, args, kwargs, results):
    """An operator has been launched."""
    if not _steps:
        return
    place = _place()
    given = [*zip(op._schema.arguments, args), *((a, kwargs[a.name]) for a in op._schema.arguments if a.name in kwargs)]
    signature = '{}({}) -> {}'.format(op, ', '.join(_described(value, str(a.type)) for a, value in given),
                                      _described(results))
    _steps[-1]['operators'][signature + '\t' + place] += 1
    if _reads(op, args):
        _steps[-1]['waits']['read\t' + place] += 1


def _reads(op, args):
    """Whether the host needs values to go on; an index by a mask looks for its non-zero elements."""
    if op._schema.name in INDEXING:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return not DATA_DEPENDENT.isdisjoint(op.tags)


def _described(value, kind=''):
    if isinstance(value, torch.Tensor):
        dense = value.is_contiguous() or value.dim() == 0
        return '{}{}{}'.format(str(value.dtype)[6:], list(value.shape) if value.device.type == 'npu' else value.dim(),
                               '' if dense else ' {} + {}'.format(value.stride(), value.storage_offset()))
    if isinstance(value, (list, tuple)):
        return '[' + ', '.join(_described(item, kind) for item in value) + ']'
    return type(value).__name__ if isinstance(value, float) or 'number' in kind.lower() else str(value)


def _place():
    """Lines of the program that lead here; autograd runs in a thread of its own, while the main one waits."""
    def lines(frame):
        while frame:
            path = frame.f_code.co_filename
            if path.startswith(ROOT) and not path.startswith(OUTSIDE):
                yield '{}:{} {}'.format(path[len(ROOT):], frame.f_lineno, frame.f_code.co_name)
            frame = frame.f_back
    main = threading.main_thread()
    stacks = [sys._getframe()] + [sys._current_frames()[main.ident]] * (threading.current_thread() is not main)
    return ' < '.join(line for frame in stacks for line in lines(frame))


def _write(path):
    Path(path).write_text(json.dumps(_steps))


if os.environ.get('EMULATED_NPU_RECORD'):
    start()
    atexit.register(_write, os.environ['EMULATED_NPU_RECORD'])
