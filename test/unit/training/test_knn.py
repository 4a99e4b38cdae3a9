"""k-NN classification of features: its formula, as a command, and during pre-training, which it does not change."""
import argparse
import json
import shutil
from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import PRETRAIN, ROOT, call, succeeded, two_processes
from test_end_to_end import epochs_of, same, weights_of

from util.checkpoints import load_model
from util.data import datasets
from util.data.transforms import Normalize, evaluation_transform
from util.devices.accelerator import Cpu
from util.devices.precision import FullPrecision
from util.distributed.world import World
from util.models import features
from util.training import knn
from util.training.session import Session


def by_formula(queries, bank, labels, classes, k, temperature):
    """Weighted k-NN of arXiv:1805.01978, query by query, in numpy and float64; features of any length."""
    found = []
    for query in queries.astype(np.float64):
        cosine = bank @ query / np.linalg.norm(query) / np.linalg.norm(bank, axis=1)
        votes = np.zeros(classes)
        for i in np.argsort(-cosine)[:k]:
            votes[labels[i]] += np.exp(cosine[i] / temperature)
        found.append(votes.argmax())
    return np.array(found)


@pytest.mark.compat
@pytest.mark.parametrize('k, temperature', [(1, .07), (20, .07), (500, .5)])
def test_votes_follow_the_formula(k, temperature):
    rng = np.random.RandomState(0)
    queries, bank, labels = rng.randn(50, 8), rng.randn(100, 8), rng.randint(0, 5, 100)
    unit = [torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True)) for x in (queries, bank)]
    found = knn.classify(*[x.float() for x in unit], torch.from_numpy(labels).float(), 5, k, temperature)
    assert np.array_equal(found.numpy(), by_formula(queries, bank, labels, 5, k, temperature))


def test_a_subset_is_balanced_over_the_classes_and_depends_only_on_the_seed():
    labels = np.array([0] * 50 + [1] * 3 + [2] * 50)
    chosen = knn.balanced_subset(labels, 21, seed=1)
    assert np.bincount(labels[chosen]).tolist() == [9, 3, 9] and len(set(chosen)) == 21
    assert np.array_equal(chosen, knn.balanced_subset(labels, 21, seed=1))
    assert not np.array_equal(chosen, knn.balanced_subset(labels, 21, seed=2))
    assert np.array_equal(knn.balanced_subset(labels, 1000, seed=1), np.arange(103))


def features_of(path, folder, split, pool, input_size):
    model, _, _ = load_model.load_any(str(path), input_size)
    pairs = list(datasets.labelled_set(str(folder), split, evaluation_transform(input_size)))
    with torch.no_grad():
        imgs = Normalize()(torch.stack([image for image, _ in pairs]))
        return features.pooled(model, imgs, pool).numpy(), np.array([label for _, label in pairs])


def expected(path, folder, pool='mean', k=20, temperature=.07, input_size=32):
    """Accuracy by the formula, in percent."""
    bank, labels = features_of(path, folder, 'train', pool, input_size)
    queries, truth = features_of(path, folder, 'val', pool, input_size)
    return 100 * float((by_formula(queries, bank, labels, 8, k, temperature) == truth).mean())


def last_line(*flags):
    """Of the output of `python -m util.tools.knn`, in this process."""
    run = call('util.tools.knn', '--device', 'cpu', '--num_workers', 0, *flags)
    return run.output.strip().split('\n')[-1]


@pytest.mark.parametrize('flags', [{}, {'pool': 'cls', 'k': 32, 'temperature': 5., 'input_size': 48}])
def test_the_command_agrees_with_the_formula(images, pretrained, flags):
    path = pretrained / 'checkpoint-0.pth'
    words = ['--resume', path, '--data_path', images, '--batch_size', 7]
    words += [word for name, value in flags.items() for word in ('--' + name, value)]
    line = last_line(*words)
    assert float(line.split()[3]) == pytest.approx(expected(path, images, **flags), abs=1e-3)
    assert line.endswith('(k {}, 19 validation images among 32 training images)'.format(flags.get('k', 20)))
    assert last_line(*words, '--images', 8, '--seed', 1).endswith('among 8 training images)')


def test_unreadable_images_are_skipped_but_not_all(images, pretrained, tmp_path):
    shutil.copytree(str(images), str(tmp_path / 'data'))
    flags = ['--resume', pretrained / 'checkpoint-0.pth', '--data_path', tmp_path / 'data']
    for path in sorted(tmp_path.glob('data/*/*/*.jpg'))[::3]:
        path.write_bytes(b'no picture')
    assert last_line(*flags).endswith(' 13 validation images among 21 training images)')
    for path in tmp_path.glob('data/train/*/*.jpg'):
        path.write_bytes(b'no picture')
    assert last_line(*flags).startswith('error: --data_path: none of the training images')


@pytest.mark.parametrize('every, due', [(0, []), (2, [1, 3, 4]), (9, [4])])
def test_it_runs_every_knn_every_epochs_and_after_the_last_with_knn_images(images, pretrained, monkeypatch,
                                                                                    every, due):
    monkeypatch.setattr(knn, 'evaluate', lambda *args, **options: len(args[4][0]))
    model, flags, _ = load_model.load_autoencoder(str(pretrained / 'checkpoint-0.pth'))
    args = argparse.Namespace(**{**flags, 'data_path': str(images), 'epochs': 5, 'knn_every': every, 'knn_images': 16})
    evaluation, trainer = knn.build_periodic_evaluation(args, model, Normalize(), Session(Cpu(), World()),
                                                        FullPrecision(), lambda model: nullcontext()), mock.Mock()
    assert [epoch for epoch in range(5) if evaluation(epoch, trainer) == {'knn_acc1': 16}] == due
    assert trainer.stop_if_requested.call_count == len(due)


@pytest.mark.slow
def test_two_processes_record_the_accuracy_of_one_and_train_as_without_it(images, tmp_path):
    folders = [tmp_path / str(every) for every in (2, 0)]
    for folder in folders:
        succeeded(two_processes(ROOT / 'main_pretrain.py', *PRETRAIN, '--data_path', images, '--output_dir', folder,
                                '--epochs', 3, '--knn_every', folder.name, '--batch_size', 4))
    accuracies = [record.get('knn_acc1') for record in epochs_of(folders[0])]
    assert accuracies[0] is None and accuracies[1] is not None
    assert accuracies[2] == pytest.approx(expected(folders[0] / 'checkpoint-2.pth', images), abs=1e-3)
    assert json.loads((folders[0] / 'summary.json').read_text())['knn_acc1'] == accuracies[2]
    assert same(*(weights_of(folder / 'checkpoint-2.pth')['model'] for folder in folders))
