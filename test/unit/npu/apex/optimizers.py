"""apex.optimizers, as far as tests need it: AdamW over one buffer of many tensors, as Ascend's apex has."""
import math

import torch


def flatten(tensors):
    """One buffer with the tensors' values, which become views of it."""
    buffer, start = torch.cat([tensor.detach().reshape(-1) for tensor in tensors]), 0
    for tensor in tensors:
        tensor.data = buffer[start:start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
    return buffer


class NpuFusedAdamW(torch.optim.Optimizer):
    """AdamW that steps a group of parameters at once (arXiv:1711.05101, algorithm 2).

    As the originals it takes the gradients that are there at the first step, from where they are then, for good.
    """

    def __init__(self, params, lr=1e-3, betas=(.9, .999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, {'lr': lr, 'betas': betas, 'eps': eps, 'weight_decay': weight_decay})
        self._parts = None

    def zero_grad(self):
        """As in the originals without set_to_none."""
        super().zero_grad(set_to_none=False)

    @torch.no_grad()
    def step(self):
        """Update the weights."""
        if self._parts is None:
            self._parts = [self._combined(group) for group in self.param_groups]
        for group, (members, values, gradients, state) in zip(self.param_groups, self._parts):
            for parameter in members:
                self.state[parameter]['step'] += 1
            state['step'] += 1
            beta1, beta2 = group['betas']
            first, second = state['exp_avg'], state['exp_avg_sq']
            values.mul_(1 - group['lr'] * group['weight_decay'])
            first.mul_(beta1).add_(gradients, alpha=1 - beta1)
            second.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
            root = (second.sqrt() / math.sqrt(1 - beta2 ** state['step'])).add_(group['eps'])
            values.addcdiv_(first, root, value=-group['lr'] / (1 - beta1 ** state['step']))

    def _combined(self, group):
        """(parameters, their values, their gradients, their moments), in one buffer each."""
        members = [p for p in group['params'] if p.grad is not None]
        for parameter in members:
            state = self.state[parameter]
            if not state:
                state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        states = [self.state[parameter] for parameter in members]
        # As in the originals: where the count is a tensor, this is the same one, and it is counted up twice a step.
        state = {'step': states[0]['step'], **{name: flatten([state[name] for state in states])
                                               for name in ('exp_avg', 'exp_avg_sq')}}
        return members, flatten(members), flatten([p.grad for p in members]), state
