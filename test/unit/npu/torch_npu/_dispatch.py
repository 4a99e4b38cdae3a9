"""Every operation on npu tensors: computed by the CPU over the same bytes.

One boxed fallback serves all operations; a few that make, reshape or copy memory have kernels of their own.
"""
import functools

import torch
from torch._C import DispatchKey
from torch.utils import _pytree as pytree

from . import _chip, _memory
from ._memory import contiguous_strides, from_host, is_on_npu, on_host

aten = torch.ops.aten
KEY = 'PrivateUse1'
# Operations that take indices or values from the host beside npu tensors, as on the device.
MIXES_DEVICES = {'aten::index.Tensor', 'aten::index_put_', 'aten::_index_put_impl_', 'aten::index', 'aten::index_put'}

generator = torch.Generator()           # of the device
pinned = set()                          # addresses of host memory that was asked to be pinned
_libraries = []


class Facts:
    """What the fallback needs to know of an operation."""

    def __init__(self, op):
        self.writes = any(a.alias_info is not None and a.alias_info.is_write for a in op._schema.arguments)
        self.out_names = [a.name for a in op._schema.arguments if a.is_out]
        self.is_random = torch.Tag.nondeterministic_seeded in op.tags
        self.mixes_devices = op._schema.name in MIXES_DEVICES


facts_of = functools.lru_cache(maxsize=None)(Facts)


class Call:
    """One operation: its arguments on the host, and its results back on the npu."""

    def __init__(self, op, facts):
        self.op, self.facts = op, facts
        self.by_memory = {}             # address of the storage -> [(npu tensor, its CPU twin)]
        self.outs = []                  # (npu tensor given as out=, CPU tensor that stands for it)
        self.on_cpu = None

    def to_host(self, value):
        if isinstance(value, torch.Tensor):
            if value.device.type == 'npu':
                twin = on_host(value)
                self.by_memory.setdefault(value.untyped_storage().data_ptr(), []).append((value, twin))
                return twin
            if value.dim() > 0:
                self.on_cpu = value
            return value
        if isinstance(value, torch.device) and value.type == 'npu':
            return torch.device('cpu')
        return value

    def arguments(self, args, kwargs):
        args, kwargs = pytree.tree_map(self.to_host, (args, kwargs))
        if self.on_cpu is not None and self.by_memory and not self.facts.mixes_devices:
            raise RuntimeError('Expected all tensors to be on the same device, but found at least two devices, npu:0 '
                               'and cpu! (when checking {})'.format(self.op))
        if kwargs.get('pin_memory'):
            kwargs['pin_memory'] = False
        for name in self.facts.out_names:       # a CPU kernel may resize out=, which a twin cannot
            if name in kwargs:
                given = next(pair for pairs in self.by_memory.values() for pair in pairs if pair[1] is kwargs[name])[0]
                kwargs[name] = torch.empty_strided(given.shape, given.stride(), dtype=given.dtype)
                self.outs.append((given, kwargs[name]))
        return args, kwargs

    def from_host(self, value):
        if not isinstance(value, torch.Tensor) or value.device.type != 'cpu':
            return value
        for given, out in self.outs:
            if out is value:
                return given
        address = value.untyped_storage().data_ptr()
        for tensor, twin in self.by_memory.get(address, ()) if address else ():
            if value is twin or (self.facts.writes and _same_view(value, twin)):
                return tensor
        if address and address in self.by_memory:
            base = self.by_memory[address][0][0]
            if base.dtype == value.dtype:
                return _on_cpu_key(aten.as_strided.default)(base, value.shape, value.stride(), value.storage_offset())
        return from_host(value)

    def fill_outs(self):
        for given, out in self.outs:
            if given.shape != out.shape:
                resize_(given, out.shape)
            if out.numel():
                on_host(given).copy_(out)


def _same_view(one, other):
    return (one.shape, one.stride(), one.dtype, one.storage_offset()) == (
        other.shape, other.stride(), other.dtype, other.storage_offset())


