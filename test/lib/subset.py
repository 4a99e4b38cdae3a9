"""A part of a labelled dataset, as PNG files: python test/lib/subset.py DATA NEW_FOLDER TRAIN VAL (numbers of images).

Equally many images of each class, spread over the class in the order that the dataset has them in. Pictures that are
there already are not written again.
"""
import os
import sys

import numpy as np

from util.data.datasets import labelled_set
from util.data.transforms import to_pil
from util.errors import UserError, run
from util.files import atomic_file


def main(data_path, folder, train, val):
    known = None
    for split, count in (('train', int(train)), ('val', int(val))):
        dataset = labelled_set(data_path, split, classes=known)
        known = dataset.classes
        if count < len(known):
            raise UserError('--images: {} {} images are fewer than the {} classes'.format(count, split, len(known)))
        for index, label in chosen(np.asarray(dataset.labels), count // len(known)):
            path = os.path.join(folder, split, known[label], '{:06d}.png'.format(index))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if not os.path.exists(path):
                picture, size = dataset[index][0], (dataset[index][0].height, dataset[index][0].width)
                with atomic_file(path) as file:
                    to_pil(picture.resized_crop(0, 0, *size, size=size)).save(file, 'PNG')


def chosen(labels, each):
    """(index, label) of `each` images of every label, or of all where there are fewer."""
    for label in range(labels.max() + 1):
        places = np.flatnonzero(labels == label)
        for place in np.linspace(0, len(places) - 1, min(each, len(places))):
            yield places[int(place)], label


if __name__ == '__main__':
    run(main, *sys.argv[1:])
