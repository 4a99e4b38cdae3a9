"""torch.npu.utils: what the chip can do."""
from .. import _chip, _record


def is_support_inf_nan():
    """False where fp16 saturates."""
    return not _chip.SATURATES


def is_bf16_supported():
    return _chip.HAS_BF16


def get_npu_overflow_flag():
    """Whether anything has overflowed since the flag was cleared."""
    if not _chip.SATURATES:
        raise RuntimeError('Unsupported api when soc_version >= Ascend910B1, please use npu_check_overflow')
    _record.wait('read')
    return _chip.Flag.raised


def clear_npu_overflow_flag():
    _chip.Flag.raised = False
