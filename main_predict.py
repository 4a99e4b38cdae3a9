"""The classes of images, by a fine-tuned model: python main_predict.py --resume CHECKPOINT IMAGES...; see --help."""
from util.config.inference_flags import parse_predict
from util.errors import UserError, run
from util.text import first_line, one_line

ARGS = parse_predict() if __name__ == '__main__' else None      # first: --help and wrong flags need no torch

import json
import os
import sys
import unicodedata
from contextlib import contextmanager

from util import log
from util.checkpoints import load_model
from util.tools.inference import Inference, output_file

MEASURED = 1000         # file names that are looked at to find the width of their column


def name_classes(classifier, path):
    """Names of the classifier's classes, numbers where it has none; the lines of the file at `path`, unless it is ''.

    Raises:
        UserError: the file cannot be read, or has another number of lines than there are classes.
    """
    count, names = classifier.model.head.out_features, classifier.classes or []
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
        print('the checkpoint has no class names, so classes are numbers, from 0; --class_names FILE names them',
              file=sys.stderr)
    return names[:count] + list(range(len(names), count))


def json_line(file, classes, probabilities):
    """A line of JSON on an image: file, classes (names; numbers where there are none) and probabilities; as bytes."""
    line = json.dumps({'file': file, 'classes': classes,
                       'probabilities': [float('{:.6g}'.format(share)) for share in probabilities]},
                      ensure_ascii=False)
    # Bytes of a name that are no text stand there as JSON's escapes, such as \udcff.
    return line.encode('utf-8', 'backslashreplace') + b'\n'


def width(text):
    """Columns of a terminal that a text takes; a Chinese character takes two."""
    return sum(0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in 'WF' else 1
               for letter in text)


def table(files, names):
    """What makes the rows of an image of its file, classes and texts of probabilities; as bytes.

    Args:
        files: names of image files, whose longest decides the width; names: of all classes.
    """
    widths = [max([5] + [width(one_line(name)) for name in column]) for column in (files, names)]

    def rows(file, classes, texts):
        shown = ''
        for name, text in zip(classes, texts):
            cells = [cell + ' ' * (size - width(cell)) for cell, size in zip((one_line(file), one_line(name)), widths)]
            shown += '  '.join((*cells, text.rjust(6))) + '\n'
            file = ''
        return shown.encode(sys.stdout.encoding, 'backslashreplace')
    return rows


@contextmanager
def open_output(path):
    """(what writes bytes, what hands them on) of the file at `path`, or of standard output, where `path` is ''.

    Standard output ends quietly where what reads it has ended, as `| head` does, and with one line on a full disk.
    """
    if path:
        with output_file(path) as file:
            yield file.write, file.check
        return
    try:
        yield sys.stdout.buffer.write, sys.stdout.buffer.flush
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())      # for what is written at the exit
        if not isinstance(error, BrokenPipeError):
            raise UserError('standard output: cannot be written ({})'.format(error.strerror)) from error


def main(args):
    log.set_up(True, results=True)
    classifier = load_model.load_classifier(args.resume, args.input_size)
    names = name_classes(classifier, args.class_names)
    inference = Inference(classifier, args.device, args.amp)
    images = inference.images(args.images)
    count = min(args.top, len(names))
    told = 'predictions' if args.output or not sys.stdout.isatty() else ''      # else rows and bar would mix
    batches = inference.over(images, lambda model, imgs: model(imgs).float().softmax(dim=1).topk(count, dim=1),
                             args.batch_size, args.num_workers, told)
    rows = None if args.json or args.output else table(
        [images.name_of(i) for i in range(min(len(images), MEASURED))], names)
    with open_output(args.output) as (write, hand_on):
        if rows:
            write(rows('file', ['class'], ['prob.']))
        for indices, (probabilities, classes) in batches:
            for index, shares, numbers in zip(indices, probabilities.tolist(), classes.tolist()):
                found = images.name_of(index), [names[number] for number in numbers]
                write(rows(*found, map(percent, shares)) if rows else json_line(*found, shares))
            hand_on()


def percent(share):
    """.25 -> '25.0%'."""
    return '{:.1%}'.format(share) if share >= .0005 else '<0.1%'


if __name__ == '__main__':
    run(main, ARGS)
