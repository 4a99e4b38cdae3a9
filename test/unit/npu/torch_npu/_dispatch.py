"""Every operation on npu tensors: computed by the CPU over the same bytes.

One boxed fallback serves all operations; a few that make, reshape or copy memory have kernels of their own.
"""
import os
from functools import partial

import torch
from torch._C import DispatchKey
from torch.utils import _pytree as pytree

from . import _chip, _memory, _record
from ._memory import contiguous_strides, from_host, is_on_npu, on_host

aten = torch.ops.aten
KEY = 'PrivateUse1'
TANH_GELU = os.environ.get('EMULATED_NPU_GELU') == 'tanh'
# Operations that take indices or values from the host beside npu tensors, as on the device.
MIXES_DEVICES = {'aten::index', 'aten::index_put_', 'aten::_index_put_impl_', 'aten::index_put'}

generator = torch.Generator()           # of the device
_libraries = []


class Call:
    """One operation: its arguments on the host, and its results back on the npu."""

    def __init__(self, op):
        self.op = op
        self.twins = []                 # (npu tensor, its CPU twin)
        self.outs = []                  # (npu tensor given as out=, CPU tensor that stands for it)
        self.on_cpu = False

    def to_host(self, value):
        if is_on_npu(value):
            self.twins.append((value, on_host(value)))
            return self.twins[-1][1]
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            self.on_cpu = True
        return torch.device('cpu') if isinstance(value, torch.device) else value

    def arguments(self, args, kwargs):
        args, kwargs = pytree.tree_map(self.to_host, (args, kwargs))
        if self.on_cpu and self.twins and self.op._schema.name not in MIXES_DEVICES:
            raise RuntimeError('Expected all tensors to be on the same device, but found at least two devices, npu:0 '
                               'and cpu! (when checking {})'.format(self.op))
        for argument in self.op._schema.arguments:      # a CPU kernel may resize out=, which a twin cannot
            if argument.is_out:
                given = next(tensor for tensor, twin in self.twins if twin is kwargs[argument.name])
                kwargs[argument.name] = torch.empty_strided(given.shape, given.stride(), dtype=given.dtype)
                self.outs.append((given, kwargs[argument.name]))
        return args, kwargs

    def from_host(self, value):
        if not isinstance(value, torch.Tensor):
            return value
        for given, stands_for_it in self.outs + self.twins:
            if value is stands_for_it:
                return given
        return from_host(value)

    def fill_outs(self):
        for given, out in self.outs:
            resize_(given, out.shape)
            on_host(given).copy_(out)


def fallback(op, *args, **kwargs):
    """Any operation without a kernel of its own."""
    if TANH_GELU and op._schema.name in ('aten::gelu', 'aten::gelu_backward'):
        kwargs = {**kwargs, 'approximate': 'tanh'}
    call, given = Call(op), (args, kwargs)
    args, kwargs = call.arguments(args, kwargs)
    if torch.Tag.nondeterministic_seeded in op.tags:
        host = torch.get_rng_state()
        torch.set_rng_state(generator.get_state())
        results = op(*args, **kwargs)
        generator.set_state(torch.get_rng_state())
        torch.set_rng_state(host)
    else:
        results = op(*args, **kwargs)
    _chip.check(results if isinstance(results, (tuple, list)) else [results])
    call.fill_outs()
    results = pytree.tree_map(call.from_host, results)
    _record.operator(op, *given, results, takes_indices=op._schema.name in MIXES_DEVICES)
    return results


def _on_cpu_key(op):
    """The CPU's kernel of an operation that only rewrites shapes, which is as good for an npu tensor."""
    return lambda *args, **kwargs: op._op_dk(DispatchKey.CPU, *args, **kwargs)


def copy_from(source, target, non_blocking=False):
    """Between devices, and from one type to another."""
    written = on_host(target) if is_on_npu(target) else target
    written.copy_(on_host(source) if is_on_npu(source) else source)
    if is_on_npu(target):
        _chip.check([written])
    if is_on_npu(source) and is_on_npu(target):
        _record.operator(aten._copy_from.default, (source, target), {}, target)
    elif not non_blocking or is_on_npu(source):
        _record.wait('write' if is_on_npu(target) else 'read later' if non_blocking else 'read')
    return target


def read(self):
    """A value, as a Python number."""
    _record.wait('read')
    return on_host(self).item()


def empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return _memory.empty(size, contiguous_strides(size), dtype or torch.get_default_dtype())


def empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
    return _memory.empty(size, stride, dtype or torch.get_default_dtype())


def resize_(self, size, *, memory_format=None):
    """Of a result, in new memory: what was there is lost."""
    if self.shape == torch.Size(size):
        return self
    new, strides = _memory.empty(size, contiguous_strides(size), self.dtype), contiguous_strides(size)
    return _on_cpu_key(aten.set_.source_Storage_storage_offset)(self, new.untyped_storage(), 0, list(size), strides)


def convolution_backward(grad, inputs, weight, *how):
    """Of a convolution that is not transposed; the operation of the CPU wants the size of the bias too."""
    bias_sizes = [len(weight)] if how[-1][2] else None
    return fallback(aten.convolution_backward.default, grad, inputs, weight, bias_sizes, *how)


def register():
    """Make PyTorch call the above."""
    every, single, host = (torch.library.Library(name, 'IMPL') for name in ('_', 'aten', 'aten'))
    every.fallback(fallback, KEY)
    for name, kernel in {
            '_copy_from': copy_from, 'empty.memory_format': empty, 'empty_strided': empty_strided, 'resize_': resize_,
            '_local_scalar_dense': read, 'record_stream': lambda self, stream: None,
            'convolution_overrideable': lambda *args: fallback(aten.convolution.default, *args),
            'convolution_backward_overrideable': convolution_backward,
            'native_layer_norm': partial(fallback, aten.native_layer_norm.default),     # else written out
            '_fused_sdp_choice': lambda *args, **kwargs: 0}.items():        # 0: attention written out in products
        single.impl(name, kernel, KEY)
    for op in (aten.as_strided.default, aten.view.default, aten.view.dtype, aten._reshape_alias.default,
               aten.unfold.default, aten.set_.source_Storage, aten.set_.source_Storage_storage_offset,
               aten.set_.source_Tensor):
        single.impl(op, _on_cpu_key(op), KEY)
    host.impl('_pin_memory', lambda self, device=None: self.clone(), 'CPU', allow_override=True)
    _libraries.extend([every, single, host])
