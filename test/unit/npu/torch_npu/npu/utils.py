"""torch.npu.utils: what the chip can do."""
from .. import _chip, _record


def is_support_inf_nan():
    """False where fp16 saturates."""
    return not _chip.SATURATES


def is_bf16_supported():
    return _chip.HAS_BF16


def get_npu_overflow_flag():
    """Whether anything has overflowed since the flag was cleared; never set on a chip that gives inf."""
    _record.wait('read')
    return _chip.SATURATES and _chip.Flag.raised


def clear_npu_overflow_flag():
    _chip.Flag.raised = False
