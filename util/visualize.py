"""See what a masked autoencoder sees: python -m util.visualize --resume CHECKPOINT --output PICTURE.png IMAGES...

Each row of the picture is one image: what the model was shown, what it made of it, the same with the visible patches as
they are, and the original.
"""
from collections import namedtuple

import torch

import models_mae
from util import log, trained
from util.errors import one_line, run
from util.inference import Inference, output_file
from util.inference_arguments import add_images, check_checkpoint, check_output
from util.parser import COUNT, INDEX, INSIDE_0_1, Parser
from util.thumbnails import grid, scaled
from util.transforms import to_pil

COLUMNS = (['masked'], ['reconstruction'], ['reconstruction', 'with visible patches'], ['original'])
NORMALISED = '(true patch statistics)'     # which a model trained with norm_pix_loss does not predict
CELL, TITLE = 160, 162         # pixels: longer side of an image, width of a title
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


def to_image(tensor, normalize):
    """One image (C, H, W) that `normalize`, util.transforms.Normalize, has made -> PIL image."""
    return to_pil(normalize.shown(tensor[None])[0])


def picture(model, imgs, mask_ratio, seed, normalize):
    """The grid of masked, reconstructed and original images as a PIL image."""
    columns = [[scaled(to_image(img, normalize), CELL) for img in column.float().cpu()]
               for column in (*reconstruct(model, imgs, mask_ratio, seed), imgs)]
    note = [NORMALISED] if model.norm_pix_loss else []
    titles = [lines + (note if 'reconstruction' in lines else []) for lines in COLUMNS]
    return grid(list(zip(*columns)), [titles], width=TITLE)


def main(argv=None):
    parser = Parser(prog='python -m util.visualize', description=__doc__.split('\n')[0])
    add_images(parser)
    parser.add_argument('--resume', required=True, help='checkpoint of main_pretrain.py')
    parser.add_argument('--output', required=True, help='PNG file to write; one that is there is renamed')
    parser.add_argument('--mask_ratio', type=INSIDE_0_1, help='share of patches to hide; default: as in training')
    parser.add_argument('--count', type=COUNT, default=8, help='images at most, spread over those named')
    parser.add_argument('--seed', type=INDEX, default=0, help='seed of the masks')
    args = parser.parse_args(argv)
    check_checkpoint(parser, args)
    check_output(parser, args)
    log.set_up(True, results=True)
    loaded = trained.load_autoencoder(args.resume)
    inference = Inference(loaded, 'cpu')
    mask_ratio = args.mask_ratio or loaded.flags.get('mask_ratio', .75)
    # one batch, since the masks of a batch depend on its size
    (_, shown), = inference.over(inference.some(inference.images(args.images), args.count), lambda model, imgs: picture(
        model, imgs, mask_ratio, args.seed, inference.normalize), args.count, num_workers=0)
    with output_file(args.output) as file:
        shown.save(file, 'PNG')
    print('reconstructions: {}'.format(one_line(args.output)))


if __name__ == '__main__':
    run(main)
