"""What the fused optimizers of torch_npu and apex have in common: AdamW over one buffer of many tensors."""
import math

import torch


def flatten(tensors):
    """One buffer with the tensors' values, which become views of it; None for no tensors."""
    if not tensors:
        return None
    buffer, start = torch.cat([tensor.detach().reshape(-1) for tensor in tensors]), 0
    for tensor in tensors:
        tensor.data = buffer[start:start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
    return buffer


class FusedAdamW(torch.optim.Optimizer):
    """AdamW that steps many parameters at once (arXiv:1711.05101, algorithm 2)."""

    def __init__(self, params, lr=1e-3, betas=(.9, .999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, {'lr': lr, 'betas': betas, 'eps': eps, 'weight_decay': weight_decay})

    def combined_state(self, members):
        """The moments of `members` in one buffer each; those of each member become views of it."""
        for parameter in members:
            state = self.state[parameter]
            if not state:
                state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
            for name in ('exp_avg', 'exp_avg_sq'):
                state[name] = state[name].detach().to(parameter).clone()
        states = [self.state[parameter] for parameter in members]
        # As in the originals: where the count is a tensor, this is the same one, and it is counted up twice a step.
        return {'step': states[0]['step'], 'exp_avg': flatten([state['exp_avg'] for state in states]),
                'exp_avg_sq': flatten([state['exp_avg_sq'] for state in states])}

    def step_together(self, group, members, values, gradients, state):
        """Step `members`, whose values and gradients lie in one buffer each; `state` is their combined_state."""
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
