"""report.html: what a run did, for people to look at; eval.html of an evaluation. Written whole, by process 0."""
import json
import os
import platform
import time

import numpy
import PIL

from util import affinity, report_page, runtime as runtimes
from util.arguments import finetune_parser, linprobe_parser, pretrain_parser
from util.command import reproducing
from util.curves import figure, short
from util.errors import Stopped, first_line
from util.files import write_atomically
from util.gallery import NoGallery
from util.log import logger
from util.output_dir import set_aside
from util.throughput import duration

NAME, EVALUATION = 'report.html', 'eval.html'
# A full disk, a device without memory for the pictures, lines of log.txt that another program has written.
FAILURES = (OSError, RuntimeError, ValueError, LookupError, TypeError)
_NAMES = {'train_loss': 'training', 'test_loss': 'validation', 'test_acc1': 'Acc@1', 'test_acc5': 'Acc@5',
          'knn_acc1': 'k-NN', 'test_raw_loss': 'validation, not averaged', 'test_raw_acc1': 'Acc@1, not averaged',
          'test_raw_acc5': 'Acc@5, not averaged'}


class Report:
    """Of a training. What cannot be drawn or written is told in one line; training goes on.

    Args:
        images: of the training set.
        logbook: util.logbook.Logbook, whose records the curves show.
        exhibit: pictures: util.gallery.Reconstructions or util.mistakes.Mistakes.
    """

    def __init__(self, args, runtime, precision, images, logbook, exhibit):
        self._args, self._runtime, self._precision, self._images = args, runtime, precision, images
        self._logbook, self._exhibit, self._result = logbook, exhibit, None
        self._path = os.path.join(args.output_dir, NAME)

    def epoch(self, epoch):
        """Take the pictures that are due after an epoch, and write where --report_every says so."""
        every, last = self._args.report_every, epoch + 1 == self._args.epochs
        due = last or bool(every) and (epoch + 1) % every == 0
        self._try(lambda: self._exhibit.after(epoch, due, self._logbook))
        if due and not last:
            self._write('running', 'epoch {} of {} is done'.format(epoch + 1, self._args.epochs))

    def finish(self, result):
        """Take note of the Final result."""
        self._result = result

    def close(self, error=None):
        """Write at the end of the run; `error` is the exception that has ended it."""
        if isinstance(error, Stopped):
            self._write('stopped', str(error))
        elif error is not None:
            self._write('ended', str(error) or type(error).__name__)
        elif self._result is not None:
            self._write('finished', 'all {} epochs'.format(self._args.epochs) if self._args.epochs > 1 else '1 epoch')

    def _write(self, state, words):
        self._try(lambda: write_atomically(self._path, self._page(state, words)))

    def _try(self, action):
        try:
            action()
        except FAILURES as error:
            _tell(self._path, error)

    def _page(self, state, words):
        records = [json.loads(line) for line in self._logbook.records]
        title = '{} · {}'.format(_kind(self._args)[0], self._args.model)
        return report_page.page(title, ''.join([
            report_page.head(title, state, '{}: {}'.format(time.strftime('%Y-%m-%d %H:%M'), words),
                             '{:,} images of {}, results in {}'.format(self._images, self._args.data_path,
                                                                     self._args.output_dir)),
            report_page.tiles(_figures(records, self._result, self._runtime.elapsed)),
            report_page.section('Curves', report_page.charts(_curves(records)) + report_page.epochs(records)),
            *(report_page.section(*part) for part in self._exhibit.sections()),
            *_how(self._args, self._runtime, self._precision, state == 'finished' and self._result)]))


class SilentReport:
    """Of the other processes."""

    def epoch(self, epoch):
        pass

    def finish(self, result):
        pass

    def close(self, error=None):
        pass


def of_training(args, runtime, precision, images, logbook, exhibit):
    """The report of this process: see Report."""
    if runtime.world.is_main:
        return Report(args, runtime, precision, images, logbook, exhibit)
    return SilentReport()


def of_evaluation(args, runtime, precision, result, mistakes=None):
    """Write eval.html, on process 0; an older one is set aside, as eval.json is.

    Args:
        result: what eval.json holds.
        mistakes: util.mistakes.Mistakes.
    """
    if not runtime.world.is_main:
        return
    path, title = os.path.join(args.output_dir, EVALUATION), 'Evaluation · {}'.format(args.model)
    shown = [('Acc@1', '{:.2f}%'.format(result['acc1'])), ('Acc@5', '{:.2f}%'.format(result['acc5'])),
             ('loss', '{:.4f}'.format(result['loss'])), ('images', result['images']),
             ('images/s', short(result['images_per_sec'])), ('duration', duration(result['duration_sec']))]
    try:
        content = report_page.page(title, ''.join([
            report_page.head(title, 'finished', time.strftime('%Y-%m-%d %H:%M'),
                             '{} on {}'.format(result['checkpoint'], args.data_path)),
            report_page.tiles(shown), *(report_page.section(*part) for part in (mistakes or NoGallery()).sections()),
            *_how(args, runtime, precision, result)]))
        if os.path.exists(path):
            set_aside(path)
        write_atomically(path, content)
    except FAILURES as error:
        _tell(path, error)


