"""See what a masked autoencoder sees: python -m util.visualize --resume CHECKPOINT --output PICTURE.png IMAGES...

Each row of the picture is one image: what the model was shown, what it made of it, and the original.
"""
import argparse
import os

import torch
from PIL import Image, ImageDraw

import models_mae
from util import trained
from util.datasets import pretraining_set
from util.errors import one_line, run
from util.files import atomic_file
from util.parser import COUNT, INDEX, INSIDE_0_1
from util.pictures import open_picture
from util.transforms import Normalize, evaluation_transform, to_pil

COLUMNS = ('masked', 'reconstructed', 'original')
CELL, GAP, HEADER = 160, 4, 20        # pixels; CELL: an image's longer side
NEAREST = 0         # by Pillow's number: release 9.1 warns of the name


@torch.no_grad()
def reconstruct(model, imgs, mask_ratio, seed=0):
    """What is shown of images and what the model makes of it.

    A model trained with norm_pix_loss predicts patches without their mean and contrast; these are then taken from
    the original patches.
    Args:
        imgs: (N, C, H, W), normalised.
    Returns:
        masked, reconstructed: (N, C, H, W) each, normalised; hidden pixels of `masked` are 0. Visible patches of
        `reconstructed` are the original ones.
    """
    generator = torch.Generator()
    generator.manual_seed(seed)
    noise = torch.rand(len(imgs), model.grid_size[0] * model.grid_size[1], generator=generator)
    _, pred, mask = model(imgs, mask_ratio, noise)
    patches, hidden = model.patchify(imgs), mask[..., None]
    if model.norm_pix_loss:
        mean, std = models_mae.patch_statistics(patches)
        pred = pred * std + mean
    return (model.unpatchify(patches * (1 - hidden)), model.unpatchify(pred * hidden + patches * (1 - hidden)))


def to_image(tensor, normalize=None):
    """One normalised image (C, H, W) -> PIL image.

    Args:
        normalize: util.transforms.Normalize that has made it; default: that of ImageNet.
    """
    return to_pil((normalize or Normalize(len(tensor))).shown(tensor[None])[0])


def picture(model, imgs, mask_ratio, seed=0, normalize=None):
    """The grid of masked, reconstructed and original images as a PIL image."""
    masked, reconstructed = reconstruct(model, imgs, mask_ratio, seed)
    width, height = (CELL * side // max(imgs.shape[2:]) for side in (imgs.shape[3], imgs.shape[2]))
    canvas = Image.new('RGB', (len(COLUMNS) * (width + GAP) + GAP, len(imgs) * (height + GAP) + GAP + HEADER), 'white')
    pen = ImageDraw.Draw(canvas)
    note = ' (patch means from the original)' if model.norm_pix_loss else ''
    for column, (title, rows) in enumerate(zip(COLUMNS, (masked, reconstructed, imgs))):
        left = GAP + column * (width + GAP)
        pen.text((left, GAP), title if title != 'reconstructed' else title + note, fill='black')
        for row, tensor in enumerate(rows):
            canvas.paste(to_image(tensor, normalize).resize((width, height), NEAREST),
                         (left, HEADER + GAP + row * (height + GAP)))
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
    parser = argparse.ArgumentParser(prog='python -m util.visualize', description=__doc__.split('\n')[0])
    parser.add_argument('images', nargs='+', help='image files or folders of images')
    parser.add_argument('--resume', required=True, help='checkpoint of main_pretrain.py')
    parser.add_argument('--output', required=True, help='PNG file to write')
    parser.add_argument('--mask_ratio', type=INSIDE_0_1, help='share of patches to hide; default: as in training')
    parser.add_argument('--count', type=COUNT, default=8, help='images at most (default: %(default)s)')
    parser.add_argument('--seed', type=INDEX, default=0, help='seed of the masks (default: %(default)s)')
    args = parser.parse_args()
    model, flags, _ = trained.load_autoencoder(args.resume)
    transform = evaluation_transform(flags.get('input_size', 224), flags.get('in_chans', 3))
    normalize = Normalize.of(flags)
    pixels = torch.stack([transform(picture) for picture in find_images(args.images, args.count)])
    grid = picture(model, normalize(pixels), args.mask_ratio or flags.get('mask_ratio', .75), args.seed, normalize)
    with atomic_file(args.output) as file:
        grid.save(file, 'PNG')
    print('reconstructions: {}'.format(one_line(args.output)))


if __name__ == '__main__':
    run(_main)
