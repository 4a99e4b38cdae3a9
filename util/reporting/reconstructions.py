"""Reconstructions of the same few training images over the course of pre-training, for the report and checkpoints."""
import copy
import os
from contextlib import nullcontext
from typing import Any, Callable, List, Optional, Tuple

import torch

from util.data.transforms import Normalize
from util.devices.compile import eager_mode
from util.devices.precision import FullPrecision
from util.models.reconstruction import reconstruct
from util.reporting import thumbnails

IMAGES, SIDE = 6, 128       # images, and the longer side of each in pixels
SNAPSHOTS = 8               # of a run, besides those of intermediate reports
NOTE = 'The same training images each time; {:.0%} of their patches are masked, visible patches are shown as they are.'
NORM_PIX_NOTE = ' Trained with --norm_pix_loss, the model predicts patches without their mean and contrast: those of ' \
                'masked patches are taken from the original.'


class ReconstructionSnapshots:
    """Snapshots of the reconstructions at fixed epochs. The main process calls it; images are read on first use.

    Args:
        model: from precision.prepare, not in DistributedDataParallel; transform: LazyImage -> input of `normalize`.
        dataset: training set; IMAGES evenly spaced images are taken, the same in every run.
        earlier: `snapshots` of a checkpoint, or None; those of other images or mask ratios are dropped.
        start: first epoch of this run; snapshots of later epochs are dropped.
        eval_weights: context manager in which the model has the weights to evaluate (see util.training.ema).
    """

    def __init__(self, model: torch.nn.Module, dataset: Any, transform: Callable, normalize: Normalize,
                 mask_ratio: float, precision: FullPrecision, device: torch.device, epochs: int,
                 earlier: Optional[list], start: int, eval_weights: Callable = nullcontext):
        self._model, self._normalize, self._mask_ratio, self._eval_weights = model, normalize, mask_ratio, eval_weights
        self._dataset = copy.copy(dataset)
        self._dataset.transform = transform
        self._precision, self._device = precision, device
        # Epochs counted from 0, in geometric steps: dense at first, when most changes.
        self._epochs = {round(epochs ** (i / (SNAPSHOTS - 1))) - 1 for i in range(SNAPSHOTS)}
        # Plain values, for checkpoints, which hold this very list: changed in place.
        self.snapshots = [shot for shot in earlier or [] if shot['epoch'] < start]
        self._imgs, self._masked = None, []

    def on_epoch_end(self, epoch: int, report_due: bool) -> None:
        """Take a snapshot if the epoch has one or `report_due`."""
        if not report_due and epoch not in self._epochs:
            return
        jpegs = self._reconstruct()
        self.snapshots[:] = [shot for shot in self.snapshots if shot['epoch'] in self._epochs and shot['epoch'] < epoch]
        self.snapshots.append({'epoch': epoch, 'of': self._names, 'jpegs': jpegs})

    def _reconstruct(self):
        """The reconstructed images as base64 JPEGs."""
        if self._imgs is None:
            self._load_images()
        self._model.eval()
        with self._eval_weights(), self._precision.autocast(), eager_mode(self._model):
            masked, _, pasted = reconstruct(self._model, self._imgs.to(self._device), self._mask_ratio)
        rows = [thumbnails.to_images(imgs, self._normalize, SIDE) for imgs in (masked, pasted, self._imgs)]
        self._masked, jpegs, self._original = ([thumbnails.jpeg_base64(image) for image in row] for row in rows)
        return jpegs

    def _load_images(self):
        """Load the images, without unreadable ones, and drop snapshots of others."""
        count = len(self._dataset)
        found = list(thumbnails.readable_images(self._dataset, sorted({i * count // IMAGES for i in range(IMAGES)})))
        if not found:
            raise ValueError('none of the images can be read')
        self._imgs = self._normalize(torch.stack([image.float() for _, image in found]))    # uint8 and float may mix
        self._names = [*(os.path.basename(self._dataset.name_of(index)) for index, _ in found),
                       'mask_ratio {}'.format(self._mask_ratio)]
        self.snapshots[:] = [shot for shot in self.snapshots if shot['of'] == self._names]

    def report_sections(self) -> List[Tuple[str, list]]:
        """Sections for util.reporting.report.render_page."""
        if self._imgs is None and self.snapshots:       # a resumed run that ended before its first snapshot
            self._reconstruct()
        if not (self.snapshots and self._masked):       # or no memory to reconstruct
            return []
        rows = [('masked', self._masked),
                *(('after epoch {}'.format(shot['epoch']), shot['jpegs']) for shot in self.snapshots),
                ('original', self._original)]
        note = NOTE.format(self._mask_ratio) + (NORM_PIX_NOTE if self._model.norm_pix_loss else '')
        return [('Reconstructions', [('note', note), ('strips', rows)])]
