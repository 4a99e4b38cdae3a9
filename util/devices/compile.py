"""--compile: torch.compile, where it works; one line says so where it does not."""
from contextlib import nullcontext

import torch
from torch import nn

from util.log import logger
from util.text import first_line


def compile_blocks(model, device):
    """Compile the transformer blocks of a model in place; state_dict, hooks and everything else stay as they are.

    They are most of the work, and alike, so that one compilation serves all of them.
    Args:
        device: where a small block is tried first, since a compiler fails only when the first batch comes.
    """
    if not hasattr(nn.Module, 'compile'):
        logger.warning('--compile: torch %s does not compile modules; continuing without', torch.__version__)
        return
    probe = nn.Sequential(nn.Linear(8, 8), nn.GELU()).to(device)
    try:
        probe.compile()
        probe(torch.zeros(2, 8, device=device)).sum().backward()
    except Exception as error:          # compilers and what they call raise whatever they like
        logger.warning('--compile: torch.compile does not work here (%s); continuing without', first_line(error))
        return
    for block in [*model.blocks, *getattr(model, 'decoder_blocks', [])]:
        block.compile()
    model.compiled = True


def eagerly(model):
    """A context without compiled code, where PyTorch has one: compiling for another batch size takes far longer."""
    set_stance = getattr(getattr(torch, 'compiler', None), 'set_stance', None)
    return set_stance('force_eager') if set_stance and getattr(model, 'compiled', False) else nullcontext()
