"""See where a model looks: python -m util.tools.attention --resume CHECKPOINT --output PICTURE.png IMAGES...

StreamCopy each image, its attention in one block as colours over it: what the class token, or the mean of the patches,
attends to; the mean over the heads, or each head too.
"""
import itertools
import os
from functools import partial

import numpy as np
from PIL import Image

from util import log
from util.checkpoints import load_model
from util.config.inference_flags import add_images, add_model, check_checkpoint, check_output
from util.config.parser import Parser, add_device, positive_int
from util.data.lazy_image import BICUBIC
from util.errors import UserError, run
from util.models import features
from util.reporting.thumbnails import grid, scaled
from util.text import one_line
from util.tools.inference import Inference, output_file

CELL, GAP, HEADING = 192, 6, 400        # pixels: longer side of an image, between images, width at least
BATCH = 8
ACROSS = 6                              # images side by side, where a row of heads needs no more
STRENGTH = .65                          # of the colours over the grey image
QUERIES = {'cls': 'the class token attends to', 'mean': 'the patches attend to, on average'}
KEY = 'dark: nothing; bright: the maximum, in the title'
# From least to most, of rising lightness: readable in grey, and by the colour-blind.
COLOURS = np.array([(4, 3, 30), (80, 18, 123), (182, 54, 121), (251, 136, 97), (252, 253, 191)], np.float32)


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
    next(itertools.islice(features.block_outputs(model, imgs), number - 1, None))
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


def coloured(pixels, weights):
    """A PIL image in grey below the colours of its attention, (rows, columns) of patches: the maximum is brightest."""
    shares = Image.fromarray((weights / max(weights.max(), 1e-12)).astype(np.float32)).resize(pixels.size, BICUBIC)
    levels = np.linspace(0, 1, len(COLOURS))
    colours = np.stack([np.interp(shares, levels, channel) for channel in COLOURS.T], axis=-1)
    grey = np.array(pixels.convert('L'), np.float32)[..., None]
    return Image.fromarray((grey * (1 - STRENGTH) + colours * STRENGTH).round().astype(np.uint8))


def cells(image, weights, name, heads):
    """[([title], PIL image)] of a PIL image and its attention (heads, rows, columns): the mean, and all `heads`."""
    image, maps = scaled(image, CELL), [('mean', weights.mean(axis=0))]
    if heads:
        maps += [('head {}'.format(i), head) for i, head in enumerate(weights, 1)]
    return [([name], image)] + [(['{}: {:.1%}'.format(title, shares.max())], coloured(image, shares))
                                for title, shares in maps]


def sheet(rows, heading):
    """Rows of `cells`, all of one size, in one PIL image below a line and the key to the colours."""
    joined = max(1, ACROSS // len(rows[0]))
    rows = [sum(rows[i:i + joined], []) for i in range(0, len(rows), joined)]
    cells = grid([[image for _, image in row] for row in rows], [[title for title, _ in row] for row in rows], GAP)
    return grid([[cells]], [[[heading, KEY, '']]], width=HEADING)


def main(argv=None):
    parser = Parser(prog='python -m util.tools.attention', description=__doc__.split('\n')[0])
    add_model(parser, 'main_pretrain.py or main_finetune.py')
    add_images(parser)
    add = parser.add_argument
    add('--output', required=True, help='PNG file to write; one that is there is renamed')
    add('--block', type=positive_int, help='block whose attention is shown, counted from 1; default: the last')
    add('--query', choices=sorted(QUERIES),
        help='whose attention: cls, that of the class token; mean, the mean over that of all patches; default: mean '
             'for a classifier of the mean (--global_pool), whose class token serves nothing in the end; else cls')
    add('--heads', action='store_true', help='show each head too, beside their mean')
    add('--count', type=positive_int, default=8, help='images at most, spread over those named')
    add_device(add)
    args = parser.parse_args(argv)
    check_checkpoint(parser, args)
    check_output(parser, args)
    log.set_up(True, results=True)
    loaded = load_model.load_any(args.resume, args.input_size)
    depth = len(loaded.model.blocks)
    query = args.query or ('mean' if getattr(loaded.model, 'global_pool', False) else 'cls')
    number = args.block or depth
    if number > depth:
        raise UserError('--block {}: the model has {} blocks, counted from 1'.format(number, depth))
    inference = Inference(loaded, args.device)
    images, rows = inference.images(args.images), []
    for indices, maps in inference.over(inference.some(images, args.count),
                                        partial(attention_maps, number=number, query=query), BATCH):
        for i, weights in zip(indices, maps.float().cpu().numpy()):
            name = os.sep.join(images.name_of(i).split(os.sep)[-2:])
            rows.append(cells(inference.shown(images[i][0]), weights, name, args.heads))
    heading = 'Block {} of {}: what {}'.format(number, depth, QUERIES[query])
    with output_file(args.output) as file:
        sheet(rows, heading).save(file, 'PNG')
    print('{}: {}'.format(heading, one_line(args.output)))


if __name__ == '__main__':
    run(main)
