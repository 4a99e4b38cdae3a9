"""A trained model for other tools: python -m util.export --resume CHECKPOINT --to FORMAT --output PATH [--part PART].

Where the other library is installed, it runs what was written before that appears at PATH: outputs have to be equal.
"""
import importlib
import os
import shutil

from util.errors import UserError, first_line, one_line, run
from util.inference_arguments import check_checkpoint, check_output
from util.parser import Parser

# By format: the endings that its file may have, and the packages to write and to try it with, for pip.
FORMATS = {'timm': (('.pth', '.pt', '.bin'), 'timm'), 'hf': ((), 'transformers'),
           'safetensors': (('.safetensors',), 'safetensors'), 'onnx': (('.onnx',), 'onnx onnxruntime')}


def parse_export(argv=None):
    """Parse and check the flags; a bad one ends the process with one line."""
    parser = Parser(prog='python -m util.export', description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--resume', required=True, help='checkpoint of main_pretrain.py or main_finetune.py, or weights of timm or '
                                        'Hugging Face: a file, a folder, or a URL with a hash in its name')
    add('--to', required=True, choices=tuple(FORMATS), help='format')
    add('--output', required=True, help='file to write, for hf a folder; must not exist')
    add('--part', choices=('encoder', 'classifier', 'mae'), help='what to write; default: all that the checkpoint has')
    args = parser.parse_args(argv)
    check_checkpoint(parser, args)
    check_output(parser, args)
    if os.path.lexists(args.output):
        parser.error('argument --output: {} exists; name another place'.format(args.output))
    endings, _ = FORMATS[args.to]
    if endings and not args.output.endswith(endings):
        parser.error('argument --output: for --to {} its name must end in {}'.format(args.to, ' or '.join(endings)))
    return args


def export(path, form, output, kind=None):
    """Write a part of a checkpoint for another tool, and compare its outputs there where that tool is installed.

    Args:
        form: one of FORMATS; kind: one of util.exported_part.PARTS, or None for the whole.
    Returns:
        lines that say what was compared, what the inputs are, and how to load it.
    Raises:
        UserError: the part has no such form, what writes it is not installed, or its outputs differ there.
    """
    from util import exported_part, log
    log.set_up(True)
    try:
        writer = importlib.import_module('util.export_' + form)
    except ImportError as error:
        raise UserError('--to {}: {}; pip install {}'.format(form, first_line(error), FORMATS[form][1])) from error
    part = exported_part.Part(path, kind)
    place = '{}.tmp-{}'.format(os.path.abspath(output).rstrip(os.sep), os.getpid())
    try:
        os.mkdir(place)
        inner = os.path.join(place, os.path.basename(os.path.abspath(output)))      # some libraries go by the ending
        outputs, loaded_by = writer.write(part, inner)
        compared = part.compare(outputs, form) if outputs else 'not compared: no library at hand runs it'
        os.rename(inner, output)
    except OSError as error:
        raise UserError('--output {}: cannot be written ({})'.format(output, error.strerror or error)) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return [compared, part.input_text(), 'to load it: ' + loaded_by.format(repr(output))]


def main(args):
    lines = export(args.resume, args.to, args.output, args.part)
    for line in ['written: ' + args.output, *lines]:
        print(one_line(line))


if __name__ == '__main__':
    run(main, parse_export())
