"""A pickle module that rebuilds tensors and plain values and can run nothing else.

torch.load takes it as `pickle_module` where weights_only does not exist, and the reader of CIFAR's batches uses it.
A pickle can only call what find_class hands out, so the list below is all that a file can reach.
"""
import argparse
import collections
import pickle

import torch

ALLOWED = {
    ('collections', 'OrderedDict'): collections.OrderedDict,
    ('argparse', 'Namespace'): argparse.Namespace,          # published checkpoints keep their flags in one
    ('torch', 'Size'): torch.Size,
    ('torch', 'device'): torch.device,
    ('torch.nn.parameter', 'Parameter'): torch.nn.Parameter,
}
TENSOR_BUILDERS = ('_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_parameter')


def _lookup(module, name):
    """The object that a pickle may use under this name, or None."""
    if (module, name) in ALLOWED:
        return ALLOWED[module, name]
    if module == 'torch._utils' and name in TENSOR_BUILDERS:
        return getattr(torch._utils, name)
    if module in ('torch', 'torch.storage') and name.endswith('Storage'):
        return getattr(torch if module == 'torch' else torch.storage, name, None)
    if module == 'torch' and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    if module == 'numpy' and name in ('ndarray', 'dtype'):
        import numpy
        return getattr(numpy, name)
    if module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        return {'_reconstruct': _numpy_reconstruct, 'scalar': _numpy_scalar}.get(name)
    if (module, name) == ('_codecs', 'encode'):
        return _latin1_only
    return None


def _numpy_reconstruct(*args):
    import numpy
    return (getattr(numpy, '_core', None) or numpy.core).multiarray._reconstruct(*args)


def _numpy_scalar(dtype, data):
    """A Python number; frombuffer refuses object dtypes, which could hold anything."""
    import numpy
    return numpy.frombuffer(data, dtype=dtype)[0].item()


def _latin1_only(text, encoding):
    """How Python 2 pickles spell bytes; other codecs stay closed, since some of them run code or decompress."""
    if encoding != 'latin1':
        raise pickle.UnpicklingError('codec {!r} is not allowed'.format(encoding))
    return text.encode('latin1')


class Unpickler(pickle.Unpickler):
    """pickle.Unpickler that refuses every name outside the list."""

    def find_class(self, module, name):
        found = _lookup(module, name)
        if found is None:
            raise pickle.UnpicklingError('it holds {}.{}, which is neither a tensor nor a plain value'
                                         .format(module, name))
        return found


def load(file, **options):
    """pickle.load with the restricted Unpickler; takes `encoding` and `errors`, as the original does."""
    return Unpickler(file, **options).load()


UnpicklingError = pickle.UnpicklingError
