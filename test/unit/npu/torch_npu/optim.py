"""torch_npu.optim: AdamW over all parameters of a group at once, in one buffer each for values and gradients."""
import torch
from _fused_adamw import adamw, flatten


class NpuFusedAdamW(torch.optim.Optimizer):
    """As the original it takes fp32 and fp16, and the gradients that are there at the first step, for good."""

    def __init__(self, params, lr=1e-3, betas=(.9, .999), eps=1e-8, weight_decay=1e-2, amsgrad=False):
        if min(lr, eps, weight_decay, *betas) < 0 or max(betas) >= 1:
            raise ValueError('NpuFusedAdamW: a setting is out of range')
        if amsgrad:
            raise NotImplementedError('the emulated NpuFusedAdamW has no amsgrad')
        super().__init__(params, {'lr': lr, 'betas': betas, 'eps': eps, 'weight_decay': weight_decay,
                                  'amsgrad': amsgrad})
        self.is_fused_optimizer = True
        self._buffers, self._states = None, None

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
        if self._states is None:
            self._states = [[self._combined_state(members) for members, _, _ in parts] for parts in self._buffers]
        for group, parts, states in zip(self.param_groups, self._buffers, self._states):
            for (members, values, gradients), state in zip(parts, states):
                for parameter in members:
                    self.state[parameter]['step'] += 1
                adamw(values, gradients, state, group)

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

    def _combined_state(self, members):
        for parameter in members:
            state = self.state[parameter]
            if not state:
                state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
            for name in ('exp_avg', 'exp_avg_sq'):
                state[name] = state[name].detach().to(parameter).clone()
        states = [self.state[parameter] for parameter in members]
        return {'step': states[0]['step'], 'exp_avg': flatten([state['exp_avg'] for state in states]),
                'exp_avg_sq': flatten([state['exp_avg_sq'] for state in states])}
