"""A trained model for other tools: python -m util.export --resume CHECKPOINT --to FORMAT --output PATH [--part PART].

Nothing is at PATH before the other library has loaded it and its outputs have been found equal.
"""
import importlib
import os
import shutil
import sys

from util.errors import UserError, first_line, one_line, run
from util.inference_arguments import check_checkpoint
from util.parser import Parser

# What a format's module needs beside the program's own requirements, for pip.
NEEDS = {'timm': 'timm', 'hf': 'transformers', 'safetensors': '', 'onnx': 'onnx onnxruntime', 'torchscript': ''}
ENDINGS = {'timm': ('.pth', '.pt', '.bin'), 'safetensors': ('.safetensors',), 'onnx': ('.onnx',),
           'torchscript': ('.pt', '.ts', '.torchscript')}


def export_parser():
    """The flags."""
    parser = Parser(prog='python -m util.export', description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--resume', required=True, help='checkpoint of main_pretrain.py or main_finetune.py, or weights of timm or '
                                        'Hugging Face: a file, a folder, or a URL with a hash in its name')
    add('--to', required=True, choices=tuple(NEEDS), help='format')
    add('--output', required=True, help='file to write, for hf a folder; must not exist')
    add('--part', choices=('encoder', 'classifier', 'mae'), help='what to write; default: all that the checkpoint has')
    return parser


def parse_export(argv=None):
    """Parse and check the flags; a bad one ends the process with one line."""
    parser = export_parser()
    args = parser.parse_args(argv)
    check_checkpoint(parser, args)
    if os.path.lexists(args.output):
        parser.error('argument --output: {} exists; name another place'.format(args.output))
    if not os.path.isdir(os.path.dirname(os.path.abspath(args.output))):
        parser.error('argument --output: there is no folder {}'.format(os.path.dirname(os.path.abspath(args.output))))
    endings = ENDINGS.get(args.to)
    if endings and not args.output.endswith(endings):
        parser.error('argument --output: for --to {} its name must end in {}'.format(args.to, ' or '.join(endings)))
    return args


def export(path, form, output, kind=None):
    """Write a part of a checkpoint for another tool, and try it there.

    Args:
        form: one of NEEDS; kind: one of util.exported_part.PARTS, or None for the whole.
    Returns:
        (lines that say what was compared, lines that say what its inputs are, lines of Python that load it).
    Raises:
        UserError: the part has no such form, its library is missing, or its outputs differ there.
    """
    from util import exported_part, log
    log.set_up(True)
    try:
        writer = importlib.import_module('util.export_' + form)
    except ImportError as error:
        raise UserError('--to {}: the result is tried in its library, which does not load ({}); pip install {}'
                        .format(form, first_line(error), NEEDS[form])) from error
    part = exported_part.Part(path, kind)
    place = '{}.tmp-{}'.format(os.path.abspath(output).rstrip(os.sep), os.getpid())
    try:
        os.mkdir(place)
        inner = os.path.join(place, os.path.basename(os.path.abspath(output)))      # some libraries go by the ending
        checks = writer.write(part, inner)
        os.rename(inner, output)
    except OSError as error:
        raise UserError('--output {}: cannot be written ({})'.format(output, error.strerror or error)) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return checks, part.input_lines(), writer.loading(part, output)


def main(args):
    checks, inputs, loading = export(args.resume, args.to, args.output, args.part)
    for line in checks:
        print('compared: {}'.format(one_line(line)))
    print('written: {}'.format(one_line(args.output)))
    for line in inputs:
        print('takes {}'.format(line))
    print('\nto load it:\n')
    for line in loading:
        print('    {}'.format(one_line(line)))


if __name__ == '__main__':
    sys.modules['util.export'] = sys.modules['__main__']
    run(main, parse_export())
