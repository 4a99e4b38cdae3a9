"""Weighted k-NN classification of features, an evaluation without training (Wu et al., arXiv:1805.01978, section 3.4).

Each validation image is classified by the k training images of the most similar features; k = 20 as in DINO
(arXiv:2104.14294). Shapes: N queries, B images of the feature bank, D width, k neighbours.
"""
from argparse import Namespace
from typing import Any, Callable, Dict, Optional

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Subset

from util.data.datasets import labelled_set
from util.data.loader import evaluation_loader
from util.data.transforms import Normalize, preprocessing_of
from util.data.unreadable import UnreadableTracker
from util.devices.precision import FullPrecision
from util.distributed import hang_detector
from util.errors import UserError
from util.log import logger, progress_bar
from util.models.features import pooled
from util.training.session import Session

K, TEMPERATURE = 20, .07


def classify(queries: torch.Tensor, bank: torch.Tensor, labels: torch.Tensor, classes: int, k: int,
             temperature: float) -> torch.Tensor:
    """Vote of the k nearest neighbours of each query, each weighted by exp(cosine similarity / temperature).

    Args:
        queries: (N, D); bank: (B, D); both of unit length.
        labels: (B,) of the bank; integers as floats, which every backend can exchange.
    Returns:
        (N,) labels, also as floats.
    """
    similarity, nearest = (queries @ bank.t()).topk(min(k, len(bank)), dim=1)            # (N, k)
    votes = torch.zeros(len(queries), classes, device=queries.device)
    # Subtracting the maximum changes no decision and keeps exp in range at any temperature.
    votes.scatter_add_(1, labels[nearest].long(), ((similarity - similarity[:, :1]) / temperature).exp())
    return votes.argmax(dim=1).float()


def balanced_subset(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Indices of at most `count` random images, as many of each class as far as there are images; labels: (images,)."""
    order = np.random.RandomState(seed % 2 ** 32).permutation(len(labels))
    order = order[np.argsort(labels[order], kind='stable')]             # class by class, each in random order
    first = np.searchsorted(labels[order], labels[order])
    rank_in_class = np.arange(len(order)) - first
    return np.sort(order[np.argsort(rank_in_class, kind='stable')[:count]])


@torch.no_grad()
def evaluate(model: torch.nn.Module, normalize: Normalize, session: Session, precision: FullPrecision,
             datasets: tuple, loading: tuple, pool: str = 'mean', k: int = K, temperature: float = TEMPERATURE,
             unreadable_images: Optional[UnreadableTracker] = None) -> float:
    """Collective: k-NN accuracy in percent over the readable validation images, each counted once; no randomness.

    Args:
        model: on its device, not in DistributedDataParallel.
        datasets: of datasets_of; loading: (batch_size, num_workers, pin_memory); pool: see util.models.features.
    Raises:
        UserError: none of the training or validation images is readable.
    """
    def encode(dataset, split):
        # A new loader each time, so that no loader processes idle through the epochs in between.
        loader = evaluation_loader(dataset, loading[0], session.world, True, *loading[1:], session.accelerator)
        loader.unreadable_images = unreadable_images
        return _encode(model, normalize, session, precision, pool, progress_bar(
            'features of the {} images'.format(split), 'batches', items=loader))

    model.eval()
    bank, validation, classes = datasets
    features, labels = (_all_gather(rows, session.world) for rows in encode(bank, 'training'))
    queries, targets = encode(validation, 'validation')
    correct = torch.zeros((), device=session.device)
    for i in range(0, len(queries) if len(features) else 0, loading[0]):
        chunk = slice(i, i + loading[0])
        predictions = classify(queries[chunk], features, labels, classes, k, temperature)
        correct += (predictions == targets[chunk]).float().sum()
    correct, images, stopped = session.all_reduce(float(correct), len(queries), bool(session.signals.requested))
    if not (len(features) and images or stopped):
        raise UserError('--data_path: none of the {} images is readable; is the disk mounted?'.format(
            'validation' if len(features) else 'training'))
    accuracy = 100 * correct / max(images, 1)
    if not stopped:
        logger.info('* k-NN Acc@1 %.3f  (k %d, %d validation images among %d training images)', accuracy, k, images,
                    len(features))
    return accuracy


def _encode(model, normalize, session, precision, pool, batches):
    """(rows, D) features of unit length and (rows,) labels in this process, both fp32 on the device."""
    weight = model.patch_embed.proj.weight
    features = [weight.new_zeros(0, model.cls_token.shape[-1]).float()]
    labels = [weight.new_zeros(0).float()]
    for _, batch in hang_detector.monitored(batches, 'k-NN'):
        if session.signals.requested:
            break
        images, targets = session.accelerator.to_device(batch, session.device)
        with precision.autocast():
            rows = pooled(model, normalize(images).to(weight.dtype), pool)
        features.append(F.normalize(rows.float(), dim=1))
        labels.append(targets.float())
    return torch.cat(features), torch.cat(labels)


def _all_gather(rows, world):
    """Concatenated rows of all processes, whose numbers may differ."""
    if world.size == 1:
        return rows
    lengths = [int(row[0]) for row in world.all_gather(rows.new_tensor([float(len(rows))]))]
    gathered = rows.new_zeros(sum(lengths), *rows.shape[1:])
    begin = sum(lengths[:world.rank])
    gathered[begin:begin + len(rows)] = rows
    return world.all_reduce(gathered)


def build_periodic_evaluation(args: Namespace, model: torch.nn.Module, normalize: Normalize, session: Session,
                              precision: FullPrecision, ema_weights: Callable) -> Callable:
    """--knn_every: function (epoch, trainer) -> {'knn_acc1': percent} every N epochs and after the last, else {}.

    It raises what Trainer.stop_if_requested does.
    Args:
        ema_weights: see OptimizerStep.
    Raises:
        UserError: the images have no classes.
    """
    if not args.knn_every:
        return lambda epoch, trainer: {}
    datasets = datasets_of(args.data_path, vars(args), args.knn_images, args.seed, args.val_fraction, args.val_seed)

    def evaluate_if_due(epoch, trainer):
        if (epoch + 1) % args.knn_every and epoch + 1 != args.epochs:
            return {}
        with ema_weights(model):
            accuracy = evaluate(model, normalize, session, precision, datasets,
                                (args.batch_size, args.num_workers, args.pin_mem),
                                unreadable_images=trainer.unreadable_images)
        trainer.stop_if_requested()         # a signal may have interrupted the evaluation
        return {'knn_acc1': accuracy}
    return evaluate_if_due


def datasets_of(data_path: str, flags: Dict[str, Any], count: Optional[int], seed: int, *split: Any) -> tuple:
    """(feature bank images, validation images, number of classes), with the transform of evaluation.

    `flags` are those of the training; `count` and `seed`: see balanced_subset, None for all images; `split`:
    val_fraction and val_seed.
    """
    transform, _ = preprocessing_of(flags)
    train = labelled_set(data_path, 'train', transform, None, *split)
    bank = train if count is None else Subset(train, balanced_subset(np.asarray(train.labels), count, seed))
    return bank, labelled_set(data_path, 'val', transform, train.classes, *split), len(train.classes)
