"""Autocast on the npu: which operations compute in half precision, which in fp32."""
import torch
from torch._C import DispatchKeySet
from torch.utils import _pytree as pytree

aten = torch.ops.aten
HALF = [aten.matmul.default, aten.addmm.default, aten.mm.default, aten.bmm.default, aten.baddbmm.default,
        aten.linear.default, aten.conv2d.default, aten.convolution.default, aten.scaled_dot_product_attention.default]
FP32 = [aten.softmax.int, aten.log_softmax.int, aten.layer_norm.default, aten.native_layer_norm.default,
        aten.nll_loss.default, aten.mse_loss.default, aten.cross_entropy_loss.default, aten.exp.default,
        aten.log.default, aten.pow.Tensor_Scalar, aten.rsqrt.default, aten.sum.default, aten.sum.dim_IntList]
_libraries = []


def _kernel(op, half):
    """`op` with its arguments in half precision or fp32, outside of autocast."""
    outside = DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def kernel(*args, **kwargs):
        with torch._C._ExcludeDispatchKeyGuard(outside):
            dtype = torch.get_autocast_dtype('npu') if half else torch.float32

            def cast(x):
                eligible = isinstance(x, torch.Tensor) and x.device.type == 'npu' and x.is_floating_point()
                return x.to(dtype) if eligible and x.dtype not in (dtype, torch.float64) else x
            args, kwargs = pytree.tree_map(cast, (args, kwargs))
            return op(*args, **kwargs)
    return kernel


def register():
    """Make PyTorch call the above within torch.autocast('npu')."""
    listed, every = torch.library.Library('aten', 'IMPL'), torch.library.Library('_', 'IMPL')
    for op in HALF + FP32:
        listed.impl(op, _kernel(op, op in HALF), 'AutocastPrivateUse1')
    every.fallback(torch.library.fallthrough_kernel, 'AutocastPrivateUse1')
    _libraries.extend([listed, every])
