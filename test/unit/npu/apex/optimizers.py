"""apex.optimizers, as far as tests need it."""
import torch
from _fused_adamw import FusedAdamW


class NpuFusedAdamW(FusedAdamW):
    """AdamW over whole parameter groups at once; steps only after amp.initialize."""

    is_npu_fused_optimizer = True

    @torch.no_grad()
    def step(self, closure=None):
        """Update the weights."""
        if not hasattr(self, '_amp_stash'):
            raise RuntimeError('NpuFusedAdamW: amp.initialize has not seen this optimizer')
        parts_by_group = self._amp_stash.combined_by_group()
        if not self._amp_stash.states_combined:
            self._states = [[self.combined_state(members) for members, _, _ in parts] for parts in parts_by_group]
            self._amp_stash.states_combined = True
        for group, parts, states in zip(self.param_groups, parts_by_group, self._states):
            for part, state in zip(parts, states):
                self.step_together(group, *part, state)
