"""The machine's devices and what their chip can do, by the environment; and the overflow flag of a saturating chip."""
import os

import torch

KIND = os.environ.get('EMULATED_NPU_CHIP', '910A')
NAME = {'910A': 'Ascend910A', '910B': 'Ascend910B1'}[KIND]
SATURATES = KIND == '910A'          # gives the largest number for inf and 0 for NaN, and raises the flag
HAS_BF16 = KIND == '910B'
VISIBLE = len(os.environ.get('ASCEND_RT_VISIBLE_DEVICES', '0,1,2,3,4,5,6,7').split(','))


class Flag:
    """Whether a computation has overflowed since it was cleared."""
    raised = False


def check(results):
    """What the chip makes of an operation's results, CPU tensors that are changed in place."""
    for result in results:
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            if result.dtype == torch.bfloat16 and not HAS_BF16:
                raise RuntimeError(NAME + ' computes no bf16')
            if SATURATES and not torch.isfinite(result).all():
                Flag.raised = True
                result.nan_to_num_()


# Operators of torch_npu. On the device both take 8 numbers, and the status is the first of them.

def npu_clear_float_status(self, mode=0):
    Flag.raised = False
    return torch.zeros_like(self)


def npu_get_float_status(self, mode=0):
    return self.fill_(float(SATURATES and Flag.raised))
