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


def adamw(values, gradients, state, group):
    """One step in place (arXiv:1711.05101, algorithm 2)."""
    state['step'] += 1
    beta1, beta2 = group['betas']
    first, second = state['exp_avg'], state['exp_avg_sq']
    values.mul_(1 - group['lr'] * group['weight_decay'])
    first.mul_(beta1).add_(gradients, alpha=1 - beta1)
    second.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
    root = (second.sqrt() / math.sqrt(1 - beta2 ** state['step'])).add_(group['eps'])
    values.addcdiv_(first, root, value=-group['lr'] / (1 - beta1 ** state['step']))
