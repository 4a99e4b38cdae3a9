"""The classes of images, by a fine-tuned model: python main_predict.py --resume CHECKPOINT IMAGES...; see --help."""
from util.errors import UserError, run
from util.inference_arguments import parse_predict

ARGS = parse_predict() if __name__ == '__main__' else None      # first: --help and wrong flags need no torch

import os
import sys
from contextlib import contextmanager

from util import log, predictions, trained
from util.inference import Inference
from util.output_file import output_file


def name_classes(classifier, path):
    """Names of the classifier's classes, numbers where it has none; those in the file at `path`, unless that is ''."""
    count, names = classifier.model.head.out_features, classifier.classes or []
    if path:
        return predictions.read_class_names(path, count)
    if not names:
        print('the checkpoint has no class names, so classes are numbers, from 0; --class_names FILE names them',
              file=sys.stderr)
    return names[:count] + list(range(len(names), count))


@contextmanager
def open_output(args, images, names):
    """What takes the predictions: a table or JSON lines on standard output, or JSON lines in the file of --output."""
    if args.output:
        with output_file(args.output) as file:
            yield predictions.JsonLines(file.write, file.check)
        return
    with standard_output():
        if args.json:
            yield predictions.JsonLines(sys.stdout.buffer.write, sys.stdout.buffer.flush)
        else:
            shown = min(len(images), predictions.MEASURED)
            yield predictions.Table(sys.stdout, [images.name_of(i) for i in range(shown)], names)


@contextmanager
def standard_output():
    """Ends quietly where what reads it has ended, as `| head` does, and with one line where a disk is full."""
    try:
        yield
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())      # for what is written at the exit
        if not isinstance(error, BrokenPipeError):
            raise UserError('standard output: cannot be written ({})'.format(error.strerror)) from error


def main(args):
    log.set_up(True, results=True)
    classifier = trained.load_classifier(args.resume, args.input_size)
    names = name_classes(classifier, args.class_names)
    inference = Inference(classifier, args.device, args.amp)
    images = inference.images(args.images)
    count = min(args.top, len(names))
    told = 'predictions' if args.output or not sys.stdout.isatty() else ''      # else rows and bar would mix
    batches = inference.over(images, lambda model, imgs: model(imgs).float().softmax(dim=1).topk(count, dim=1),
                             args.batch_size, args.num_workers, told)
    with open_output(args, images, names) as output:
        for indices, (probabilities, classes) in batches:
            for index, shares, numbers in zip(indices, probabilities.tolist(), classes.tolist()):
                output.add(images.name_of(index), [names[number] for number in numbers], shares)
            output.flush()


if __name__ == '__main__':
    run(main, ARGS)
