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

    @property
    def _device_types(self):
        return [torch.device('npu')]

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

    def allreduce(self, tensors, opts=None):
        opts = opts or dist.AllreduceOptions()
        twins, averages = self._twins(tensors, reduces=True), opts.reduceOp == dist.ReduceOp.AVG
        if averages:
            opts.reduceOp = dist.ReduceOp.SUM
        work = self._finished(self._gloo.allreduce(twins, opts))
        for twin in twins if averages else ():
            twin.div_(self.size())
        return work

    def broadcast(self, tensors, opts=None):
        return self._finished(self._gloo.broadcast(self._twins(tensors), opts or dist.BroadcastOptions()))

    def allgather(self, outputs, inputs, opts=None):
        return self._finished(self._gloo.allgather([self._twins(output) for output in outputs], self._twins(inputs),
                                                   opts or dist.AllgatherOptions()))

    def barrier(self, opts=None):
        return self._finished(self._gloo.barrier(dist.BarrierOptions()))


def _create(options, _):
    return ProcessGroupHCCL(options.store, options.group_rank, options.group_size, options.timeout)


def register():
    """Make init_process_group('hccl') work."""
    dist.Backend.register_backend('hccl', _create, extended_api=True, devices=['npu'])
