"""report.html: what a run did, for people to look at; eval.html of an evaluation. Written whole, by process 0.

The page is the file report.html beside this one, with what is to be shown in it as JSON: see `page`.
"""
import html
import json
import math
import os
import platform
import re
import shlex
import sys
import time

import numpy
import PIL

from util.config.train_flags import finetune_parser, linprobe_parser, pretrain_parser
from util.devices.host import software
from util.errors import Preempted
from util.files import set_aside, write_atomically
from util.log import logger
from util.text import duration, first_line, one_line

TEMPLATE, PLACEHOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'report.html'), '<!-- report -->'
_NAMES = {'train_loss': 'training', 'test_loss': 'validation', 'test_acc1': 'Acc@1', 'test_acc5': 'Acc@5',
          'knn_acc1': 'k-NN', 'test_raw_loss': 'validation, not averaged', 'test_raw_acc1': 'Acc@1, not averaged',
          'test_raw_acc5': 'Acc@5, not averaged', 'train_lr': 'lr', 'data_wait': 'data wait'}
# Title, what the names of its values have in them, and whether the vertical axis begins at 0.
_CHARTS = (('Loss', 'loss', False), ('Accuracy, %', 'acc', False), ('Learning rate', 'train_lr', True),
           ('Throughput, images/s', 'FPS', True), ('Waiting for data, share of the time', 'data_wait', True))


def page(title, state, words, lead, figures, sections):
    """The whole document as bytes. All that users name is data of its script, or escaped.

    Args:
        title, words, lead: plain text: heading, how the run stands, what it was about.
        state: 'running', 'finished', 'stopped' or 'ended'.
        figures: [(name, text)] of those that matter most; without JavaScript they alone are shown.
        sections: [(heading, [(kind, content)])], the kinds being those of `draw` in report.html.
    """
    data = json.dumps(_plain({'title': title, 'state': state, 'words': words, 'lead': lead, 'figures': figures,
                              'sections': [part for part in sections if part[1]]}), allow_nan=False)
    rows = ['<tr><th scope="row">{}</th><td>{}</td></tr>\n'.format(*(html.escape(one_line(text)) for text in row))
            for row in figures]
    caption = html.escape(one_line('{}, {} {}. {}'.format(title, state, words, lead)))
    content = '<table class="facts">\n<caption>{}</caption>\n{}</table>\n<script type="application/json" id="data">' \
              '{}</script>'.format(caption, ''.join(rows), data.replace('<', '\\u003c'))
    with open(TEMPLATE, encoding='utf-8') as file:
        return file.read().replace(PLACEHOLDER, content).encode()


