"""What a block of an encoder looks at: its attention weights, which training never keeps."""
import itertools

from util import encoder


def attention_weights(model, imgs, number):
    """softmax(q k^T / sqrt(d)) of a block (arXiv:1706.03762, section 3.2.1).

    Args:
        imgs: (N, C, H, W), normalised.
        number: of the block, counted from 1.
    Returns:
        (N, heads, 1 + L, 1 + L): the rows are queries and sum to 1, the columns keys; the class token is first.
    """
    attention, taken = model.blocks[number - 1].attn, []
    hook = attention.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
    try:
        for _ in itertools.islice(encoder.block_outputs(model, imgs), number):
            pass
    finally:
        hook.remove()
    tokens, = taken
    count, length, width = tokens.shape
    qkv = attention.qkv(tokens).reshape(count, length, 3, attention.num_heads, width // attention.num_heads)
    q, k, _ = qkv.permute(2, 0, 3, 1, 4)
    return ((q * q.shape[-1] ** -.5) @ k.transpose(-2, -1)).softmax(dim=-1)


def attention_maps(model, imgs, number, query='cls'):
    """The share of attention that each patch gets in a block: (N, heads, rows, columns) of patches.

    Args:
        query: 'cls', what the class token attends to; 'mean', the mean over what all patches attend to.
    """
    weights = attention_weights(model, imgs, number)
    onto_patches = weights[:, :, 0, 1:] if query == 'cls' else weights[:, :, 1:, 1:].mean(dim=2)
    return onto_patches.reshape(*onto_patches.shape[:2], *model.grid_size)


def fitting_query(model):
    """'mean' for a classifier of the mean, whose class token learns to attend to nothing in the end; else 'cls'."""
    return 'mean' if getattr(model, 'global_pool', False) else 'cls'
