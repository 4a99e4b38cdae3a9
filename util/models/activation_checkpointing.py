"""Activation checkpointing: recompute activations of blocks in the backward pass, to save memory (arXiv:1604.06174).

A model calls its blocks through its attribute `run_block`, which is one of these functions.
"""
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from util.compat import supported

# Without this keyword, PyTorch has only the reentrant implementation.
_OPTIONS = supported(checkpoint, use_reentrant=False)


def directly(block: nn.Module, x: Tensor, *options: Any) -> Tensor:
    """Call a block; autograd keeps its activations."""
    return block(x, *options)


def checkpointed(block: nn.Module, x: Tensor, *options: Any) -> Tensor:
    """Call a block, keep only x and recompute the rest in the backward pass, with the same dropped paths."""
    trained = any(parameter.requires_grad for parameter in block.parameters())
    if not torch.is_grad_enabled() or not (trained or x.requires_grad):
        return block(x, *options)
    if not (x.requires_grad or _OPTIONS):
        x = x.detach().requires_grad_()     # e.g. after frozen blocks: the reentrant one would compute no gradients
    return checkpoint(lambda tokens: block(tokens, *options), x, **_OPTIONS)     # 1.5: tensor arguments only
