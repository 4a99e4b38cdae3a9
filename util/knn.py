"""How well features tell classes apart, without training: python -m util.knn --resume CHECKPOINT --data_path DATA

Each validation image is classified by the k training images whose features are most like its own (weighted k-NN of
Wu et al., arXiv:1805.01978, section 3.4; k = 20 as DINO has it, arXiv:2104.14294).
Shapes: N queries, B images of the bank, D width, k neighbours.
"""
import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Subset

from util import device, hang_detector, log, precision as precisions, trained
from util.datasets import has_validation, labelled_set
from util.distributed import World
from util.encoder import pooled
from util.errors import UserError, run
from util.held_out import split_settings
from util.inference_arguments import add_model, add_work, check_checkpoint
from util.loader import default_workers, evaluation_loader
from util.log import logger, progress_bar
from util.parser import COUNT, INDEX, POSITIVE, SHARE_BELOW_1, Parser
from util.runtime import Runtime
from util.transforms import preprocessing_of

K, TEMPERATURE = 20, .07


def classify(queries, bank, labels, classes, k=K, temperature=TEMPERATURE):
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


class KnnJudge:
    """Classifies all validation images of a dataset by the features of an encoder.

    Args:
        model: on its device, not in DistributedDataParallel; normalize: images of the loader -> what it takes.
        bank, held_out: datasets of (image, label).
        classes: how many.
        options: batch_size, num_workers and pin_memory of the loaders.
    """

    def __init__(self, model, normalize, runtime, precision, bank, held_out, classes, pool='mean', k=K,
                 temperature=TEMPERATURE, **options):
        self._model, self._normalize, self._runtime, self._precision = model, normalize, runtime, precision
        self._bank, self._held_out, self._classes, self._options = bank, held_out, classes, options
        self._pool, self._k, self._temperature = pool, k, temperature

    @torch.no_grad()
    def accuracy(self, bad_images=None):
        """Share of the readable validation images, in percent, that are classified right; each is counted once.

        Nothing is drawn at random. All processes must call it, and get the same.
        Args:
            bad_images: util.bad_images.BadImages that is told of unreadable ones.
        Raises:
            UserError: no image of either kind can be read.
        """
        self._model.eval()
        bank, labels = (self._of_all(values) for values in self._encode(self._bank, 'training', bad_images))
        queries, wanted = self._encode(self._held_out, 'validation', bad_images)
        right = torch.zeros((), device=self._runtime.device)
        for i in range(0, len(queries) if len(bank) else 0, self._options['batch_size']):
            chunk = slice(i, i + self._options['batch_size'])
            found = classify(queries[chunk], bank, labels, self._classes, self._k, self._temperature)
            right += (found == wanted[chunk]).float().sum()
        right, images, stopped = self._runtime.totals(float(right), len(queries), bool(self._runtime.stops.requested))
        if not (len(bank) and images or stopped):
            raise UserError('--data_path: none of the {} images can be read; is the disk there?'.format(
                'validation' if len(bank) else 'training'))
        accuracy = 100 * right / max(images, 1)
        if not stopped:
            logger.info('* k-NN Acc@1 %.3f  (k %d, %d validation images among %d training images)', accuracy, self._k,
                        images, len(bank))
        return accuracy

    def _encode(self, dataset, what, bad_images):
        """(rows, D) features of unit length and (rows,) labels of this process's share, both fp32 on the device."""
        runtime, options = self._runtime, self._options
        # Made anew each time, so that no loader processes wait through the epochs in between.
        loader = evaluation_loader(dataset, options['batch_size'], runtime.world, True, options['num_workers'],
                                   options['pin_memory'], runtime.accelerator)
        loader.bad_images = bad_images or loader.bad_images
        weight, features, labels = self._model.patch_embed.proj.weight, [], []
        batches = progress_bar('features of the {} images'.format(what), 'batches', items=loader)
        for _, batch in hang_detector.watched(batches, 'k-NN'):
            if runtime.stops.requested:
                break
            images, truth = runtime.accelerator.to_device(batch, runtime.device)
            with self._precision.autocast():
                rows = pooled(self._model, self._normalize(images).to(weight.dtype), self._pool)
            features.append(F.normalize(rows.float(), dim=1))
            labels.append(truth.float())
        if not features:
            return weight.new_zeros(0, self._model.cls_token.shape[-1]).float(), weight.new_zeros(0).float()
        return torch.cat(features), torch.cat(labels)

    def _of_all(self, rows):
        """The rows of all processes, one's after the other's."""
        world = self._runtime.world
        if world.size == 1:
            return rows
        lengths = [int(row[0]) for row in world.gather(rows.new_tensor([float(len(rows))]))]
        everything = rows.new_zeros(sum(lengths), *rows.shape[1:])
        begin = sum(lengths[:world.rank])
        everything[begin:begin + len(rows)] = rows
        return world.sum(everything)


