"""LARS: momentum whose step is scaled, matrix by matrix, to the size of the weights (You et al., arXiv:1708.03888)."""
import torch


class LARS(torch.optim.Optimizer):
    """As MAE uses it for linear probing (arXiv:2111.06377, appendix A.1).

    For a matrix w with gradient g: d = g + weight_decay w, times trust_coefficient |w| / |d| where neither norm is 0.
    1-D tensors, such as biases, neither decay nor are scaled: d = g. Then m = momentum m + d, and w = w - lr m.
    """

    def __init__(self, params, lr, weight_decay=0., momentum=.9, trust_coefficient=.001):
        super().__init__(params, {'lr': lr, 'weight_decay': weight_decay, 'momentum': momentum,
                                  'trust_coefficient': trust_coefficient})

    @torch.no_grad()
    def step(self):
        """Update the weights by their gradients."""
        for group in self.param_groups:
            for parameter in group['params']:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state['mu'] = torch.zeros_like(parameter)
                    state['mu'].mul_(group['momentum']).add_(_direction(parameter, group))
                    parameter.add_(state['mu'], alpha=-group['lr'])


def _direction(parameter, group):
    """d of the formula above; the norms stay on the device."""
    if parameter.dim() < 2:
        return parameter.grad
    direction = parameter.grad.add(parameter, alpha=group['weight_decay'])
    size, length = parameter.norm(), direction.norm()
    ratio = group['trust_coefficient'] * size / length
    return direction * torch.where((size > 0) & (length > 0), ratio, torch.ones_like(ratio))
