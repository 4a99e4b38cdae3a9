"""Tensors on the device 'npu' whose bytes lie in host memory, and CPU tensors over the same bytes.

A tensor comes from a hand-made DLPack capsule; its device type kDLExtDev is PrivateUse1 to PyTorch.
"""
import ctypes

import torch

CPU, EXTENSION = 1, 12          # DLDeviceType
CODES = {torch.float32: (2, 32), torch.float64: (2, 64), torch.float16: (2, 16), torch.bfloat16: (4, 16),
         torch.int8: (0, 8), torch.int16: (0, 16), torch.int32: (0, 32), torch.int64: (0, 64), torch.uint8: (1, 8),
         torch.bool: (6, 8)}    # DLDataTypeCode, bits
HEADER = 64                     # bytes before shape and strides; the structure below has fewer

libc = ctypes.CDLL(None)
libc.aligned_alloc.restype, libc.aligned_alloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t, ctypes.c_size_t]
FREE = ctypes.cast(libc.free, ctypes.c_void_p).value
new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype, new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class ManagedTensor(ctypes.Structure):
    """DLManagedTensor with its DLTensor flattened."""
    _fields_ = [('data', ctypes.c_void_p), ('device_type', ctypes.c_int32), ('device_id', ctypes.c_int32),
                ('ndim', ctypes.c_int32), ('code', ctypes.c_uint8), ('bits', ctypes.c_uint8),
                ('lanes', ctypes.c_uint16), ('shape', ctypes.c_void_p), ('strides', ctypes.c_void_p),
                ('byte_offset', ctypes.c_uint64), ('context', ctypes.c_void_p), ('deleter', ctypes.c_void_p)]


def _round_up(size):
    return (size + 63) // 64 * 64


def _tensor(dtype, shape, strides, device_type, data=None, size=0):
    """A tensor over `data`, or over `size` new bytes that go with it. One allocation holds all; libc frees it."""
    ndim = len(shape)
    start = _round_up(HEADER + 16 * ndim)
    base = libc.aligned_alloc(64, start + _round_up(size))
    managed = ManagedTensor.from_address(base)
    managed.data = base + start if data is None else data
    managed.device_type, managed.device_id, managed.ndim = device_type, 0, ndim
    managed.code, managed.bits = CODES[dtype]
    managed.lanes, managed.byte_offset, managed.context, managed.deleter = 1, 0, None, FREE
    numbers = (ctypes.c_int64 * (2 * ndim)).from_address(base + HEADER)
    numbers[:ndim], numbers[ndim:] = shape, strides
    managed.shape, managed.strides = base + HEADER, base + HEADER + 8 * ndim
    return torch._C._from_dlpack(new_capsule(base, b'dltensor', None))


def contiguous_strides(shape):
    """Strides of a dense tensor, last dimension fastest."""
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return strides[::-1]


def empty(shape, strides, dtype):
    """A new tensor on the npu."""
    shape, strides = list(shape), list(strides)
    elements = 1 + sum((n - 1) * s for n, s in zip(shape, strides)) if all(shape) else 0
    return _tensor(dtype, shape, strides, EXTENSION, size=max(1, elements * dtype.itemsize))


def is_on_npu(value):
    return isinstance(value, torch.Tensor) and value.device.type == 'npu'


def on_host(tensor):
    """A CPU tensor over the bytes of an npu tensor, which must outlive it."""
    storage = tensor.untyped_storage()
    flat = _tensor(tensor.dtype, [storage.nbytes() // tensor.dtype.itemsize], [1], CPU, storage.data_ptr())
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def from_host(tensor):
    """A new npu tensor with the values, and the strides where they are dense, of a CPU tensor."""
    dense = torch.ops.aten.is_non_overlapping_and_dense(tensor)
    result = empty(tensor.shape, tensor.stride() if dense else contiguous_strides(tensor.shape), tensor.dtype)
    if tensor.numel():
        on_host(result).copy_(tensor)
    return result
