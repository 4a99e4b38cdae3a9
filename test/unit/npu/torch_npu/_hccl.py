"""The process group 'hccl': gloo over the same bytes, with HCCL's refusals."""
import torch
import torch.distributed as dist

from ._memory import on_host

REDUCIBLE = {torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.bfloat16}


class ProcessGroupHCCL(dist.ProcessGroup):
    """Takes npu tensors only, and adds up no float64, uint8 or bool."""

    def __init__(self, store, rank, size, timeout):
        super().__init__(rank, size)
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)

    def getBackendName(self):
        return 'hccl'

    @staticmethod
    def _twins(tensors, reduces=False):
        for tensor in tensors:
            if tensor.device.type != 'npu':
                raise RuntimeError('No backend type associated with device type {}'.format(tensor.device.type))
            if reduces and tensor.dtype not in REDUCIBLE:
                raise RuntimeError('HCCL AllReduce: Unsupported data type {}'.format(tensor.dtype))
        return [on_host(tensor) for tensor in tensors]

    @staticmethod
    def _finished(work):
        work.wait()             # while the npu tensors behind the twins live
        return work

    def allreduce(self, tensors, opts):
        return self._finished(self._gloo.allreduce(self._twins(tensors, reduces=True), opts))

    def broadcast(self, tensors, opts):
        return self._finished(self._gloo.broadcast(self._twins(tensors), opts))

    def allgather(self, outputs, inputs, opts):
        return self._finished(self._gloo.allgather(list(map(self._twins, outputs)), self._twins(inputs), opts))


def _create(options, _):
    return ProcessGroupHCCL(options.store, options.group_rank, options.group_size, options.timeout)


def register():
    """Make init_process_group('hccl') work."""
    dist.Backend.register_backend('hccl', _create, extended_api=True, devices=['npu'])
