"""torch_npu.optim: AdamW over all parameters of a group at once, in one buffer each for values and gradients."""
import torch
from _fused_adamw import FusedAdamW, flatten


class NpuFusedAdamW(FusedAdamW):
    """As the original it takes fp32 and fp16, and the gradients that are there at the first step, for good."""

    is_fused_optimizer = True
    _buffers = _states = None

    def zero_grad(self, set_to_none=False):
        if set_to_none:
            raise ValueError('NpuFusedAdamW: set_to_none is not supported')
        if self._buffers is None:
            return super().zero_grad(set_to_none=False)
        for parts in self._buffers:
            for _, _, gradients in parts:
                gradients.zero_()

    @torch.no_grad()
    def step(self, closure=None):
        if self._buffers is None:
            self._buffers = [self._combined(group) for group in self.param_groups]
            self._states = [[self.combined_state(members) for members, _, _ in parts] for parts in self._buffers]
        for group, parts, states in zip(self.param_groups, self._buffers, self._states):
            for part, state in zip(parts, states):
                self.step_together(group, *part, state)

    @staticmethod
    def _combined(group):
        """(parameters, their values, their gradients) for each type."""
        parts, there = [], [p for p in group['params'] if p.grad is not None]
        if any(p.dtype not in (torch.float32, torch.float16) for p in there):
            raise TypeError('NpuFusedAdamW: only fp32 and fp16 parameters')
        for dtype in (torch.float32, torch.float16):
            members = [p for p in there if p.dtype == dtype]
            if members:
                parts.append((members, flatten(members), flatten([p.grad for p in members])))
        return parts
