"""--to onnx: a graph with a dynamic batch dimension, for onnxruntime and others.

Shapes: N images, L patches, K kept patches, p patch side, C channels, D width.
"""
import io
import warnings
from functools import partial
from typing import Any, Dict, Optional, Tuple

import torch
from torch.nn import functional as F

from util.compat import supported
from util.errors import UserError
from util.files import write_atomically

if hasattr(F, 'scaled_dot_product_attention'):
    import onnx  # noqa: F401  (torch 2.x needs it to write)
try:
    import onnxruntime
except ImportError:         # then outputs are not compared
    onnxruntime = None

# 17 has layer norm and is required for fused attention; releases without that support at most 12.
OPSET = 17 if hasattr(F, 'scaled_dot_product_attention') else 12
MAX_BYTES = 2 ** 31 - 2 ** 20           # of a protobuf message


def write(exported: Any, path: str) -> Tuple[Optional[Dict[str, Any]], str]:
    """Write the file, and run it in onnxruntime with another batch size than traced; UserError above MAX_BYTES.

    Returns as util.tools.export.write_safetensors does.
    """
    size = sum(value.numel() * value.element_size() for value in exported.state_dict().values())
    if size > MAX_BYTES:
        raise UserError('--to onnx: an ONNX file holds at most 2 GB, this model has {:.1f}'.format(size / 1e9))
    model, content, names = exported.model, io.BytesIO(), list(exported.inputs)
    # Written with operators that the exporters of PyTorch 1.5 and 1.8 support.
    model.forward, model.patch_embed.forward = exported.forward, partial(_patches, model.patch_embed.proj)
    if exported.part == 'mae':
        model.loss_of_hidden = partial(_loss, model.norm_pix_loss)
    batched = [name for name in (*names, *exported.output_names) if name != 'loss']
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')         # about constants in the trace, and deprecations
        torch.onnx.export(model, tuple(value[:-1] for value in exported.inputs.values()), content,
                          input_names=names, output_names=list(exported.output_names), opset_version=OPSET,
                          dynamic_axes={name: {0: 'batch'} for name in batched},
                          # The new exporter requires onnxscript.
                          **supported(torch.onnx.export, dynamo=False))
    write_atomically(path, content.getvalue())
    loaded_by = "onnxruntime.InferenceSession({}, providers=['CPUExecutionProvider'])"
    if not onnxruntime:
        return None, loaded_by
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    outputs = session.run(None, {name: value.numpy() for name, value in exported.inputs.items()})
    return dict(zip(exported.output_names, outputs)), loaded_by


def _patches(proj, imgs):
    """PatchEmbed.forward without input checks, with a dynamic batch dimension."""
    x = proj(imgs)                                                       # (N, D, rows, columns)
    return x.reshape(x.shape[0], x.shape[1], -1).transpose(1, 2)


def _loss(norm_pix_loss, patches, pred, ids_hidden):
    """MaskedAutoencoderViT.loss_of_hidden, other operators: patches (N, L, p * p * C), pred (N, L - K, p * p * C)."""
    target = patches.gather(1, ids_hidden[..., None].expand(-1, -1, patches.shape[-1]))
    if norm_pix_loss:
        centred = target - target.mean(dim=-1, keepdim=True)
        variance = (centred * centred).sum(dim=-1, keepdim=True) / (target.shape[-1] - 1)
        target = centred / (variance + 1.e-6).sqrt()
    error = pred - target
    return (error * error).mean()