def _tell(path, error):
    logger.error('error: %s: not written (%s); the run goes on without it', path,
                 getattr(error, 'strerror', None) or first_line(error))


def _kind(args):
    """(what a run of these flags is called, what makes the parser of its flags)."""
    if not hasattr(args, 'nb_classes'):
        return 'Pre-training', pretrain_parser
    return ('Fine-tuning', finetune_parser) if hasattr(args, 'layer_decay') else ('Linear probing', linprobe_parser)


def _figures(records, result, elapsed):
    """[(name, text)] of the figures that matter most."""
    last, result = records[-1] if records else {}, result or {}
    shown = []
    if 'test_acc1' in last:
        best = max(records, key=lambda record: record.get('test_acc1', -1))
        shown += [('Acc@1', '{:.2f}%'.format(last['test_acc1'])),
                  ('best, epoch {}'.format(best['epoch']), '{:.2f}%'.format(best['test_acc1']))]
    if 'train_loss' in last:
        shown.append(('training loss', short(last['train_loss'])))
    rate = result.get('images_per_sec', last.get('FPS'))
    if rate is not None:
        shown.append(('images/s', '{:.0f}'.format(rate) if rate >= 100 else '{:.1f}'.format(rate)))
    if 'data_wait' in last:
        waits = [record.get('data_wait', 0.) for record in records]
        shown.append(('waiting for data', '{:.1%}'.format(sum(waits) / len(waits))))
    if 'n_parameters' in last:
        shown.append(('parameters', '{:.2f} M'.format(last['n_parameters'] / 1e6)))
    return [*shown, ('this run', duration(result.get('duration_sec', elapsed)))]


def _curves(records):
    """The charts, as HTML."""
    x = [record['epoch'] for record in records]
    if not x:
        return []
    numbers = sorted({name for record in records for name, value in record.items()
                      if isinstance(value, (int, float))}, key=lambda name: (not name.startswith('train'), name))

    def named(*words):
        return {_NAMES.get(name, name): [record.get(name) for record in records] for name in numbers
                if any(word in name for word in words)}

    waits = [None if wait is None else 100 * wait for wait in named('data_wait').get('data_wait', [])]
    return [figure('Loss', x, named('loss')), figure('Accuracy, %', x, named('acc')),
            figure('Learning rate', x, {'lr': named('train_lr').get('train_lr', [])}, from_zero=True),
            figure('Throughput, images/s', x, {'FPS': named('FPS').get('FPS', [])}, from_zero=True),
            figure('Waiting for data, % of the time', x, {'data wait': waits}, from_zero=True)]


def _how(args, runtime, precision, result):
    """Sections on how the run came about: result, command, flags, environment."""
    final = report_page.facts([(name.replace('_', ' '), short(value) if isinstance(value, float) else value)
                               for name, value in result.items()]) if result else ''
    parser = _kind(args)[1]()
    flags = [('--' + name, _in_words(value)) for name, value in sorted(vars(args).items())]
    changed = [flag for flag in flags if _in_words(parser.get_default(flag[0][2:])) != flag[1]]
    others = [flag for flag in flags if flag not in changed]
    return [report_page.section('Final result', final),
            report_page.section('Command', report_page.command(reproducing(runtime.world))),
            report_page.section('Configuration', report_page.facts(changed) + report_page.folded(
                '{} flags at their defaults'.format(len(others)), report_page.facts(others))),
            report_page.section('Environment', report_page.facts(_environment(args, runtime, precision)))]


def _in_words(value):
    if isinstance(value, (list, tuple)):
        return ' '.join(map(_in_words, value))
    if value is None or value == '':
        return '–'
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    return '{:g}'.format(value) if isinstance(value, float) else str(value)


def _environment(args, runtime, precision):
    """[(name, value)] of where the run took place."""
    accelerator, world = runtime.accelerator, runtime.world
    over = ' over ' + accelerator.backend if world.size > 1 else ''
    return [('device', '{} ({}; {})'.format(accelerator.name, accelerator.type, accelerator.reason)),
            ('processes', '{}{}, {} loader processes each'.format(world.size, over, args.num_workers)),
            ('precision', precision.name), *accelerator.versions().items(),
            ('cores', affinity.text(runtime.cores) if runtime.cores else os.cpu_count()),
            *runtimes.software().items(), ('numpy', numpy.__version__), ('Pillow', PIL.__version__),
            ('system', platform.platform())]
