"""Confused classes: counted over all processes, without the images that cannot be read."""
import shutil

import numpy as np
import torch
from test_report import DRAWN

from engine_finetune import evaluate
from util import datasets, precision, runtime
from util.device import Cpu
from util.distributed import World
from util.loader import evaluation_loader
from util.mistakes import Mistakes, worst_pairs
from util.transforms import Normalize, evaluation_transform


class Constant(torch.nn.Module):
    """Takes everything for class 2."""

    def forward(self, images):
        return torch.eye(8)[2].expand(len(images), 8)


def mistakes_of(folder, rank=0, size=1):
    """(Mistakes of one process among `size` that share an evaluation, before they are summed; the dataset)."""
    dataset = datasets.labelled_set(str(folder), 'val', evaluation_transform(32))
    loader = evaluation_loader(dataset, 4, World(rank, size), True, 0, True, Cpu())
    mistakes, place = Mistakes(dataset, Normalize()), runtime.Runtime(Cpu(), World())
    evaluate(Constant(), loader, precision.FullPrecision(), place, Normalize(),
             mistakes)
    mistakes.after(0, True, None)
    return mistakes, dataset


def test_the_pairs_that_are_confused_most_come_first():
    labels, guesses = np.array([0, 0, 0, 1, 1, 2, 2, -1]), np.array([0, 2, 2, 2, 1, 0, 2, 5])
    assert [(label, guess, list(places)) for label, guess, places in worst_pairs(labels, guesses, 2)] == [
        (0, 2, [1, 2]), (1, 2, [3])]
    assert len(worst_pairs(*np.random.RandomState(0).randint(0, 1000, (2, 50000)))) == 12


def test_every_image_has_its_own_prediction_on_whichever_process(images):
    whole, dataset = mistakes_of(images)
    labels = [dataset[i][1] for i in range(len(dataset))]
    assert list(whole._shown[0]) == labels and set(whole._shown[1]) == {2}
    parts = [mistakes_of(images, rank, 2)[0]._shown + 1 for rank in (0, 1)]
    assert np.array_equal(sum(parts) - 1, whole._shown)


def test_images_that_cannot_be_read_do_not_shift_the_others(images, tmp_path):
    shutil.copytree(str(images), str(tmp_path / 'data'))
    for path in sorted((tmp_path / 'data').glob('val/*/*.jpg'))[::3]:
        path.write_bytes(b'no picture')
    broken, dataset = mistakes_of(tmp_path / 'data')
    whole, _ = mistakes_of(images)
    seen = broken._shown[0] >= 0
    assert list(np.flatnonzero(~seen)) == list(range(0, 19, 3))
    assert np.array_equal(broken._shown[:, seen], whole._shown[:, seen])
    assert [kind for kind, _ in broken.sections()[0][1]] == ['pairs']


def test_an_evaluation_that_was_broken_off_is_not_shown(images):
    mistakes, dataset = mistakes_of(images)
    before = mistakes.sections()
    mistakes.begin()
    mistakes.share(None, World(), torch.device('cpu'))
    assert mistakes.sections() == before
    mistakes.after(1, True, None)
    assert mistakes.sections() != before


def test_few_classes_are_a_matrix_many_a_list_and_nothing_confused_is_said(images):
    mistakes, dataset = mistakes_of(images)
    assert mistakes.sections()[1][0] == 'All classes'
    dataset.classes = dataset.classes + ['class {}'.format(i) for i in range(8, 40)]
    (_, pairs), (heading, hardest) = mistakes.sections()
    assert heading == 'Hardest classes' and {kind for kind, _ in pairs + hardest} == {'pairs', 'table'} < DRAWN
    mistakes._shown[1][:] = mistakes._shown[0]
    assert [kind for kind, _ in mistakes.sections()[0][1]] == ['text'] and 'text' in DRAWN
