"""See where a model looks: python -m util.attention --resume CHECKPOINT --output PICTURE.png IMAGES...

Beside each image, its attention in one block as colours over it: what the class token, or the mean of the patches,
attends to; the mean over the heads, or each head too.
"""
import os
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch.utils.data import Subset

from util import log, trained
from util.attention_maps import attention_maps, fitting_query
from util.errors import UserError, one_line, run
from util.features import supported
from util.inference import Inference
from util.inference_arguments import add_images, add_model, check_checkpoint, check_output
from util.output_file import output_file
from util.parser import COUNT, Parser, add_device
from util.pictures import BICUBIC

# In pixels: longer side of an image, between images, height of a line, width of a letter.
CELL, GAP, TEXT, LETTER = 192, 6, 18, 7
HEADING = 400                           # that the lines on top need
BATCH = 8
ACROSS = 6                              # images side by side, where a row of heads needs no more
STRENGTH = .65                          # of the colours over the grey image
QUERIES = {'cls': 'the class token attends to', 'mean': 'the patches attend to, on average'}
# From least to most, of rising lightness: readable in grey, and by the colour-blind.
COLOURS = np.array([(4, 3, 30), (80, 18, 123), (182, 54, 121), (251, 136, 97), (252, 253, 191)], np.float32)


def coloured(pixels, weights):
    """Attention over an image, its maximum in the brightest colour, 0 in the darkest.

    Args:
        pixels: PIL image; weights: (rows, columns) of patches, not negative.
    Returns:
        PIL image of the same size.
    """
    shares = Image.fromarray((weights / max(weights.max(), 1e-12)).astype(np.float32))
    shares = np.clip(np.array(shares.resize(pixels.size, BICUBIC)), 0, 1) * (len(COLOURS) - 1)
    lower = np.minimum(shares.astype(int), len(COLOURS) - 2)
    part = (shares - lower)[..., None]
    colours = COLOURS[lower] * (1 - part) + COLOURS[lower + 1] * part
    grey = np.array(pixels.convert('L'), np.float32)[..., None]
    return Image.fromarray((grey * (1 - STRENGTH) + colours * STRENGTH).round().astype(np.uint8))


def cells(pixels, weights, name, heads):
    """[(title, PIL image)] of an image (H, W, 1 or 3), uint8, called `name`, and its attention (heads, rows, columns).

    Args:
        heads: whether each head comes too, beside their mean.
    """
    array = pixels.numpy()
    image = Image.fromarray(array if array.shape[2] == 3 else array[..., 0]).convert('RGB')
    scale = CELL / max(image.size)
    image = image.resize([max(round(side * scale), 1) for side in image.size], BICUBIC)
    maps = [('mean', weights.mean(axis=0))]
    if heads:
        maps += [('head {}'.format(i), head) for i, head in enumerate(weights, 1)]
    return [(name, image)] + [('{}: {:.1%}'.format(title, shares.max()), coloured(image, shares))
                              for title, shares in maps]


def grid(rows, heading):
    """Rows of (title, image) cells, all of one size, in one PIL image below a line and the key to the colours."""
    font = ImageFont.load_default(**supported(ImageFont.load_default, size=13))
    width, height = rows[0][0][1].size
    side_by_side = max(1, min(ACROSS // len(rows[0]), len(rows)))
    row_width, row_height, top = len(rows[0]) * (width + GAP) + 2 * GAP, TEXT + height + GAP, 2 * TEXT + 2 * GAP
    canvas = Image.new('RGB', (max(side_by_side * row_width - GAP, HEADING),
                               top + -(-len(rows) // side_by_side) * row_height), 'white')
    pen = ImageDraw.Draw(canvas)
    pen.text((GAP, GAP), heading, fill='black', font=font)
    key = coloured(Image.new('L', (CELL // 2, TEXT // 2)), np.arange(CELL // 2)[None])
    canvas.paste(key, (GAP, GAP + TEXT + TEXT // 4))
    pen.text((2 * GAP + key.size[0], GAP + TEXT), 'from nothing to the maximum in a title', fill='black', font=font)
    for i, row in enumerate(rows):
        x, y = GAP + i % side_by_side * row_width, top + i // side_by_side * row_height
        for title, image in row:
            # The font has no other letters.
            shown = one_line(title)[-((width - GAP) // LETTER):].encode('latin-1', 'replace')
            pen.text((x, y), shown.decode('latin-1'), fill='black', font=font)
            canvas.paste(image, (x, y + TEXT))
            x += width + GAP
    return canvas


def _flags(argv):
    parser = Parser(prog='python -m util.attention', description=__doc__.split('\n')[0])
    add_model(parser, 'main_pretrain.py or main_finetune.py')
    add_images(parser)
    add = parser.add_argument
    add('--output', required=True, help='PNG file to write; one that is there is renamed')
    add('--block', type=COUNT, help='block whose attention is shown, counted from 1; default: the last')
    add('--query', choices=sorted(QUERIES),
        help='whose attention: cls, that of the class token; mean, the mean over that of all patches; default: mean '
             'for a classifier of the mean (--global_pool), whose class token serves nothing in the end; else cls')
    add('--heads', action='store_true', help='show each head too, beside their mean')
    add('--count', type=COUNT, default=8, help='images at most, spread over those named')
    add_device(add)
    args = parser.parse_args(argv)
    check_checkpoint(parser, args)
    check_output(parser, args)
    return args


def main(argv=None):
    args = _flags(argv)
    log.set_up(True, results=True)
    loaded = trained.load_either(args.resume, args.input_size)
    depth, query = len(loaded.model.blocks), args.query or fitting_query(loaded.model)
    number = args.block or depth
    if number > depth:
        raise UserError('--block {}: the model has {} blocks, counted from 1'.format(number, depth))
    inference = Inference(loaded, args.device)
    images = inference.images(args.images)
    shown = min(args.count, len(images))
    some = Subset(images, [i * len(images) // shown for i in range(shown)])
    rows = []
    for indices, maps in inference.over(some, partial(attention_maps, number=number, query=query), BATCH):
        for i, weights in zip(indices, maps.float().cpu().numpy()):
            name = os.sep.join(images.name_of(i).split(os.sep)[-2:])
            rows.append(cells(inference.shown(images[i][0]), weights, name, args.heads))
    heading = 'Block {} of {}: what {}'.format(number, depth, QUERIES[query])
    picture = grid(rows, heading)
    with output_file(args.output) as file:
        picture.save(file, 'PNG')
    print('{}: {}'.format(heading, one_line(args.output)))


if __name__ == '__main__':
    run(main)
