"""Trading time for memory: the inner activations of blocks are computed again in the backward pass (arXiv:1604.06174).

A model calls each of its blocks through its attribute `run_block`, which is one of the functions here.
"""
import torch
from torch.utils.checkpoint import checkpoint

from util.compat import supported

# The older, reentrant way is all that PyTorch has where the keyword is missing.
_OPTIONS = supported(checkpoint, use_reentrant=False)


def directly(block, x, *options):
    """Call a block with a tensor; autograd keeps all that its backward pass needs."""
    return block(x, *options)


def checkpointed(block, x, *options):
    """Call a block of which nothing but x is kept for the backward pass; dropped paths are the same again."""
    trained = any(parameter.requires_grad for parameter in block.parameters())
    if not torch.is_grad_enabled() or not (trained or x.requires_grad):
        return block(x, *options)
    if not (x.requires_grad or _OPTIONS):
        x = x.detach().requires_grad_()     # as behind frozen blocks: the reentrant way would give no gradient at all
    return checkpoint(lambda tokens: block(tokens, *options), x, **_OPTIONS)     # 1.5 takes nothing but tensors
