"""Report page of a run (report.html) or an evaluation (eval.html), written by the main process.

The page is the template report.html of this folder with its data embedded as JSON: see `render_page`.
"""
import json
import math
import os
import platform
import shlex
import sys
import time
from argparse import Namespace
from datetime import timedelta
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy
import PIL
import timm
import torch
import torchvision

from util.devices.precision import FullPrecision
from util.errors import Preempted
from util.files import set_aside, write_atomically
from util.log import logger
from util.text import first_line, one_line

TEMPLATE, PLACEHOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'report.html'), '/* report */'
_LABELS = {'train_loss': 'training', 'test_loss': 'validation', 'test_acc1': 'Acc@1', 'test_acc5': 'Acc@5',
           'knn_acc1': 'k-NN', 'train_lr': 'lr', 'data_wait': 'data wait'}
# Title, substring of the keys of log.txt in the chart, whether the vertical axis begins at 0.
_CHARTS = (('Loss', 'loss', False), ('Accuracy, %', 'acc', False), ('Learning rate', 'train_lr', True),
           ('Throughput, images/s', 'FPS', True), ('Waiting for data, share of the time', 'data_wait', True))


def render_page(title: str, state: str, detail: str, subtitle: str, metrics: list, sections: list) -> bytes:
    """Render the page. All text from users is JSON data.

    Args:
        title, detail, subtitle: plain text: heading, progress of the run, its data and folder.
        state: 'running', 'finished', 'stopped' or 'ended'.
        metrics: [(name, text)] of the key metrics.
        sections: [(heading, [(kind, content)])]; kinds are those of `render` in report.html.
    """
    data = json.dumps(_jsonable({'title': title, 'state': state, 'detail': detail, 'subtitle': subtitle,
                                 'metrics': metrics, 'sections': [part for part in sections if part[1]]}),
                      allow_nan=False)
    with open(TEMPLATE, encoding='utf-8') as file:
        return file.read().replace(PLACEHOLDER, data.replace('<', '\\u003c')).encode()


