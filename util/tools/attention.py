"""Attention maps of a ViT: python -m util.tools.attention --resume CHECKPOINT --output PNG IMAGES...

Each row is one image, followed by heat maps of one block's attention from the class token, or averaged over the patch
tokens: the mean over the heads, or each head too. Bright patches get the most attention.
"""
import itertools
import os
from functools import partial
from typing import List, Optional, Tuple

import numpy as np
import torch
from PIL import Image, ImageOps

from util import log
from util.checkpoints import load_model
from util.config.inference_flags import add_images, add_model
from util.config.parser import Parser, add_device, positive_int
from util.data.lazy_image import BICUBIC
from util.errors import UserError, run
from util.log import logger
from util.models import features
from util.reporting.thumbnails import grid, resize
from util.tools.inference import Inference, evenly_spaced
from util.tools.outputs import open_output

SIDE = 192                              # pixels: longer side of an image
BATCH = 8
OPACITY = .65                           # of the heat map over the grey image
QUERIES = {'cls': 'the class token attends to', 'mean': 'the patches attend to, on average'}
COLOURS = '#04031e', '#fcfdbf', '#b63679'       # of no, maximum and half attention: readable in greyscale too


def attention_weights(model: torch.nn.Module, imgs: torch.Tensor, block: int) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) of a block (arXiv:1706.03762, section 3.2.1).

    Args:
        imgs: (N, C, H, W), normalised; block: counted from 1.
    Returns:
        (N, heads, 1 + L, 1 + L): rows are queries and sum to 1, columns are keys; the class token is first.
    """
    attention, inputs = model.blocks[block - 1].attn, []
    hook = attention.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    next(itertools.islice(features.block_outputs(model, imgs), block - 1, None))
    hook.remove()
    tokens, = inputs
    count, length, width = tokens.shape
    qkv = attention.qkv(tokens).reshape(count, length, 3, attention.num_heads, width // attention.num_heads)
    q, k, _ = qkv.permute(2, 0, 3, 1, 4)
    return ((q * q.shape[-1] ** -.5) @ k.transpose(-2, -1)).softmax(dim=-1)


def attention_maps(model: torch.nn.Module, imgs: torch.Tensor, block: int, query: str = 'cls') -> torch.Tensor:
    """Attention to each patch in a block, (N, heads, rows, columns) of patches.

    Args:
        query: 'cls', attention of the class token; 'mean', the mean over the patch tokens.
    """
    weights = attention_weights(model, imgs, block)
    to_patches = weights[:, :, 0, 1:] if query == 'cls' else weights[:, :, 1:, 1:].mean(dim=2)
    return to_patches.reshape(*to_patches.shape[:2], *model.grid_size)


def overlay(image: Image.Image, weights: np.ndarray) -> Image.Image:
    """Heat map of attention (rows, columns) of patches over a grey image; the maximum is brightest."""
    levels = Image.fromarray((weights / max(weights.max(), 1e-12) * 255).astype(np.uint8)).resize(image.size, BICUBIC)
    return Image.blend(image.convert('L').convert('RGB'), ImageOps.colorize(levels, *COLOURS), OPACITY)


def row_of(image: Image.Image, weights: np.ndarray, name: str, heads: bool) -> Tuple[List[str], List[Image.Image]]:
    """(titles, images) of a row: image and heat maps of its attention (heads, rows, columns of patches).

    The maps are the mean over the heads, and each head if `heads`; titles name the maximum, which is brightest.
    """
    image = resize(image, SIDE)
    maps = {'mean': weights.mean(axis=0)}
    if heads:
        maps.update(('head {}'.format(i), head) for i, head in enumerate(weights, 1))
    titles = ['{}, max {:.1%}'.format(title, shares.max()) for title, shares in maps.items()]
    return [name, *titles], [image, *(overlay(image, shares) for shares in maps.values())]


def main(argv: Optional[List[str]] = None) -> None:
    parser = Parser(prog='python -m util.tools.attention', description=__doc__.split('\n')[0])
    add_model(parser, 'main_pretrain.py or main_finetune.py')
    add_images(parser)
    add = parser.add_argument
    add('--output', required=True, help='PNG file to write; an existing one is renamed')
    add('--block', type=positive_int, help='transformer block, counted from 1; default: the last')
    add('--query', choices=sorted(QUERIES),
        help='query of the attention: cls, the class token; mean, the average over the patch tokens; default: mean for '
             'a classifier with --global_pool, which ignores its class token; else cls')
    add('--heads', action='store_true', help='show each head too, not only their mean')
    add('--count', type=positive_int, default=8, help='maximum number of images, evenly spaced among those given')
    add_device(add)
    args = parser.parse_args(argv)
    log.set_up(True, results=True)
    loaded = load_model.load_any(args.resume, args.input_size)
    depth = len(loaded.model.blocks)
    query = args.query or ('mean' if getattr(loaded.model, 'global_pool', False) else 'cls')
    block = args.block or depth
    if block > depth:
        raise UserError('--block {}: the model has {} blocks, counted from 1'.format(block, depth))
    inference = Inference(loaded, args.device)
    dataset, rows = inference.dataset(args.images), []
    with open_output(args.output) as file:
        for indices, maps in inference.run(evenly_spaced(dataset, args.count),
                                           partial(attention_maps, block=block, query=query), BATCH):
            for i, weights in zip(indices, maps.float().cpu().numpy()):
                name = os.sep.join(dataset.name_of(i).split(os.sep)[-2:])
                rows.append(row_of(inference.to_image(dataset[i][0]), weights, name, args.heads))
        titles, images = zip(*rows)
        grid(images, titles).save(file, 'PNG')
    logger.info('block %d of %d, what %s: %s', block, depth, QUERIES[query], args.output)


if __name__ == '__main__':
    run(main)
