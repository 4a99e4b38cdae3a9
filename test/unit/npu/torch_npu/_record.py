"""A record, step by step, of the operators launched on the npu and of what makes the host wait for it.

EMULATED_NPU_RECORD=FILE writes it when the process ends; start() starts it too, and otherwise it is off:

    [{'begins': place, 'operators': {signature\tplace: count}, 'waits': {kind\tplace: count}}, ...]

A step begins where a side stream is entered, to copy a batch; the first one is what precedes that. A signature is what
a chip that compiles operators online keys on: name, shapes, types, strides where not dense, attributes; no scalar's
value. Views launch nothing. A place is the program's lines, innermost first. Kinds: 'read' (a value, a copy to the
host, a shape that depends on data), 'read later' (a copy not waited for), 'write' (a copy from the host that waits for
all queued work) and 'synchronize'.
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
DATA_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_steps = []             # empty: off


def start(place=''):
    """Begin a step, and return it."""
    _steps.append({'begins': place, 'operators': collections.Counter(), 'waits': collections.Counter()})
    return _steps[-1]


def next_step():
    """Begin a step if the record is on."""
    if _steps:
        start(_place())


def wait(kind):
    """The host waits for the npu."""
    if _steps:
        _steps[-1]['waits'][kind + '\t' + _place()] += 1


def operator(op, args, kwargs, results, takes_indices=False):
    """An operator has been launched; an index by a mask looks for its non-zero elements."""
    if not _steps:
        return
    kinds = {argument.name: str(argument.type) for argument in op._schema.arguments}
    given = [_described(value, kinds[name]) for name, value in [*zip(kinds, args), *sorted(kwargs.items())]]
    _steps[-1]['operators']['{}({}) -> {}\t{}'.format(op, ', '.join(given), _described(results), _place())] += 1
    if (any(getattr(index, 'dtype', None) in (torch.bool, torch.uint8) for index in args[1])
            if takes_indices else not DATA_DEPENDENT.isdisjoint(op.tags)):
        wait('read')


def _described(value, kind=''):
    if isinstance(value, torch.Tensor):
        strides = '' if value.is_contiguous() else ' {} + {}'.format(value.stride(), value.storage_offset())
        return '{}{}{}'.format(value.dtype, list(value.shape), strides)
    if isinstance(value, (list, tuple)):
        return '[{}]'.format(', '.join(_described(item, kind) for item in value))
    scalar = isinstance(value, float) or 'number' in kind or 'Tensor' in kind
    return type(value).__name__ if scalar else str(value)


def _place():
    """The main thread's lines follow those of an autograd thread, for which it waits."""
    frames, lines = [sys._getframe(), sys._current_frames()[threading.main_thread().ident]], []
    for frame in frames[:1 + (threading.current_thread() is not threading.main_thread())]:
        while frame:
            path = frame.f_code.co_filename
            if path.startswith(ROOT) and not path.startswith(OUTSIDE):
                lines.append('{}:{} {}'.format(path[len(ROOT):], frame.f_lineno, frame.f_code.co_name))
            frame = frame.f_back
    return ' < '.join(lines)


if os.environ.get('EMULATED_NPU_RECORD'):
    start()
    atexit.register(lambda: Path(os.environ['EMULATED_NPU_RECORD']).write_text(json.dumps(_steps)))
