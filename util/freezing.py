"""--freeze: the embedding and the first blocks of a classifier stay as they are."""
from util.errors import UserError
from util.log import logger


def frozen_blocks(flag, depth):
    """How many blocks --freeze means, a number or 'all', of `depth`; None where nothing is frozen.

    Raises:
        UserError: there are not so many.
    """
    if flag not in (None, 'all') and flag > depth:
        raise UserError('--freeze {}: the model has {} blocks; give at most {}, or all'.format(flag, depth, depth))
    return depth if flag == 'all' else flag


def freeze(model, flag):
    """Let nothing train of what --freeze names: patch embedding, class token, positions and the first blocks.

    No gradient passes through them, so autograd keeps nothing of them. They drop no paths: what no longer learns gains
    nothing by noise. The other blocks keep the rates that they have.
    Args:
        flag: a number of blocks, 'all', or None for nothing.
    Raises:
        UserError: there are not so many blocks.
    """
    blocks = frozen_blocks(flag, len(model.blocks))
    if blocks is None:
        return
    frozen = [*model.patch_embed.parameters(), model.cls_token, model.pos_embed, *model.blocks[:blocks].parameters()]
    for parameter in frozen:
        parameter.requires_grad = False
    for module in model.blocks[:blocks].modules():
        if hasattr(module, 'drop_prob'):
            module.drop_prob = 0.
    logger.info('frozen: patch embedding, class token, positions and %d of %d blocks, %.2f M parameters',
                blocks, len(model.blocks), sum(parameter.numel() for parameter in frozen) / 1e6)


def check_resumed(resumed, flag, depth):
    """Raise UserError where the checkpoint that a training goes on from had other blocks frozen."""
    before = (resumed.get('args') or {}).get('freeze')
    if resumed.goes_on and frozen_blocks(before, depth) != frozen_blocks(flag, depth):
        raise UserError('{}: was trained with --freeze {}, this run has {}; give it to --finetune for a new run'.format(
            resumed.path, *('none' if each is None else each for each in (before, flag))))
