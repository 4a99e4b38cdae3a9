"""Accuracy and confused classes over the images that can be read, counted over all processes."""
import shutil

import numpy as np
import pytest
import torch
from test_report import RENDERED

import models_vit
from engine_finetune import evaluate
from util.data import datasets
from util.data.loader import evaluation_loader
from util.data.transforms import Normalize, evaluation_transform
from util.devices import precision
from util.devices.accelerator import Cpu
from util.distributed.world import World
from util.errors import UserError
from util.reporting.confusion import ConfusionTracker, worst_pairs
from util.training import session


class Constant(torch.nn.Module):
    """Always predicts class 2."""

    def forward(self, images):
        return torch.eye(8)[2].expand(len(images), 8)


@pytest.fixture
def folder(images, tmp_path):
    """A copy of the images, whose validation set may be damaged."""
    shutil.copytree(str(images), str(tmp_path / 'data'))
    return tmp_path / 'data'


def break_some(folder, every):
    """Damage each `every`th validation image; returns their paths."""
    broken = sorted(folder.glob('val/*/*.jpg'))[::every]
    for path in broken:
        path.write_bytes(b'no picture')
    return broken


def evaluated(folder, model, batch_size=4, signal='', world=None, accelerator=False):
    """(result, ConfusionTracker) of an evaluation; of one process of `world`, before the all-reduce."""
    dataset = datasets.labelled_set(str(folder), 'val', evaluation_transform(32))
    run = session.Session(Cpu(), World())
    run.signals.requested, run.accelerator.is_accelerator = signal, accelerator
    loader = evaluation_loader(dataset, batch_size, world or World(), True, 0, True, Cpu())
    confusion = ConfusionTracker(dataset, Normalize())
    result = evaluate(model, loader, precision.FullPrecision(), run, Normalize(), confusion)
    return {name: value for name, value in result.items() if name != 'FPS'}, confusion


def result_of(folder, **options):
    torch.manual_seed(0)
    return evaluated(folder, models_vit.vit_nano_patch16(img_size=32, patch_size=8, num_classes=8), **options)[0]


def mistakes_of(folder, **options):
    return evaluated(folder, Constant(), **options)[1]


def test_an_evaluation_interrupted_by_a_signal_logs_no_accuracy(images, caplog):
    assert result_of(images, signal='SIGTERM')['images'] == 0 and not caplog.messages


@pytest.mark.compat
@pytest.mark.parametrize('batch_size', [4, 1])      # 1: some batches have no readable image
def test_unreadable_images_are_skipped_and_counted(folder, caplog, batch_size):
    broken = break_some(folder, 3)
    result = result_of(folder, batch_size=batch_size)
    assert (result['images'], result.pop('unreadable')) == (12, 7) and '7' in caplog.messages[-1].split('(')[-1]
    for path in broken:
        path.unlink()
    whole = result_of(folder)
    assert result == pytest.approx(whole) and 'unreadable' not in whole
    assert '7' not in caplog.messages[-1].split('(')[-1]


@pytest.mark.compat
@pytest.mark.parametrize('world', [World(0, 1), World(1, 2)])
@pytest.mark.parametrize('every', [19, 3])          # one image of the validation set is unreadable, or several are
def test_batches_padded_for_an_accelerator_give_the_same_result(folder, world, every):
    break_some(folder, every)
    torch.manual_seed(0)
    model, sizes = models_vit.vit_nano_patch16(img_size=32, patch_size=8, num_classes=8), []
    model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    (plain, guesses), (padded, others) = (evaluated(folder, model, world=world, accelerator=pad)
                                          for pad in (False, True))
    batches = len(sizes) // 2
    assert padded == pytest.approx(plain) and np.array_equal(guesses._reported, others._reported)
    assert 0 < min(sizes[:batches]) < 4 and set(sizes[batches:]) == {4}


def test_an_evaluation_without_a_readable_image_is_a_user_error(folder):
    break_some(folder, 1)
    with pytest.raises(UserError, match='none of the 19 validation images'):
        result_of(folder)


# Confused classes

def test_the_pairs_that_are_confused_most_come_first():
    labels, guesses = np.array([0, 0, 0, 1, 1, 2, 2, -1]), np.array([0, 2, 2, 2, 1, 0, 2, 5])
    assert [(label, guess, list(places)) for label, guess, places in worst_pairs(labels, guesses, 2)] == [
        (0, 2, [1, 2]), (1, 2, [3])]


def test_every_image_has_its_own_prediction_on_whichever_process(images):
    whole = mistakes_of(images)
    dataset = datasets.labelled_set(str(images), 'val', None)
    assert list(whole._reported[0]) == list(dataset.labels) and set(whole._reported[1]) == {2}
    parts = [mistakes_of(images, world=World(rank, 2))._reported + 1 for rank in (0, 1)]
    assert np.array_equal(sum(parts) - 1, whole._reported)


def test_images_that_cannot_be_read_do_not_shift_the_others(images, folder):
    break_some(folder, 3)
    broken, whole = mistakes_of(folder), mistakes_of(images)
    seen = broken._reported[0] >= 0
    assert list(np.flatnonzero(~seen)) == list(range(0, 19, 3))
    assert np.array_equal(broken._reported[:, seen], whole._reported[:, seen])
    assert [kind for kind, _ in broken.report_sections()[0][1]] == ['pairs']


def test_few_classes_are_a_matrix_many_a_list_and_nothing_confused_is_said(images):
    confusion = mistakes_of(images)
    assert confusion.report_sections()[1][0] == 'All classes'
    confusion._dataset.classes = confusion._dataset.classes + ['class {}'.format(i) for i in range(8, 40)]
    (_, pairs), (heading, hardest) = confusion.report_sections()
    assert heading == 'Hardest classes' and {kind for kind, _ in pairs + hardest} == {'pairs', 'table'} < RENDERED
    confusion._reported[1][:] = confusion._reported[0]
    assert [kind for kind, _ in confusion.report_sections()[0][1]] == ['text'] and 'text' in RENDERED
