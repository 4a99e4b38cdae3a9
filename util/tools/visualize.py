"""See what a masked autoencoder sees: python -m util.tools.visualize --resume CHECKPOINT --output PICTURE.png IMAGES...

Each row of the picture is one image: what the model was shown, what it made of it, the same with the visible patches as
they are, and the original. `Reconstructions` are those of a few images in the course of a pre-training.
"""
import copy
import os
from collections import namedtuple
from contextlib import nullcontext

import torch

import models_mae
from util import log
from util.checkpoints import load_model
from util.config.inference_flags import add_images, check_checkpoint, check_output
from util.config.parser import COUNT, INDEX, RATIO, Parser
from util.data.transforms import to_pil
from util.devices.compile import eagerly
from util.errors import one_line, run
from util.reporting import thumbnails
from util.tools.inference import Inference, output_file

COLUMNS = (['masked'], ['reconstruction'], ['reconstruction', 'with visible patches'], ['original'])
NORMALISED = '(true patch statistics)'     # which a model trained with norm_pix_loss does not predict
CELL, TITLE = 160, 162         # pixels: longer side of an image, width of a title
IMAGES, SIDE = 6, 128       # of Reconstructions, and pixels of the longer side of each
MOMENTS = 8                 # of a training at which these are reconstructed, beside the reports on the way
NOTE = 'The same images of the training set each time; {:.0%} of their patches are hidden, visible ones are shown as ' \
       'they are.'
NORMALISED_NOTE = ' Trained with --norm_pix_loss, the model predicts patches without their mean and contrast: those ' \
                  'of hidden patches are taken from the original.'
# (N, C, H, W) each, normalised. Hidden pixels of `masked` are 0; `predicted` is the model's work alone, visible patches
# too; in `pasted` these are the original ones.
Reconstruction = namedtuple('Reconstruction', 'masked predicted pasted')


@torch.no_grad()
def reconstruct(model, imgs, mask_ratio, seed=0):
    """The Reconstruction of images (N, C, H, W), normalised.

    A model trained with norm_pix_loss predicts patches without their mean and contrast; these are then taken from
    the original patches.
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


def to_images(imgs, normalize, side):
    """Images (N, C, H, W) that `normalize`, Normalize, has made -> PIL images of that longer side."""
    return [thumbnails.scaled(to_pil(pixels), side) for pixels in normalize.shown(imgs)]


class Reconstructions:
    """For the report and for checkpoints; nothing is read before `after`, which the main process alone calls.

    Args:
        model: as its precision made it, not in DistributedDataParallel.
        dataset: of the training; images at equal distances are taken, the same in every run.
        transform, normalize: from a Picture to what the model takes.
        precision, device, epochs: of the run.
        earlier: `snapshots` as a checkpoint has kept it, or None; what is not of these images is dropped.
        start: epoch that the run begins at; what is from later epochs is dropped.
        within: gives a context in which the model has the weights to judge (see util.training.ema).
    """

    def __init__(self, model, dataset, transform, normalize, mask_ratio, precision, device, epochs, earlier, start,
                 within=nullcontext):
        self._model, self._normalize, self._mask_ratio, self._within = model, normalize, mask_ratio, within
        self._dataset = copy.copy(dataset)
        self._dataset.transform = transform
        self._precision, self._device = precision, device
        # The epochs, counted from 0, after which they are reconstructed: dense at first, when most changes.
        self._moments = {round(epochs ** (i / (MOMENTS - 1))) - 1 for i in range(MOMENTS)}
        # In plain values, for checkpoints: one for each moment, changed in place.
        self.snapshots = [shot for shot in earlier or [] if shot['epoch'] < start]
        self._imgs = None

    def after(self, epoch, due, logbook):
        """Reconstruct where it is one of the moments, or `due`; the pictures go to TensorBoard too."""
        if not due and epoch not in self._moments:
            return
        rows, pasted = self._look()
        self.snapshots[:] = [shot for shot in self.snapshots
                             if shot['epoch'] in self._moments and shot['epoch'] < epoch]
        self.snapshots.append({'epoch': epoch, 'of': self._names, 'jpegs': pasted})
        logbook.picture(epoch + 1, 'reconstructions', thumbnails.grid(rows))

    def _look(self):
        """(rows of PIL images: masked, reconstructed, original; the second as base64 JPEGs)."""
        if self._imgs is None:
            self._read()
        self._model.eval()
        with self._within(), self._precision.autocast(), eagerly(self._model):
            shown = reconstruct(self._model, self._imgs.to(self._device), self._mask_ratio)
        rows = [to_images(imgs, self._normalize, SIDE) for imgs in (shown.masked, shown.pasted, self._imgs)]
        self._masked, pasted, self._original = ([thumbnails.jpeg(image) for image in row] for row in rows)
        return rows, pasted

    def _read(self):
        """Read the images; unreadable ones are left out."""
        count = len(self._dataset)
        found = list(thumbnails.readable(self._dataset, sorted({i * count // IMAGES for i in range(IMAGES)})))
        if not found:
            raise ValueError('none of the images can be read')
        self._imgs = self._normalize(torch.stack([image.float() for _, image in found]))    # some bytes, some floats
        self._names = [*(os.path.basename(self._dataset.name_of(index)) for index, _ in found),
                       'mask_ratio {}'.format(self._mask_ratio)]
        self.snapshots[:] = [shot for shot in self.snapshots if shot['of'] == self._names]

    def sections(self):
        """What util.reporting.report.page takes."""
        if self._imgs is None and self.snapshots:       # a resumed run that ends before another was due
            self._look()
        if not self.snapshots:
            return []
        rows = [('masked', self._masked),
                *(('after epoch {}'.format(shot['epoch']), shot['jpegs']) for shot in self.snapshots),
                ('original', self._original)]
        note = NOTE.format(self._mask_ratio) + (NORMALISED_NOTE if self._model.norm_pix_loss else '')
        return [('Reconstructions', [('note', note), ('strips', rows)])]


def picture(model, imgs, mask_ratio, seed, normalize):
    """The grid of masked, reconstructed and original images as a PIL image."""
    columns = [to_images(column, normalize, CELL) for column in (*reconstruct(model, imgs, mask_ratio, seed), imgs)]
    note = [NORMALISED] if model.norm_pix_loss else []
    titles = [lines + (note if 'reconstruction' in lines else []) for lines in COLUMNS]
    return thumbnails.grid(list(zip(*columns)), [titles], width=TITLE)


def main(argv=None):
    parser = Parser(prog='python -m util.tools.visualize', description=__doc__.split('\n')[0])
    add_images(parser)
    parser.add_argument('--resume', required=True, help='checkpoint of main_pretrain.py')
    parser.add_argument('--output', required=True, help='PNG file to write; one that is there is renamed')
    parser.add_argument('--mask_ratio', type=RATIO, help='share of patches to hide; default: as in training')
    parser.add_argument('--count', type=COUNT, default=8, help='images at most, spread over those named')
    parser.add_argument('--seed', type=INDEX, default=0, help='seed of the masks')
    args = parser.parse_args(argv)
    check_checkpoint(parser, args)
    check_output(parser, args)
    log.set_up(True, results=True)
    loaded = load_model.load_autoencoder(args.resume)
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
