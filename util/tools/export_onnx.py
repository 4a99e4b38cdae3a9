"""--to onnx: a graph with a dynamic batch dimension, for onnxruntime and others."""
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

    Returns as util.tools.export.write_timm does.
    """
    size = sum(value.numel() * value.element_size() for value in exported.state_dict().values())
    if size > MAX_BYTES:
        raise UserError('--to onnx: an ONNX file holds at most 2 GB, this model has {:.1f}'.format(size / 1e9))
    model, content, (imgs,), outputs = exported.model, io.BytesIO(), exported.inputs.values(), exported.output_names
    # Written with operators that the exporters of PyTorch 1.5 and 1.8 support.
    model.forward, model.patch_embed.forward = exported.forward, partial(_patches, model.patch_embed.proj)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')         # about constants in the trace, and deprecations
        torch.onnx.export(model, (imgs[:-1],), content, input_names=['imgs'], output_names=list(outputs),
                          opset_version=OPSET, dynamic_axes={name: {0: 'batch'} for name in ('imgs', *outputs)},
                          # The new exporter requires onnxscript.
                          **supported(torch.onnx.export, dynamo=False))
    write_atomically(path, content.getvalue())
    loaded_by = "onnxruntime.InferenceSession({}, providers=['CPUExecutionProvider'])"
    if not onnxruntime:
        return None, loaded_by
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return dict(zip(outputs, session.run(None, {'imgs': imgs.numpy()}))), loaded_by


def _patches(proj, imgs):
    """PatchEmbed.forward without input checks, with a dynamic batch dimension."""
    x = proj(imgs)                                                       # (N, D, rows, columns)
    return x.reshape(x.shape[0], x.shape[1], -1).transpose(1, 2)
