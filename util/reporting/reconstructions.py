"""Reconstructions of the same few images in the course of a pre-training, for the report and for checkpoints."""
import copy
import os
from contextlib import nullcontext

import torch

from util.devices.compile import eager_mode
from util.models.reconstruction import reconstruct
from util.reporting import thumbnails

IMAGES, SIDE = 6, 128       # of ReconstructionSnapshots, and pixels of the longer side of each
MOMENTS = 8                 # of a training at which these are reconstructed, beside the reports on the way


NOTE = 'The same images of the training set each time; {:.0%} of their patches are hidden, visible ones are shown as ' \
       'they are.'


NORMALISED_NOTE = ' Trained with --norm_pix_loss, the model predicts patches without their mean and contrast: those ' \
                  'of hidden patches are taken from the original.'


class ReconstructionSnapshots:
    """For the report and for checkpoints; nothing is read before `after`, which the main process alone calls.

    Args:
        model: as its precision made it, not in DistributedDataParallel.
        dataset: of the training; images at equal distances are taken, the same in every run.
        transform, normalize: from a LazyImage to what the model takes.
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

    def after(self, epoch, due, run_logger):
        """Reconstruct where it is one of the moments, or `due`; the pictures go to TensorBoard too."""
        if not due and epoch not in self._moments:
            return
        rows, pasted = self._look()
        self.snapshots[:] = [shot for shot in self.snapshots
                             if shot['epoch'] in self._moments and shot['epoch'] < epoch]
        self.snapshots.append({'epoch': epoch, 'of': self._names, 'jpegs': pasted})
        run_logger.picture(epoch + 1, 'reconstructions', thumbnails.grid(rows))

    def _look(self):
        """(rows of PIL images: masked, reconstructed, original; the second as base64 JPEGs)."""
        if self._imgs is None:
            self._read()
        self._model.eval()
        with self._within(), self._precision.autocast(), eager_mode(self._model):
            shown = reconstruct(self._model, self._imgs.to(self._device), self._mask_ratio)
        rows = [thumbnails.to_images(imgs, self._normalize, SIDE) for imgs in (shown.masked, shown.pasted, self._imgs)]
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
