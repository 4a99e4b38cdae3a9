"""torch.npu.amp: a gradient scaler that also asks the overflow flag of a saturating chip."""
import torch
from torch import distributed as dist

from . import utils


class GradScaler(torch.amp.GradScaler):
    """The scale of fp16 losses; where one process has overflowed, all have."""

    def __init__(self, init_scale=2. ** 16, growth_factor=2., backoff_factor=.5, growth_interval=2000, dynamic=True,
                 enabled=True):
        super().__init__('npu', init_scale=init_scale, growth_factor=growth_factor, backoff_factor=backoff_factor,
                         growth_interval=growth_interval, enabled=enabled)
        self._dynamic, self._flag_is_clear = dynamic, False

    def scale(self, outputs):
        if self._dynamic and not self._flag_is_clear:
            utils.clear_npu_overflow_flag()
            self._flag_is_clear = True
        return super().scale(outputs)

    def _unscale_grads_(self, optimizer, inv_scale, found_inf, allow_fp16):
        found = super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16)
        overflows = torch.tensor([float(self._dynamic and utils.get_npu_overflow_flag())]).to('npu')
        for tensor in found.values():
            overflows += tensor
        if dist.is_initialized():
            dist.all_reduce(overflows)
        for tensor in found.values():
            tensor.fill_(float(self._dynamic and overflows.item() > 0))
        return found

    def update(self, new_scale=None):
        super().update(new_scale)
        self._flag_is_clear = False
