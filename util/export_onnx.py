"""--to onnx: a graph for onnxruntime and others, for any number of images."""
import io
import warnings

import onnxruntime
import torch
from torch.nn import functional as F

from util.errors import UserError
from util.exported_part import named
from util.features import supported
from util.files import write_atomically

if hasattr(F, 'scaled_dot_product_attention'):
    import onnx  # noqa: F401  (torch 2.x needs it to write)

# 17 has layer norm and is known where attention is one function, which older ones cannot write; 12 is known to all.
OPSET = 17 if hasattr(F, 'scaled_dot_product_attention') else 12
MOST_BYTES = 2 ** 31 - 2 ** 20          # of a protobuf message, which the file is


def write(part, path):
    """Write the file, run it in onnxruntime, and compare.

    Returns:
        lines that say what was compared.
    Raises:
        UserError: the outputs differ, or the model is too large for a file of ONNX.
    """
    size = sum(value.numel() * value.element_size() for value in part.weights().values())
    if size > MOST_BYTES:
        raise UserError('--to onnx: a file of ONNX holds at most 2 GB, and this model has {:.1f}'.format(size / 1e9))
    content, names = io.BytesIO(), list(part.inputs)
    batched = [name for name in (*names, *part.output_names) if name != 'loss']
    with part.graph() as graph, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')         # of what the trace keeps constant, and that PyTorch has newer ways
        torch.onnx.export(graph, tuple(value[:-1] for value in part.inputs.values()), content, input_names=names,
                          output_names=list(part.output_names), opset_version=OPSET,
                          dynamic_axes={name: {0: 'batch'} for name in batched},
                          # The newer exporter needs one more library.
                          **supported(torch.onnx.export, dynamo=False))
    write_atomically(path, content.getvalue())
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    found = session.run(None, {name: value.numpy() for name, value in part.inputs.items()})
    return [part.compare(named(part.output_names, found),
                         'onnxruntime {} (opset {})'.format(onnxruntime.__version__, OPSET))]


def loading(part, path):
    """Lines of Python that load it."""
    shapes = ', '.join('{!r}: numpy.zeros({}, numpy.float32)'.format(name, tuple(value.shape))
                       for name, value in part.inputs.items())
    return ['import numpy, onnxruntime',
            "session = onnxruntime.InferenceSession({!r}, providers=['CPUExecutionProvider'])".format(path),
            '{}, = session.run(None, {{{}}})'.format(', '.join(part.output_names), shapes)]
