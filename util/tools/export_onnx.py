"""--to onnx: a graph for onnxruntime and others, for any number of images.

Shapes: N images, L patches, K kept patches, p patch side, C channels, D width.
"""
import io
import warnings
from functools import partial

import torch
from torch.nn import functional as F

from util.compat import supported
from util.errors import UserError
from util.files import write_atomically

if hasattr(F, 'scaled_dot_product_attention'):
    import onnx  # noqa: F401  (torch 2.x needs it to write)
try:
    import onnxruntime
except ImportError:         # then nobody tries the graph
    onnxruntime = None

# 17 has layer norm and is known where attention is one function, which older ones cannot write; 12 is known to all.
OPSET = 17 if hasattr(F, 'scaled_dot_product_attention') else 12
MOST_BYTES = 2 ** 31 - 2 ** 20          # of a protobuf message, which the file is


def write(part, path):
    """Write the file, and run it in onnxruntime, on another number of images than it was traced with.

    Results are those of util.tools.export.write_safetensors.
    Raises:
        UserError: the model is too large for a file of ONNX.
    """
    size = sum(value.numel() * value.element_size() for value in part.weights().values())
    if size > MOST_BYTES:
        raise UserError('--to onnx: a file of ONNX holds at most 2 GB, and this model has {:.1f}'.format(size / 1e9))
    model, content, names = part.model, io.BytesIO(), list(part.inputs)
    # In what the exporters of PyTorch 1.5 and 1.8 know.
    model.forward, model.patch_embed.forward = part.run, partial(_patches, model.patch_embed.proj)
    if part.kind == 'mae':
        model.forward_loss = partial(_loss, model.norm_pix_loss)
    batched = [name for name in (*names, *part.output_names) if name != 'loss']
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')         # of what the trace keeps constant, and that PyTorch has newer ways
        torch.onnx.export(model, tuple(value[:-1] for value in part.inputs.values()), content,
                          input_names=names, output_names=list(part.output_names), opset_version=OPSET,
                          dynamic_axes={name: {0: 'batch'} for name in batched},
                          # The newer exporter needs one more library.
                          **supported(torch.onnx.export, dynamo=False))
    write_atomically(path, content.getvalue())
    loaded_by = "onnxruntime.InferenceSession({}, providers=['CPUExecutionProvider'])"
    if not onnxruntime:
        return None, loaded_by
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    found = session.run(None, {name: value.numpy() for name, value in part.inputs.items()})
    return dict(zip(part.output_names, found)), loaded_by


def _patches(proj, imgs):
    """PatchEmbed.forward without checks of its input, and with the number of images left open."""
    x = proj(imgs)                                                       # (N, D, rows, columns)
    return x.reshape(x.shape[0], x.shape[1], -1).transpose(1, 2)


def _loss(norm_pix_loss, patches, pred, ids_hidden):
    """MaskedAutoencoderViT.forward_loss in other words: patches (N, L, p * p * C), pred (N, L - K, p * p * C)."""
    target = patches.gather(1, ids_hidden[..., None].expand(-1, -1, patches.shape[-1]))
    if norm_pix_loss:
        centred = target - target.mean(dim=-1, keepdim=True)
        variance = (centred * centred).sum(dim=-1, keepdim=True) / (target.shape[-1] - 1)
        target = centred / (variance + 1.e-6).sqrt()
    error = pred - target
    return (error * error).mean()
