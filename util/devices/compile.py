"""torch.compile of transformer blocks (--compile), with a fallback to eager mode."""
from contextlib import nullcontext
from typing import ContextManager

import torch
from torch import nn

from util.log import logger
from util.text import first_line


def compile_blocks(model: nn.Module, device: torch.device) -> None:
    """Compile the transformer blocks of a model in place; state_dict and hooks are unaffected.

    The blocks share their shape, so one compilation serves all, also of those with stochastic depth. A small module is
    compiled on `device` first, since a broken compiler raises only at the first batch.
    """
    if not hasattr(nn.Module, 'compile'):
        logger.warning('--compile: torch %s cannot compile modules; continuing in eager mode', torch.__version__)
        return
    probe = _DropPath(.5).to(device)        # PyTorch does not compile the forward of its own modules
    try:
        probe.compile()
        probe(torch.zeros(2, 8, 8, device=device, requires_grad=True)).sum().backward()
    except Exception as error:          # compilers raise exceptions of any type
        logger.warning('--compile: torch.compile fails here (%s); continuing in eager mode', first_line(error))
        return
    drops_paths = any(getattr(module, 'drop_prob', 0.) for module in model.modules())
    for block in [*model.blocks, *getattr(model, 'decoder_blocks', [])]:
        for name, layer in list(block.named_children()) if drops_paths else ():
            if name.startswith('drop_path'):
                setattr(block, name, _DropPath(getattr(layer, 'drop_prob', 0.)).to(device).train(block.training))
        block.compile()
    model.compiled = True


class _DropPath(nn.Module):
    """Stochastic depth with its rate in a tensor: a number is compiled into the code, anew for each block."""

    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob
        self.register_buffer('keep', torch.tensor(1. - drop_prob), persistent=False)

    def forward(self, x):
        kept = (torch.rand(x.shape[0], 1, 1, device=x.device) < self.keep) / self.keep
        return x * kept.to(x.dtype) if self.training else x


def eager_mode(model: nn.Module) -> ContextManager:
    """Context without compiled code, if PyTorch supports it: compiling for a one-off batch size takes far longer."""
    set_stance = getattr(getattr(torch, 'compiler', None), 'set_stance', None)
    return set_stance('force_eager') if set_stance and getattr(model, 'compiled', False) else nullcontext()
