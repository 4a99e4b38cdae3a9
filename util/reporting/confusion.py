"""Which classes a classifier takes for which others, and images to look at."""
import itertools

import numpy as np
import torch

from util.data.transforms import to_pil
from util.reporting import thumbnails

PAIRS, EXAMPLES, SIDE = 12, 4, 128      # confused pairs that are shown, images of each, pixels of their longer side
MOST_IN_MATRIX = 16         # classes of which all pairs are shown
HARDEST = 10                # classes that are listed where there are more
MATRIX = ('Validation images by their class (rows) and what they are taken for (columns); the diagonal is right.')


class ConfusionTracker:
    """Predictions on the validation images.

    Args:
        dataset: the validation images; normalize: Normalize, for showing them.
    """

    def __init__(self, dataset, normalize):
        self._dataset, self._normalize, self._latest, self._shown = dataset, normalize, None, None

    def share(self, seen, loader, world, device):
        """Take note of an evaluation; all processes must call it.

        Args:
            seen: (2, N) on the device for each batch that this process has seen: labels and predictions.
            loader: Batches that gave them.
        """
        found = torch.zeros(2, len(self._dataset), device=device)       # label and prediction + 1; 0: not seen
        if seen:
            seen = torch.cat(seen, dim=1)
            places = torch.tensor(loader.given(), device=device)[:seen.shape[1]]
            found[:, places] = (seen + 1).float()
        self._latest = world.all_reduce(found).cpu().numpy().astype(np.int64) - 1

    def after(self, epoch, due, run_logger):
        """Show the latest evaluation from now on; one that was broken off never gets here."""
        self._shown = self._latest

    def sections(self):
        """What util.reporting.report.page takes."""
        if self._shown is None:
            return []
        labels, guesses = self._shown
        there = labels >= 0
        sizes = np.bincount(labels[there], minlength=len(self._dataset.classes))
        rows = [(self._name(label), self._name(guess), len(places), int(sizes[label]), self._examples(places))
                for label, guess, places in worst_pairs(labels, guesses)]
        worst = ('pairs', rows) if rows else ('text', 'No validation image was taken for another class.')
        found = [('Worst-confused classes', [worst])]
        if len(sizes) <= MOST_IN_MATRIX and guesses.max() < len(sizes):
            counts = np.zeros((len(sizes), len(sizes)), int)
            np.add.at(counts, (labels[there], guesses[there]), 1)
            return found + [('All classes', [('note', MATRIX), ('matrix', {
                'names': self._dataset.classes, 'counts': counts.tolist()})])]
        shares = np.bincount(labels[there & (labels == guesses)], minlength=len(sizes)) / np.maximum(sizes, 1)
        order = sorted(np.flatnonzero(sizes), key=shares.__getitem__)[:HARDEST]
        return found + [('Hardest classes', [('table', {
            'label': 'Hardest classes', 'named': True, 'head': ['class', 'recognised', 'images'],
            'rows': [(self._name(label), '{:.1%}'.format(shares[label]), int(sizes[label])) for label in order]})])]

    def _name(self, label):
        classes = self._dataset.classes
        return classes[label] if label < len(classes) else 'output {}, which has no class'.format(label)

    def _examples(self, places):
        imgs = [self._normalize(image[None]) for _, image in itertools.islice(
            thumbnails.readable(self._dataset, places), EXAMPLES)]
        return [thumbnails.jpeg(thumbnails.scaled(to_pil(self._normalize.shown(img)[0]), SIDE)) for img in imgs]


def worst_pairs(labels, guesses, most=PAIRS):
    """(label, guess, indices of the images) of the pairs that are confused most often, most often first.

    Args:
        labels, guesses: (N,) whole numbers; a label of -1 does not count.
    """
    wrong = np.flatnonzero((labels >= 0) & (labels != guesses))
    base = int(guesses.max(initial=0)) + 1
    pair, counts = np.unique(labels[wrong] * base + guesses[wrong], return_counts=True)
    worst = pair[np.argsort(-counts, kind='stable')[:most]]
    return [(int(code // base), int(code % base), wrong[labels[wrong] * base + guesses[wrong] == code])
            for code in worst]
