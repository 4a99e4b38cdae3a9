"""Confusion matrix, most confused pairs of classes and example misclassifications of a classifier."""
import itertools
from typing import Any, List, Tuple

import numpy as np
import torch

from util.data.transforms import Normalize
from util.distributed.world import World
from util.reporting import thumbnails

PAIRS, EXAMPLES, SIDE = 12, 4, 128      # pairs in the report, images of each, longer side of an image in pixels
MAX_MATRIX_CLASSES = 16     # with more classes, the report lists the hardest ones instead of the whole matrix
HARDEST = 10
NO_IMAGE = -1   # label where there is no image
MATRIX_NOTE = 'Validation images by true class (rows) and predicted class (columns); the diagonal is correct.'


class ConfusionTracker:
    """Predictions of the latest complete evaluation, as sections of the report.

    Args:
        dataset: validation set with `classes` and `name_of`.
    """

    def __init__(self, dataset: Any, normalize: Normalize):
        self._dataset, self._normalize, self._reported = dataset, normalize, None

    def gather(self, batches: List[torch.Tensor], loader: Any, world: World, device: torch.device) -> None:
        """Collective: combine the predictions of all ranks.

        Args:
            batches: (2, N) labels and predictions of each batch of this rank, on the device; NO_IMAGE is padding.
            loader: the Batches that produced them.
        """
        combined = torch.zeros(2, len(self._dataset))       # label and prediction + 1; 0: not evaluated
        if batches:
            pairs = torch.cat(batches, dim=1).cpu()
            pairs = pairs[:, pairs[0] != NO_IMAGE]
            combined[:, loader.evaluated_indices()[:pairs.shape[1]]] = (pairs + 1).float()
        combined = combined.to(device)
        self._reported = world.all_reduce(combined).cpu().numpy().astype(np.int64) - 1

    def on_epoch_end(self, epoch: int, report_due: bool) -> None:
        """Nothing: the evaluation at the end of an epoch has called `gather`."""

    def report_sections(self) -> List[Tuple[str, list]]:
        """Sections for util.reporting.report.render_page."""
        if self._reported is None:
            return []
        labels, guesses = self._reported
        correct = labels[(labels >= 0) & (labels == guesses)]
        sizes = np.bincount(labels[labels >= 0], minlength=len(self._dataset.classes))
        rows = [(self._class_name(label), self._class_name(guess), len(indices), int(sizes[label]),
                 self._examples(indices)) for label, guess, indices in worst_pairs(labels, guesses)]
        worst = ('pairs', rows) if rows else ('text', 'No validation image was misclassified.')
        sections = [('Worst-confused classes', [worst])]
        if len(sizes) <= MAX_MATRIX_CLASSES and guesses.max() < len(sizes):
            counts = np.zeros((len(sizes), len(sizes)), int)
            np.add.at(counts, (labels[labels >= 0], guesses[labels >= 0]), 1)
            return sections + [('All classes', [('note', MATRIX_NOTE), ('matrix', {
                'names': self._dataset.classes, 'counts': counts.tolist()})])]
        recalls = np.bincount(correct, minlength=len(sizes)) / np.maximum(sizes, 1)
        order = sorted(np.flatnonzero(sizes), key=recalls.__getitem__)[:HARDEST]
        return sections + [('Hardest classes', [('table', {
            'label': 'Hardest classes', 'named': True, 'head': ['class', 'accuracy', 'images'],
            'rows': [(self._class_name(i), '{:.1%}'.format(recalls[i]), int(sizes[i])) for i in order]})])]

    def _class_name(self, label):
        classes = self._dataset.classes
        return classes[label] if label < len(classes) else 'output {} (no class)'.format(label)

    def _examples(self, indices):
        readable = itertools.islice(thumbnails.readable_images(self._dataset, indices), EXAMPLES)
        return [thumbnails.jpeg_base64(thumbnails.to_images(self._normalize(image[None]), self._normalize, SIDE)[0])
                for _, image in readable]


def worst_pairs(labels: np.ndarray, guesses: np.ndarray, most: int = PAIRS) -> List[Tuple[int, int, np.ndarray]]:
    """(label, guess, image indices) of the most confused pairs of classes, most frequent first.

    Args:
        labels, guesses: (N,) integers; images with label -1 are ignored.
    """
    wrong = np.flatnonzero((labels >= 0) & (labels != guesses))
    base = int(guesses.max(initial=0)) + 1
    codes = labels[wrong] * base + guesses[wrong]
    pairs, counts = np.unique(codes, return_counts=True)
    worst = pairs[np.argsort(-counts, kind='stable')[:most]]
    return [(int(code // base), int(code % base), wrong[codes == code]) for code in worst]
