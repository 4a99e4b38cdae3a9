"""The loss scale, and how an overflow is noticed."""
import sys

import torch


class LossScaler:
    """A dynamic or a static loss scale.

    A static scale looks for no overflow: it never skips a step. A dynamic one counts backward passes, not steps.
    """

    def __init__(self, loss_scale):
        self.dynamic = loss_scale == 'dynamic'
        self.loss_scale = 2. ** 16 if self.dynamic else float(loss_scale)
        self.unskipped, self._has_overflow = 0, False
        self._saturating = _saturating_npu() if self.dynamic else None

    def before_backward(self):
        """Forget earlier overflows of a chip that only tells them by its flag."""
        if self._saturating:
            self._saturating.clear_npu_overflow_flag()

    def after_backward(self):
        """Read that flag; where one process overflowed, all of them did."""
        self._has_overflow = bool(self._saturating and self._saturating.get_npu_overflow_flag())
        if self._saturating and torch.distributed.is_available() and torch.distributed.is_initialized():
            count = torch.tensor([float(self._has_overflow)]).to('npu')
            torch.distributed.all_reduce(count)
            self._has_overflow = count.item() != 0

    def unscale(self, model_grad, master_grad, earlier=None):
        """master_grad = model_grad / scale + earlier, unless this backward has overflowed."""
        if self.dynamic and not self._saturating and not self._has_overflow:
            self._has_overflow = not torch.isfinite(model_grad).all().item()
        if self._has_overflow:
            return
        if earlier is not None and earlier.data_ptr() == master_grad.data_ptr():
            earlier = earlier.clone()
        if master_grad is not model_grad:
            master_grad.copy_(model_grad)
        master_grad.mul_(1. / self.loss_scale)
        if earlier is not None:
            master_grad.add_(earlier)

    def update_scale(self):
        """Adapt the scale to what this backward showed; True where its step is to be skipped."""
        skips = self._has_overflow and self.dynamic
        self.unskipped = 0 if skips else self.unskipped + 1
        if skips:
            self.loss_scale /= 2
        elif self.unskipped == 2000 and self.dynamic:
            self.loss_scale, self.unskipped = min(2. ** 24, self.loss_scale * 2), 0
        return skips


def _saturating_npu():
    """torch_npu.npu where the chip gives the largest number instead of inf, else None."""
    npu = getattr(sys.modules.get('torch_npu'), 'npu', None)
    if not hasattr(npu, 'get_npu_overflow_flag'):
        return None
    gives_inf = getattr(getattr(npu, 'utils', None), 'is_support_inf_nan', None)
    return None if gives_inf and gives_inf() else npu