def fallback(op, *args, **kwargs):
    """Any operation without a kernel of its own."""
    call = Call(op, facts_of(op))
    args, kwargs = call.arguments(args, kwargs)
    if call.facts.is_random:
        host = torch.get_rng_state()
        torch.set_rng_state(generator.get_state())
        try:
            results = op(*args, **kwargs)
        finally:
            generator.set_state(torch.get_rng_state())
            torch.set_rng_state(host)
    else:
        results = op(*args, **kwargs)
    _chip.check(results if isinstance(results, (tuple, list)) else [results])
    call.fill_outs()
    return pytree.tree_map(call.from_host, results)


def _on_cpu_key(op):
    """The CPU's kernel of an operation that only rewrites shapes, which is as good for an npu tensor."""
    return lambda *args, **kwargs: op._op_dk(DispatchKey.CPU, *args, **kwargs)


def copy_from(source, target, non_blocking=False):
    """Between devices, and from one type to another."""
    written = on_host(target) if is_on_npu(target) else target
    written.copy_(on_host(source) if is_on_npu(source) else source)
    if is_on_npu(target):
        _chip.check([written])
    return target


def copy_from_and_resize(source, target):
    return copy_from(source, resize_(target, source.shape))


def empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    strides = contiguous_strides(size)
    if memory_format not in (None, torch.contiguous_format, torch.preserve_format):
        strides = torch.empty(size, device='meta', memory_format=memory_format).stride()
    return _memory.empty(size, strides, dtype or torch.get_default_dtype())


def empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
    return _memory.empty(size, stride, dtype or torch.get_default_dtype())


def resize_(self, size, *, memory_format=None):
    """Only to other numbers of elements; new memory where the old is too small."""
    storage, offset, strides = self.untyped_storage(), self.storage_offset(), contiguous_strides(size)
    elements = torch.Size(size).numel()
    if (elements + offset) * self.dtype.itemsize > storage.nbytes():
        larger = _memory.empty(size, strides, self.dtype)
        if self.numel():
            on_host(larger).flatten()[:self.numel()].copy_(on_host(self).flatten())
        storage, offset = larger.untyped_storage(), 0
    return _on_cpu_key(aten.set_.source_Storage_storage_offset)(self, storage, offset, list(size), strides)


def convolution_backward(grad, inputs, weight, stride, padding, dilation, transposed, output_padding, groups, mask):
    bias = [weight.shape[1] * groups if transposed else weight.shape[0]] if mask[2] else None
    return fallback(aten.convolution_backward.default, grad, inputs, weight, bias, stride, padding, dilation,
                    transposed, output_padding, groups, mask)


def pin(self, device=None):
    copy = self.clone()
    pinned.add(copy.untyped_storage().data_ptr())
    return copy


def register():
    """Make PyTorch call the above."""
    every, single, host = (torch.library.Library(name, 'IMPL') for name in ('_', 'aten', 'aten'))
    every.fallback(fallback, KEY)
    for name, kernel in {
            '_copy_from': copy_from, '_copy_from_and_resize': copy_from_and_resize,
            'empty.memory_format': empty, 'empty_strided': empty_strided, 'resize_': resize_,
            '_local_scalar_dense': lambda self: on_host(self).item(), 'record_stream': lambda self, stream: None,
            'convolution_overrideable': lambda *args: fallback(aten.convolution.default, *args),
            'convolution_backward_overrideable': convolution_backward,
            '_fused_sdp_choice': lambda *args, **kwargs: 0}.items():        # 0: attention written out in products
        single.impl(name, kernel, KEY)
    for op in (aten.as_strided.default, aten.view.default, aten.view.dtype, aten._reshape_alias.default,
               aten.unfold.default, aten.set_.source_Storage, aten.set_.source_Storage_storage_offset,
               aten.set_.source_Tensor):
        overload = '' if op._overloadname == 'default' else '.' + op._overloadname
        single.impl(op._schema.name.split('::')[1] + overload, _on_cpu_key(op), KEY)
    host.impl('_pin_memory', pin, 'CPU', allow_override=True)
    host.impl('is_pinned', lambda self, device=None: self.untyped_storage().data_ptr() in pinned, 'CPU',
              allow_override=True)
    _libraries.extend([every, single, host])
