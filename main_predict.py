"""Classify images with a fine-tuned model: python main_predict.py --resume CHECKPOINT IMAGES...; see --help."""
from util.config.inference_flags import parse_predict
from util.errors import UserError, run
from util.text import first_line, one_line

ARGS = parse_predict() if __name__ == '__main__' else None      # first: --help and wrong flags need no torch

import json
import os
import sys
import unicodedata
from argparse import Namespace
from contextlib import contextmanager
from typing import Callable, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

from util import log
from util.checkpoints import load_model
from util.tools.inference import Inference
from util.tools.outputs import open_output

MEASURED = 1000         # file names that determine the width of their column
Class = Union[str, int]


def class_names(loaded: load_model.LoadedModel, path: Optional[str]) -> List[Class]:
    """Class names by label: lines of the file at `path`, or those of the checkpoint if None; numbers without a name.

    UserError for a file that cannot be read or has not one line per class.
    """
    count, names = loaded.model.head.out_features, loaded.classes or []
    if path:
        try:
            with open(path, encoding='utf-8-sig') as file:
                names = file.read().splitlines()
        except (OSError, ValueError) as error:
            raise UserError('--class_names {}: cannot be read ({})'.format(path, first_line(error))) from error
        if len(names) != count:
            raise UserError('--class_names {}: has {} lines, but the model has {} classes'
                            .format(path, len(names), count))
    elif not names:
        print('no class names in the checkpoint: classes are numbers, from 0; --class_names FILE names them',
              file=sys.stderr)
    return names[:count] + list(range(len(names), count))


def json_line(file: str, classes: Sequence[Class], probabilities: Iterable[float]) -> bytes:
    """Line of JSON for an image: file, classes and probabilities."""
    rounded = [float('{:.6g}'.format(value)) for value in probabilities]
    line = json.dumps({'file': file, 'classes': classes, 'probabilities': rounded}, ensure_ascii=False)
    # Undecodable bytes of a file name become JSON escapes, such as \udcff.
    return line.encode('utf-8', 'backslashreplace') + b'\n'


def display_width(text: str) -> int:
    """Columns of a terminal; a wide character, such as a Chinese one, takes two."""
    return sum(0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in 'WF' else 1
               for letter in text)


def table_formatter(files: Sequence[str], names: Sequence[Class]) -> Callable[..., bytes]:
    """Formatter (file, classes, probabilities as text) -> rows of an image, columns as wide as the longest names."""
    widths = [max([5] + [display_width(one_line(name)) for name in column]) for column in (files, names)]

    def format_rows(file, classes, probabilities):
        rows = ''
        for name, probability in zip(classes, probabilities):
            cells = [text + ' ' * (width - display_width(text))
                     for text, width in zip((one_line(file), one_line(name)), widths)]
            rows += '  '.join((*cells, probability.rjust(6))) + '\n'
            file = ''
        return rows.encode(sys.stdout.encoding, 'backslashreplace')
    return format_rows


@contextmanager
def results_file(path: Optional[str]) -> Iterator[Tuple[Callable[[bytes], int], Callable[[], None]]]:
    """(write, flush) of the file at `path`, or of standard output if None.

    Ends quietly when the reader of standard output has exited, as `| head` does, and with one line on a full disk.
    """
    if path:
        with open_output(path) as file:
            yield file.write, file.flush
        return
    try:
        yield sys.stdout.buffer.write, sys.stdout.buffer.flush
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())      # for the flush at exit
        if not isinstance(error, BrokenPipeError):
            raise UserError('standard output: cannot be written ({})'.format(error.strerror)) from error


def main(args: Namespace) -> None:
    log.set_up(True, results=True)
    loaded = load_model.load_classifier(args.resume, args.input_size)
    names = class_names(loaded, args.class_names)
    inference = Inference(loaded, args.device, args.amp)
    dataset = inference.dataset(args.images)
    count = min(args.top, len(names))
    label = 'predictions' if args.output or not sys.stdout.isatty() else ''      # else rows and bar would mix
    batches = inference.run(dataset, lambda model, imgs: model(imgs).float().softmax(dim=1).topk(count, dim=1),
                            args.batch_size, args.num_workers, label)
    format_rows = None if args.json or args.output else table_formatter(
        [dataset.name_of(i) for i in range(min(len(dataset), MEASURED))], names)
    with results_file(args.output) as (write, flush):
        if format_rows:
            write(format_rows('file', ['class'], ['prob.']))
        for indices, (probabilities, labels) in batches:
            for index, values, top in zip(indices, probabilities.tolist(), labels.tolist()):
                file, classes = dataset.name_of(index), [names[i] for i in top]
                write(format_rows(file, classes, map(percent, values)) if format_rows else
                      json_line(file, classes, values))
            flush()


def percent(probability: float) -> str:
    """.25 -> '25.0%'."""
    return '{:.1%}'.format(probability) if probability >= .0005 else '<0.1%'


if __name__ == '__main__':
    run(main, ARGS)
