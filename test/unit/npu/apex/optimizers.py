"""apex.optimizers, as far as tests need it."""
import torch
from _fused_adamw import adamw, flatten


class NpuFusedAdamW(torch.optim.Optimizer):
    """AdamW over whole parameter groups at once; steps only after amp.initialize."""

    def __init__(self, params, lr=1e-3, betas=(.9, .999), eps=1e-8, weight_decay=1e-2, amsgrad=False):
        if min(lr, eps, weight_decay, *betas) < 0 or max(betas) >= 1:
            raise ValueError('NpuFusedAdamW: a setting is out of range')
        if amsgrad:
            raise NotImplementedError('the stand-in has no amsgrad')
        self.is_npu_fused_optimizer = True
        super().__init__(params, {'lr': lr, 'betas': betas, 'eps': eps, 'weight_decay': weight_decay,
                                  'amsgrad': amsgrad})

    @torch.no_grad()
    def step(self, closure=None):
        """Update the weights."""
        if not hasattr(self, '_amp_stash'):
            raise RuntimeError('NpuFusedAdamW: amp.initialize has not seen this optimizer')
        parts_by_group = self._amp_stash.combined_by_group()
        if not self._amp_stash.states_combined:
            self._states = [[self._combined_state(members) for members, _, _ in parts] for parts in parts_by_group]
            self._amp_stash.states_combined = True
        for group, parts, states in zip(self.param_groups, parts_by_group, self._states):
            for (members, values, gradients), state in zip(parts, states):
                for parameter in members:
                    self.state[parameter]['step'] += 1
                adamw(values, gradients, state, group)

    def _combined_state(self, members):
        for parameter in members:
            state = self.state[parameter]
            if not state:
                state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
            for name in ('exp_avg', 'exp_avg_sq'):
                state[name] = state[name].detach().to(parameter).clone()
        states = [self.state[parameter] for parameter in members]
        # As in the original: where the count is a tensor, this is the same one, and it is counted up twice a step.
        return {'step': states[0]['step'], 'exp_avg': flatten([state['exp_avg'] for state in states]),
                'exp_avg_sq': flatten([state['exp_avg_sq'] for state in states])}
