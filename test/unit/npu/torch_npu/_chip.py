"""The machine's devices and what their chip can do, by the environment; and the overflow flag of a saturating chip."""
import os

import torch

NAMES = {'910A': 'Ascend910A', '910B': 'Ascend910B1'}
LARGEST = torch.finfo(torch.float16).max


def kind():
    """'910A' or '910B'."""
    chip = os.environ.get('EMULATED_NPU_CHIP', '910A')
    if chip not in NAMES:
        raise RuntimeError('EMULATED_NPU_CHIP: {} is none of {}'.format(chip, ', '.join(NAMES)))
    return chip


def visible_devices():
    """How many devices this process sees."""
    present = int(os.environ.get('EMULATED_NPUS', '8'))
    visible = os.environ.get('ASCEND_RT_VISIBLE_DEVICES')
    if visible is None:
        return present
    return len([index for index in visible.split(',') if index.strip().isdigit() and int(index) < present])


SATURATES = kind() == '910A'        # gives the largest number instead of inf, and raises the flag
HAS_BF16 = kind() == '910B'


class Flag:
    """Whether a computation has overflowed since it was cleared."""
    raised = False


def check(results):
    """What the chip makes of an operation's results, CPU tensors that are changed in place."""
    for result in results:
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            if result.dtype == torch.bfloat16 and not HAS_BF16:
                raise RuntimeError('{} computes no bf16'.format(NAMES[kind()]))
            if result.dtype == torch.float16 and SATURATES and result.numel() and torch.isinf(result).any():
                Flag.raised = True
                result.clamp_(-LARGEST, LARGEST)