def _plain(value):
    """A value for the page's script: texts in one line that shows all of them, a number that is not finite as text."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, int) or isinstance(value, float) and math.isfinite(value):
        return value
    return one_line(value)


class Report:
    """Of a training, by the main process; nothing elsewhere. What fails is one line, and training continues.

    Args:
        images: of the training set.
        run_logger: RunLogger, whose records the curves show.
        report_part: pictures: ReconstructionSnapshots or ConfusionTracker.
    """

    def __init__(self, args, session, precision, images, run_logger, report_part):
        self._args, self._session, self._precision, self._images = args, session, precision, images
        self._run_logger, self._report_part, self._result = run_logger, report_part, None
        self._path = os.path.join(args.output_dir, 'report.html')

    def epoch(self, epoch):
        """Take the pictures that are due after an epoch, and write where --report_every says so."""
        every, last = self._args.report_every, epoch + 1 == self._args.epochs
        due = last or bool(every) and (epoch + 1) % every == 0
        _attempt(self._session, self._path, lambda: self._report_part.after(epoch, due, self._run_logger))
        if due and not last:
            self._write('running', 'epoch {} of {} is done'.format(epoch + 1, self._args.epochs))

    def finish(self, result):
        """Take note of the Final result."""
        self._result = result

    def close(self, error=None):
        """Write at the end of the run; `error` is the exception that has ended it."""
        if isinstance(error, Preempted):
            self._write('stopped', str(error))
        elif error is not None:
            self._write('ended', str(error) or type(error).__name__)
        elif self._result is not None:
            self._write('finished', 'all {} epochs'.format(self._args.epochs) if self._args.epochs > 1 else '1 epoch')

    def _write(self, state, words):
        _attempt(self._session, self._path, lambda: write_atomically(self._path, self._page(state, words)))

    def _page(self, state, words):
        records = [json.loads(line) for line in self._run_logger.records]
        title = '{} · {}'.format(_kind(self._args)[0], self._args.model)
        lead = '{:,} images of {}, results in {}'.format(self._images, self._args.data_path, self._args.output_dir)
        sections = [('Curves', _curves(records)), *self._report_part.sections(),
                    *_how(self._args, self._session, self._precision, state == 'finished' and self._result)]
        return page(title, state, '{}: {}'.format(time.strftime('%Y-%m-%d %H:%M'), words), lead,
                    _figures(records, self._result, self._session.elapsed), sections)


def of_evaluation(args, session, precision, result, confusion):
    """Write eval.html, on process 0; an older one is set aside, as eval.json is.

    Args:
        result: what eval.json holds.
        confusion: ConfusionTracker.
    """
    path = os.path.join(args.output_dir, 'eval.html')

    def write():
        shown = [(name, form.format(result[key])) for name, form, key in (
            ('Acc@1', '{:.2f}%', 'acc1'), ('Acc@5', '{:.2f}%', 'acc5'), ('loss', '{:.4f}', 'loss'),
            ('images', '{}', 'images'), ('images/s', '{:.1f}', 'images_per_sec'))]
        shown.append(('duration', duration(result['duration_sec'])))
        content = page('Evaluation · {}'.format(args.model), 'finished', time.strftime('%Y-%m-%d %H:%M'),
                       '{} on {}'.format(result['checkpoint'], args.data_path), shown,
                       [*confusion.sections(), *_how(args, session, precision, result)])
        if os.path.exists(path):
            set_aside(path)
        write_atomically(path, content)
    _attempt(session, path, write)


def _attempt(session, path, action):
    try:
        if session.world.is_main:
            action()
    # A full disk, a device without memory for the pictures, lines of log.txt that another program has written.
    except (OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
        logger.error('error: %s: not written (%s); the run continues without it', path,
                     getattr(error, 'strerror', None) or first_line(error))


def _kind(args):
    """(what a run of these flags is called, what makes the parser of its flags)."""
    if not hasattr(args, 'nb_classes'):
        return 'Pre-training', pretrain_parser
    return ('Fine-tuning', finetune_parser) if hasattr(args, 'layer_decay') else ('Linear probing', linprobe_parser)


def _figures(records, result, elapsed):
    """[(name, text)] of the figures that matter most."""
    last, result = records[-1] if records else {}, result or {}
    best = max(records, key=lambda record: record.get('test_acc1', -1), default={})
    waits = [record.get('data_wait', 0.) for record in records]
    found = [('Acc@1', '{:.2f}%', last.get('test_acc1')),
             ('best, epoch {}'.format(best.get('epoch')), '{:.2f}%', best.get('test_acc1')),
             ('training loss', '{:.5g}', last.get('train_loss')),
             ('images/s', '{:.1f}', result.get('images_per_sec', last.get('FPS'))),
             ('waiting for data', '{:.1%}', sum(waits) / len(waits) if 'data_wait' in last else None),
             ('parameters', '{:.2f} M', last['n_parameters'] / 1e6 if 'n_parameters' in last else None)]
    return [*((name, form.format(value)) for name, form, value in found if value is not None),
            ('this run', duration(result.get('duration_sec', elapsed)))]


def _curves(records):
    """Charts, and the table of the epochs, newest first."""
    if not records:
        return []
    names = {name for record in records for name, value in record.items() if isinstance(value, (int, float))}
    columns = {name: [record.get(name) for record in records] for name in sorted(names)}
    charts = []
    for title, word, zero in _CHARTS:
        curves = [{'name': _NAMES.get(name, name), 'values': columns[name]}
                  for name in sorted(columns, key=lambda name: (not name.startswith('train'), name))
                  if word in name and any(isinstance(_plain(value), (int, float)) for value in columns[name])]
        charts += [{'title': title, 'curves': curves, 'zero': zero}] if curves else []
    head = sorted((name for name in columns if name != 'n_parameters'), key=lambda name: name != 'epoch')
    table = {'label': 'Values of each epoch', 'head': head, 'rows': list(zip(*(columns[name][::-1] for name in head)))}
    return [('charts', {'x': [int(record['epoch']) for record in records], 'charts': charts}),
            ('folded', ('Values of each epoch', 'table', table))]


def _how(args, session, precision, result):
    """Sections on how the run came about: result, command, flags, environment."""
    final = [(name.replace('_', ' '), value) for name, value in (result or {}).items()]
    parser = _kind(args)[1]()
    flags = [('--' + name, _in_words(value)) for name, value in sorted(vars(args).items())]
    changed = [flag for flag in flags if _in_words(parser.get_default(flag[0][2:])) != flag[1]]
    others = [flag for flag in flags if flag not in changed]
    return [('Final result', [('facts', final)] if final else []),
            ('Command', [('command', reproducing(session.world).split('\n'))]),
            ('Configuration', [('facts', changed),
                               ('folded', ('{} flags at their defaults'.format(len(others)), 'facts', others))]),
            ('Environment', [('facts', _environment(args, session, precision))])]


def _in_words(value):
    if isinstance(value, (list, tuple)):
        return ' '.join(map(_in_words, value))
    if value is None or value == '':
        return '–'
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    return '{:g}'.format(value) if isinstance(value, float) else str(value)


def _environment(args, session, precision):
    """[(name, value)] of where the run took place."""
    accelerator, world = session.accelerator, session.world
    over = ' over ' + accelerator.backend if world.size > 1 else ''
    return [('device', '{} ({}; {})'.format(accelerator.name, accelerator.type, accelerator.reason)),
            ('processes', '{}{}, {} loader processes each'.format(world.size, over, args.num_workers)),
            ('precision', precision.name), *accelerator.versions().items(),
            ('cores', session.cores or os.cpu_count()),
            *software().items(), ('numpy', numpy.__version__), ('Pillow', PIL.__version__),
            ('system', platform.platform())]


def reproducing(world, argv=None, environ=os.environ):
    """The command that starts this run again with as many processes, in the repository's root; a line for each flag.

    Args:
        world: World.
        argv: script and flags; default: this process's.
    """
    script, *flags = sys.argv if argv is None else argv
    start = ['python']
    if 'RANK' in environ and 'WORLD_SIZE' in environ:
        flags = [flag for flag in flags if not re.match('--local[-_]rank=', flag)]      # a launcher's doing
        local = int(environ.get('LOCAL_WORLD_SIZE') or world.size)
        if world.size > 1:
            start += ['util/tools/launch.py', '--nproc', str(local)]
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
