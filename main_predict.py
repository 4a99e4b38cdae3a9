"""Classify images with a fine-tuned model: python main_predict.py --resume CHECKPOINT IMAGES...; see --help."""
from util import errors

errors.begin(__name__)

from util.config.inference_flags import predict_parser
from util.errors import UserError
from util.text import one_line

ARGS = predict_parser().parse_args() if __name__ == '__main__' else None      # first: --help needs no torch

import json
import sys
from argparse import Namespace
from typing import Any, Iterable, List, Optional, Sequence

from util import log
from util.checkpoints import load_model
from util.data.file_index import read_class_names
from util.tools.inference import Inference
from util.tools.outputs import open_output


def class_names(loaded: load_model.LoadedModel, path: Optional[str]) -> List[Any]:
    """Class names by label: lines of the file at `path`, or those of the checkpoint if None; numbers without a name.

    UserError for a file that cannot be read or has not one line per class.
    """
    count, names = loaded.model.head.out_features, loaded.classes or []
    if path:
        names = read_class_names(path)
        if len(names) != count:
            raise UserError('--class_names {}: has {} lines, but the model has {} classes'
                            .format(path, len(names), count))
    elif not names:
        print('no class names in the checkpoint: classes are numbers, from 0; --class_names FILE names them',
              file=sys.stderr)
    return [*names[:count], *range(len(names), count)]


def json_line(file: str, classes: Sequence[Any], probabilities: Iterable[float]) -> bytes:
    """Line of JSON for an image: file, classes and probabilities."""
    rounded = [float('{:.6g}'.format(value)) for value in probabilities]
    line = json.dumps({'file': file, 'classes': classes, 'probabilities': rounded}, ensure_ascii=False)
    # Undecodable bytes of a file name become JSON escapes, such as \udcff.
    return line.encode('utf-8', 'backslashreplace') + b'\n'


def text_lines(file: str, classes: Sequence[Any], probabilities: Iterable[float]) -> bytes:
    """The name of an image, and below it a line per class."""
    lines = [one_line(file), *('  {:6.1%}  {}'.format(*pair) for pair in zip(probabilities, map(one_line, classes)))]
    return ('\n'.join(lines) + '\n').encode(sys.stdout.encoding, 'backslashreplace')


def main(args: Namespace) -> None:
    errors.handle_signals_as_before()
    log.set_up(True, results=True)
    loaded = load_model.load_classifier(args.resume, args.input_size)
    names = class_names(loaded, args.class_names)
    inference = Inference(loaded, args.device, args.amp)
    dataset = inference.dataset(args.images)
    count = min(args.top, len(names))
    label = 'predictions' if args.output or not sys.stdout.isatty() else ''      # else rows and bar would mix
    batches = inference.run(dataset, lambda model, imgs: model(imgs).float().softmax(dim=1).topk(count, dim=1),
                            args.batch_size, args.num_workers, label)
    lines_of = json_line if args.json or args.output else text_lines
    with open_output(args.output or '/dev/stdout') as file:
        for indices, (probabilities, labels) in batches:
            for index, values, top in zip(indices, probabilities.tolist(), labels.tolist()):
                file.write(lines_of(dataset.name_of(index), [names[i] for i in top], values))
            file.flush()


if __name__ == '__main__':
    errors.run(main, ARGS)