def periodic(args, model, normalize, runtime, precision, average):
    """What main_pretrain.py calls with (epoch, course) after each epoch: {'knn_acc1': percent} where --knn_every makes
    it due, and after the last; else {}. It raises what course.agree does.

    Args:
        average: util.weight_average.WeightAverage, which is judged in place of the weights.
    Raises:
        UserError: the images have no classes.
    """
    if not args.knn_every:
        return lambda epoch, course: {}
    try:
        datasets = _datasets(args.data_path, vars(args), args.knn_images, args.seed, args.val_fraction, args.val_seed)
    except UserError as error:
        raise UserError('--knn_every {}: {}; leave the flag out where images have no classes'.format(
            args.knn_every, error)) from error
    judge = KnnJudge(model, normalize, runtime, precision, *datasets, batch_size=args.batch_size,
                     num_workers=args.num_workers, pin_memory=args.pin_mem)

    def after(epoch, course):
        if (epoch + 1) % args.knn_every and epoch + 1 != args.epochs:
            return {}
        with average.within(model):
            accuracy = judge.accuracy(course.bad_images)
        course.agree()                      # a signal may have cut it short
        return {'knn_acc1': accuracy}
    return after


def _datasets(data_path, flags, count, seed, *split):
    """(images of the bank, validation images, number of classes), as evaluation sees them.

    Args:
        flags: of the training, by name; count, seed: see `spread`; None for all images.
        split: val_fraction and val_seed, see util.held_out.
    """
    transform, _ = preprocessing_of(flags)
    train = labelled_set(data_path, 'train', transform, None, *split)
    bank = train if count is None else Subset(train, spread(np.asarray(train.labels), count, seed))
    return bank, labelled_set(data_path, 'val', transform, train.classes, *split), len(train.classes)


def _flags():
    parser = Parser(prog='python -m util.knn', description='Classify validation images by their nearest neighbours.')
    add_model(parser, 'main_pretrain.py, main_finetune.py or main_linprobe.py')
    add = parser.add_argument
    add('--data_path', required=True, help='folder with train/<class>/ and val/<class>/, or whatever fine-tuning takes')
    add('--val_fraction', type=SHARE_BELOW_1,
        help="share of each class to classify where there is no val/; default: the checkpoint's, else 0.1")
    add('--val_seed', type=INDEX, help="seed that chooses these; default: the checkpoint's, else 0")
    add('--k', type=COUNT, default=K, help='neighbours that vote')
    add('--temperature', type=POSITIVE, default=TEMPERATURE, help='a vote weighs exp(cosine similarity / temperature)')
    add('--pool', choices=('mean', 'cls'), default='mean', help='features: mean of the patches, or class token')
    add('--images', type=COUNT, help='training images to compare with, spread evenly over the classes; default: all')
    add('--seed', type=INDEX, default=0, help='seed of the choice of --images')
    add_work(parser)
    args = parser.parse_args()
    check_checkpoint(parser, args)
    return args


def _main():
    args = _flags()
    log.set_up(is_main=True)
    model, flags, _ = trained.load_either(args.resume, args.input_size)
    # A training that held nothing out says nothing of data without a validation set.
    split = split_settings(args.val_fraction, args.val_seed, has_validation(args.data_path), False,
                           flags if flags.get('val_fraction') else None)
    datasets = _datasets(args.data_path, flags, args.images, args.seed, *split)
    runtime = Runtime(device.select(args.device), World())
    precision = precisions.choose(runtime.accelerator, args.amp)
    model = precision.prepare_inference(model.to(runtime.device))
    workers = default_workers() if args.num_workers is None else args.num_workers
    KnnJudge(model, preprocessing_of(flags)[1], runtime, precision, *datasets, args.pool, args.k, args.temperature,
             batch_size=args.batch_size, num_workers=workers, pin_memory=True).accuracy()


if __name__ == '__main__':
    run(_main)
