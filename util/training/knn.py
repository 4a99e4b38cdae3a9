"""How well features tell classes apart, without training: python -m util.tools.knn --resume CHECKPOINT --data_path DATA

Each validation image is classified by the k training images whose features are most like its own (weighted k-NN of
Wu et al., arXiv:1805.01978, section 3.4; k = 20 as DINO has it, arXiv:2104.14294).
Shapes: N queries, B images of the bank, D width, k neighbours.
"""
import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Subset

from util.data.datasets import labelled_set
from util.data.loader import evaluation_loader
from util.data.transforms import preprocessing_of
from util.distributed import hang_detector
from util.errors import UserError
from util.log import logger, progress_bar
from util.models.features import pooled

K, TEMPERATURE = 20, .07


def classify(queries, bank, labels, classes, k, temperature):
    """The class of each query by the votes of its k nearest, each of weight exp(cosine similarity / temperature).

    Args:
        queries: (N, D); bank: (B, D); both of unit length.
        labels: (B,), of the bank; whole numbers as floats, which every backend exchanges.
    Returns:
        (N,) labels, as floats too.
    """
    similarity, nearest = (queries @ bank.t()).topk(min(k, len(bank)), dim=1)            # (N, k)
    votes = torch.zeros(len(queries), classes, device=queries.device)
    # Less the greatest, which changes no decision and keeps exp in range at any temperature.
    votes.scatter_add_(1, labels[nearest].long(), ((similarity - similarity[:, :1]) / temperature).exp())
    return votes.argmax(dim=1).float()


def spread(labels, count, seed):
    """Indices of at most `count` images, as evenly over the classes as there are images, drawn by `seed`.

    Args:
        labels: (images,) array.
    """
    order = np.random.RandomState(seed % 2 ** 32).permutation(len(labels))
    order = order[np.argsort(labels[order], kind='stable')]             # class by class, each in random order
    begins = np.searchsorted(labels[order], labels[order])
    rounds = np.arange(len(order)) - begins                             # how many of its class come before an image
    return np.sort(order[np.argsort(rounds, kind='stable')[:count]])


@torch.no_grad()
def measure(model, normalize, session, precision, datasets, loading, pool='mean', k=K, temperature=TEMPERATURE,
            unreadable_images=None):
    """Share of the readable validation images, in percent, that are classified right; each is counted once.

    Nothing is drawn at random. All processes must call it, and get the same.
    Args:
        model: on its device, not in DistributedDataParallel; normalize: images of the loader -> what it takes.
        datasets: images of the bank, validation images, number of classes.
        loading: (batch_size, num_workers, pin_memory) of the loaders.
        unreadable_images: UnreadableImages that is told of unreadable ones.
    Raises:
        UserError: no image of either kind can be read.
    """
    def encoded(dataset, what):
        # A loader made anew each time, so that no loader processes wait through the epochs in between.
        loader = evaluation_loader(dataset, loading[0], session.world, True, *loading[1:], session.accelerator)
        loader.unreadable_images = unreadable_images
        return _encode(model, normalize, session, precision, pool, progress_bar(
            'features of the {} images'.format(what), 'batches', items=loader))

    model.eval()
    bank, validation, classes = datasets
    features, labels = (_of_all(values, session.world) for values in encoded(bank, 'training'))
    queries, wanted = encoded(validation, 'validation')
    right = torch.zeros((), device=session.device)
    for i in range(0, len(queries) if len(features) else 0, loading[0]):
        chunk = slice(i, i + loading[0])
        right += (classify(queries[chunk], features, labels, classes, k, temperature) == wanted[chunk]).float().sum()
    right, images, stopped = session.totals(float(right), len(queries), bool(session.signals.requested))
    if not (len(features) and images or stopped):
        raise UserError('--data_path: none of the {} images can be read; is the disk there?'.format(
            'validation' if len(features) else 'training'))
    accuracy = 100 * right / max(images, 1)
    if not stopped:
        logger.info('* k-NN Acc@1 %.3f  (k %d, %d validation images among %d training images)', accuracy, k, images,
                    len(features))
    return accuracy


def _encode(model, normalize, session, precision, pool, batches):
    """(rows, D) features of unit length and (rows,) labels of this process's share, both fp32 on the device."""
    weight = model.patch_embed.proj.weight
    features = [weight.new_zeros(0, model.cls_token.shape[-1]).float()]
    labels = [weight.new_zeros(0).float()]
    for _, batch in hang_detector.monitored(batches, 'k-NN'):
        if session.signals.requested:
            break
        images, truth = session.accelerator.to_device(batch, session.device)
        with precision.autocast():
            rows = pooled(model, normalize(images).to(weight.dtype), pool)
        features.append(F.normalize(rows.float(), dim=1))
        labels.append(truth.float())
    return torch.cat(features), torch.cat(labels)


def _of_all(rows, world):
    """The rows of all processes, one's after the other's."""
    if world.size == 1:
        return rows
    lengths = [int(row[0]) for row in world.all_gather(rows.new_tensor([float(len(rows))]))]
    everything = rows.new_zeros(sum(lengths), *rows.shape[1:])
    begin = sum(lengths[:world.rank])
    everything[begin:begin + len(rows)] = rows
    return world.all_reduce(everything)


def periodic(args, model, normalize, session, precision, ema_weights):
    """What main_pretrain.py calls with (epoch, course) after each epoch: {'knn_acc1': percent} where --knn_every makes
    it due, and after the last; else {}. It raises what course.agree does.

    Args:
        ema_weights: a context in which a model has the weights to judge (see OptimizerStep).
    Raises:
        UserError: the images have no classes.
    """
    if not args.knn_every:
        return lambda epoch, trainer: {}
    try:
        datasets = datasets_of(args.data_path, vars(args), args.knn_images, args.seed, args.val_fraction, args.val_seed)
    except UserError as error:
        raise UserError('--knn_every {}: {}; leave the flag out where images have no classes'.format(
            args.knn_every, error)) from error

    def after(epoch, trainer):
        if (epoch + 1) % args.knn_every and epoch + 1 != args.epochs:
            return {}
        with ema_weights(model):
            accuracy = measure(model, normalize, session, precision, datasets,
                               (args.batch_size, args.num_workers, args.pin_mem),
                               unreadable_images=trainer.unreadable_images)
        trainer.stop_if_asked()             # a signal may have cut it short
        return {'knn_acc1': accuracy}
    return after


def datasets_of(data_path, flags, count, seed, *split):
    """(images of the bank, validation images, number of classes), as evaluation sees them.

    Args:
        flags: of the training, by name; count, seed: see `spread`; None for all images.
        split: val_fraction and val_seed, see util.data.validation_split.
    """
    transform, _ = preprocessing_of(flags)
    train = labelled_set(data_path, 'train', transform, None, *split)
    bank = train if count is None else Subset(train, spread(np.asarray(train.labels), count, seed))
    return bank, labelled_set(data_path, 'val', transform, train.classes, *split), len(train.classes)
