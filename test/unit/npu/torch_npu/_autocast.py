"""Autocast on the npu: which operations compute in half precision, which in fp32, which in the widest type given."""
import torch
from torch._C import DispatchKeySet
from torch.utils import _pytree as pytree

aten = torch.ops.aten
HALF = [aten.matmul.default, aten.addmm.default, aten.mm.default, aten.bmm.default, aten.baddbmm.default,
        aten.linear.default, aten.conv2d.default, aten.convolution.default, aten.scaled_dot_product_attention.default]
FP32 = [aten.softmax.int, aten.log_softmax.int, aten.layer_norm.default, aten.native_layer_norm.default,
        aten.nll_loss.default, aten.mse_loss.default, aten.cross_entropy_loss.default, aten.exp.default,
        aten.log.default, aten.pow.Tensor_Scalar, aten.rsqrt.default, aten.sum.default, aten.sum.dim_IntList]
WIDEST = [aten.cat.default, aten.stack.default, aten.addcdiv.default, aten.addcmul.default]
_libraries = []


def _floats(values):
    return [x for x in pytree.tree_leaves(values)
            if isinstance(x, torch.Tensor) and x.device.type == 'npu' and x.is_floating_point()]


def _half(values):
    return torch.get_autocast_dtype('npu')


def _fp32(values):
    return torch.float32


def _widest(values):
    return torch.float32 if torch.float32 in {x.dtype for x in _floats(values)} else torch.get_autocast_dtype('npu')


def _kernel(op, choose):
    """`op` with its arguments in the type that `choose` says, outside of autocast."""
    outside = DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def kernel(*args, **kwargs):
        with torch._C._ExcludeDispatchKeyGuard(outside):
            dtype = choose((args, kwargs))

            def cast(x):
                eligible = isinstance(x, torch.Tensor) and x.device.type == 'npu' and x.is_floating_point()
                return x.to(dtype) if eligible and x.dtype not in (dtype, torch.float64) else x
            args, kwargs = pytree.tree_map(cast, (args, kwargs))
            return op(*args, **kwargs)
    return kernel


def register():
    """Make PyTorch call the above within torch.autocast('npu')."""
    listed, every = torch.library.Library('aten', 'IMPL'), torch.library.Library('_', 'IMPL')
    for ops, choose in ((HALF, _half), (FP32, _fp32), (WIDEST, _widest)):
        for op in ops:
            overload = '' if op._overloadname == 'default' else '.' + op._overloadname
            listed.impl(op._schema.name.split('::')[1] + overload, _kernel(op, choose), 'AutocastPrivateUse1')
    every.fallback(torch.library.fallthrough_kernel, 'AutocastPrivateUse1')
    _libraries.extend([listed, every])
