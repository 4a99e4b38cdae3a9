"""See what a masked autoencoder sees: python -m util.visualize --resume CHECKPOINT --output PICTURE.png IMAGES...

Each row of the picture is one image: what the model was shown, what it made of it, the same with the visible patches as
they are, and the original.
"""
import os
from collections import namedtuple

import torch
from PIL import Image, ImageDraw, ImageFont

import models_mae
from util import log, preprocessing, trained
from util.datasets import pretraining_set
from util.errors import one_line, run
from util.features import supported
from util.inference_arguments import check_checkpoint, check_output
from util.output_file import output_file
from util.parser import COUNT, INDEX, INSIDE_0_1, Parser
from util.pictures import open_picture
from util.thumbnails import scaled
from util.transforms import Normalize, to_pil

COLUMNS = ('masked', 'reconstruction', 'reconstruction\nwith visible patches', 'original')
NORMALISED = '(true patch statistics)'     # which a model trained with norm_pix_loss does not predict
CELL, TITLE, GAP = 160, 150, 4         # pixels: longer side of an image, width of a title, gaps
LETTERS, LINE = 13, 17                  # pixels: height of letters, where this Pillow lets one choose, and of a line
# (N, C, H, W) each, normalised. Hidden pixels of `masked` are 0; `predicted` is the model's work alone, visible patches
# too; in `pasted` these are the original ones.
Reconstruction = namedtuple('Reconstruction', 'masked predicted pasted')


@torch.no_grad()
def reconstruct(model, imgs, mask_ratio, seed=0):
    """What is shown of images and what the model makes of it.

    A model trained with norm_pix_loss predicts patches without their mean and contrast; these are then taken from
    the original patches.
    Args:
        imgs: (N, C, H, W), normalised.
    Returns:
        Reconstruction.
    """
    generator = torch.Generator()
    generator.manual_seed(seed)
    noise = torch.rand(len(imgs), model.grid_size[0] * model.grid_size[1], generator=generator)
    _, pred, mask = model(imgs, mask_ratio, noise.to(imgs.device))
    patches, hidden = model.patchify(imgs), mask[..., None]
    pred = pred.to(patches.dtype)           # half precision has too few digits for the product
    if model.norm_pix_loss:
        mean, std = models_mae.patch_statistics(patches)
        pred = pred * std + mean
    return Reconstruction(*map(model.unpatchify, (patches * (1 - hidden), pred,
                                                  pred * hidden + patches * (1 - hidden))))


def to_image(tensor, normalize=None):
    """One normalised image (C, H, W) -> PIL image.

    Args:
        normalize: util.transforms.Normalize that has made it; default: that of ImageNet.
    """
    return to_pil((normalize or Normalize(len(tensor))).shown(tensor[None])[0])


def titles(model):
    """Headings of the columns, as lists of lines."""
    note = [NORMALISED] if model.norm_pix_loss else []
    return [title.split('\n') + (note if title.startswith('reconstruction') else []) for title in COLUMNS]


def picture(model, imgs, mask_ratio, seed=0, normalize=None):
    """The grid of masked, reconstructed and original images as a PIL image."""
    columns = [[scaled(to_image(img, normalize), CELL) for img in column]
               for column in (*reconstruct(model, imgs, mask_ratio, seed), imgs)]
    width, height = columns[0][0].size
    words, across = titles(model), max(width, TITLE) + GAP
    top = LINE * max(map(len, words)) + 2 * GAP
    canvas = Image.new('RGB', (len(words) * across + GAP, top + len(imgs) * (height + GAP)), 'white')
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(**supported(ImageFont.load_default, size=LETTERS))
    for column, (lines, images) in enumerate(zip(words, columns)):
        left = GAP + column * across
        for line, text in enumerate(reversed(lines), 1):
            pen.text((left, top - GAP - line * LINE), text, fill='black', font=font)
        for row, image in enumerate(images):
            canvas.paste(image, (left, top + row * (height + GAP)))
    return canvas


def find_images(paths, count):
    """At most `count` util.pictures.Pictures: the files among `paths`, and such as lie spread over the folders."""
    found = []
    for path in paths:
        if os.path.isdir(path):
            dataset = pretraining_set(path)
            shown = min(count, len(dataset))
            found += [dataset[i * len(dataset) // shown][0] for i in range(shown)]
        else:
            found.append(open_picture(path))
    return found[:count]


def _main():
    parser = Parser(prog='python -m util.visualize', description=__doc__.split('\n')[0])
    parser.add_argument('images', nargs='+', metavar='IMAGES', help='image files or folders of images')
    parser.add_argument('--resume', required=True, help='checkpoint of main_pretrain.py')
    parser.add_argument('--output', required=True, help='PNG file to write; one that is there is renamed')
    parser.add_argument('--mask_ratio', type=INSIDE_0_1, help='share of patches to hide; default: as in training')
    parser.add_argument('--count', type=COUNT, default=8, help='images at most')
    parser.add_argument('--seed', type=INDEX, default=0, help='seed of the masks')
    args = parser.parse_args()
    check_checkpoint(parser, args)
    check_output(parser, args)
    log.set_up(True, results=True)
    model, flags, _ = trained.load_autoencoder(args.resume)
    transform, normalize = preprocessing.of(flags)
    pixels = torch.stack([transform(picture).float() for picture in find_images(args.images, args.count)])
    grid = picture(model, normalize(pixels), args.mask_ratio or flags.get('mask_ratio', .75), args.seed, normalize)
    with output_file(args.output) as file:
        grid.save(file, 'PNG')
    print('reconstructions: {}'.format(one_line(args.output)))


if __name__ == '__main__':
    run(_main)