def _jsonable(value):
    """Strict JSON: strings on one line without control characters; non-finite numbers as strings."""
    if isinstance(value, dict):
        return {name: _jsonable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if value is None or isinstance(value, int) or isinstance(value, float) and math.isfinite(value):
        return value
    return one_line(value)


class Report:
    """Report of a training run, written by the main process. A failure is logged in one line; training continues.

    Args:
        session: Session; images: number of training images; run_logger: RunLogger, whose records give the curves.
        report_part: images: ReconstructionSnapshots or ConfusionTracker.
    """

    def __init__(self, args: Namespace, session: Any, precision: FullPrecision, images: int, run_logger: Any,
                 report_part: Any):
        self._args, self._session, self._precision, self._images = args, session, precision, images
        self._run_logger, self._report_part = run_logger, report_part
        self.result: Optional[Dict[str, Any]] = None        # of a finished run
        self._path = os.path.join(args.output_dir, 'report.html')

    def on_epoch_end(self, epoch: int) -> None:
        """Update the report part, and write the report every --report_every epochs."""
        every, last = self._args.report_every, epoch + 1 == self._args.epochs
        due = last or bool(every) and (epoch + 1) % every == 0
        _log_failure(self._session, self._path, lambda: self._report_part.on_epoch_end(epoch, due))
        if due and not last:
            self._write('running', 'epoch {} of {} is done'.format(epoch + 1, self._args.epochs))

    def close(self, error: Optional[BaseException] = None) -> None:
        """Write the last report; `error` is the exception that ended the run."""
        if isinstance(error, Preempted):
            self._write('stopped', str(error))
        elif error is not None:
            self._write('ended', str(error) or type(error).__name__)
        elif self.result is not None:
            self._write('finished', 'all {} epochs'.format(self._args.epochs) if self._args.epochs > 1 else '1 epoch')

    def _write(self, state, detail):
        _log_failure(self._session, self._path, lambda: write_atomically(self._path, self._page(state, detail)))

    def _page(self, state, detail):
        records = [json.loads(line) for line in self._run_logger.records]
        title = '{} · {}'.format(_task(self._args), self._args.model)
        subtitle = '{:,} images of {}, results in {}'.format(self._images, self._args.data_path, self._args.output_dir)
        sections = [('Curves', _curves(records)), *self._report_part.report_sections(),
                    *_setup_sections(self._args, self._session, self._precision, state == 'finished' and self.result)]
        return render_page(title, state, '{}: {}'.format(time.strftime('%Y-%m-%d %H:%M'), detail), subtitle,
                           _key_metrics(records, self.result, time.time() - self._session.started), sections)


def write_evaluation_report(args: Namespace, session: Any, precision: FullPrecision, result: Dict[str, Any],
                            confusion: Any) -> None:
    """Main process: write eval.html of the content of eval.json and a ConfusionTracker; an older one is set aside."""
    path = os.path.join(args.output_dir, 'eval.html')

    def write():
        metrics = [(name, form.format(result[key])) for name, form, key in (
            ('Acc@1', '{:.2f}%', 'acc1'), ('Acc@5', '{:.2f}%', 'acc5'), ('loss', '{:.4f}', 'loss'),
            ('images', '{}', 'images'), ('images/s', '{:.1f}', 'images_per_sec'))]
        metrics.append(('duration', timedelta(seconds=round(result['duration_sec']))))
        content = render_page('Evaluation · {}'.format(args.model), 'finished', time.strftime('%Y-%m-%d %H:%M'),
                              '{} on {}'.format(result['checkpoint'], args.data_path), metrics,
                              [*confusion.report_sections(), *_setup_sections(args, session, precision, result)])
        if os.path.exists(path):
            set_aside(path)
        write_atomically(path, content)
    _log_failure(session, path, write)


def _log_failure(session: Any, path: str, action: Callable) -> None:
    """Run `action` on the main process; log a failure in one line."""
    try:
        if session.world.is_main:
            action()
    # A full disk, a device out of memory for the images, lines of log.txt written by another program.
    except (OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
        logger.error('error: %s: not written (%s); the run continues without it', path,
                     getattr(error, 'strerror', None) or first_line(error))


def _task(args):
    """Name of the task, by flags that others do not have."""
    if not hasattr(args, 'nb_classes'):
        return 'Pre-training'
    return 'Fine-tuning' if hasattr(args, 'layer_decay') else 'Linear probing'


def _key_metrics(records, result, elapsed):
    """[(name, text)] of the key metrics."""
    last, result = records[-1] if records else {}, result or {}
    best = max(records, key=lambda record: record.get('test_acc1', -1), default={})
    waits = [record.get('data_wait', 0.) for record in records]
    metrics = [('Acc@1', '{:.2f}%', last.get('test_acc1')),
               ('best, epoch {}'.format(best.get('epoch')), '{:.2f}%', best.get('test_acc1')),
               ('training loss', '{:.5g}', last.get('train_loss')),
               ('images/s', '{:.1f}', result.get('images_per_sec', last.get('FPS'))),
               ('waiting for data', '{:.1%}', sum(waits) / len(waits) if 'data_wait' in last else None),
               ('parameters', '{:.2f} M', last['n_parameters'] / 1e6 if 'n_parameters' in last else None)]
    return [*((name, form.format(value)) for name, form, value in metrics if value is not None),
            ('this run', timedelta(seconds=round(result.get('duration_sec', elapsed))))]


def _curves(records):
    """Charts, and a table of all epochs, newest first."""
    if not records:
        return []
    keys = {key for record in records for key, value in record.items() if isinstance(value, (int, float))}
    columns = {key: [record.get(key) for record in records] for key in sorted(keys)}
    charts = []
    for title, part, from_zero in _CHARTS:
        curves = [{'name': _LABELS.get(key, key), 'values': columns[key]}
                  for key in sorted(columns, key=lambda key: (not key.startswith('train'), key))
                  if part in key and any(isinstance(_jsonable(value), (int, float)) for value in columns[key])]
        charts += [{'title': title, 'curves': curves, 'zero': from_zero}] if curves else []
    head = sorted((key for key in columns if key != 'n_parameters'), key=lambda key: key != 'epoch')
    table = {'label': 'Values of each epoch', 'head': head, 'rows': list(zip(*(columns[key][::-1] for key in head)))}
    return [('charts', {'x': [int(record['epoch']) for record in records], 'charts': charts}),
            ('details', ('Values of each epoch', 'table', table))]


def _setup_sections(args, session, precision, result):
    """Sections on result, command, configuration and environment."""
    final = [(key.replace('_', ' '), value) for key, value in (result or {}).items()]
    flags = [('--' + name, value) for name, value in sorted(vars(args).items())]
    return [('Final result', [('facts', final)] if final else []),
            ('Command', [('command', ['python ' + ' '.join(map(shlex.quote, sys.argv))])]),
            ('Configuration', [('details', ('All flags', 'facts', flags))]),
            ('Environment', [('facts', environment(args, session, precision))])]


def environment(args: Namespace, session: Any, precision: FullPrecision) -> List[Tuple[str, Any]]:
    """[(name, value)] of device, processes, precision, software and system, also for the head of the log."""
    accelerator, world = session.accelerator, session.world
    versions = {'Python': platform.python_version(), **{package.__name__: package.__version__ for package in (
        torch, torchvision, timm, numpy, PIL)}}
    backend = ' over ' + accelerator.backend if world.size > 1 else ''
    return [('device', '{} ({}; {})'.format(accelerator.name, accelerator.type, accelerator.reason)),
            ('processes', '{}{}, {} loader processes each'.format(world.size, backend, args.num_workers)),
            ('cores', session.cores or os.cpu_count()), ('precision', precision.name), *accelerator.details.items(),
            ('software', ', '.join(map(' '.join, versions.items()))), ('system', platform.platform())]

