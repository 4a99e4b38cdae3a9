"""Linear probing of a frozen encoder: python main_linprobe.py --data_path FOLDER --finetune CHECKPOINT [flags]."""
from util.arguments import parse_linprobe
from util.errors import UserError, run

ARGS = parse_linprobe() if __name__ == '__main__' else None      # first: --help and wrong flags need no torch

from torch.nn import CrossEntropyLoss

import models_vit
from engine_finetune import evaluate, train_one_epoch
from main_finetune import build_evaluation, close_epoch, count_classes, evaluate_checkpoint, finish
from util import checkpoint, precision as precisions, runtime as runtimes, weights
from util.course import Course
from util.datasets import has_validation, labelled_set
from util.held_out import split_settings
from util.input_statistics import adopt_statistics
from util.lars import LARS
from util.linear_probe import LinearProbe, probing_head
from util.loader import training_loader
from util.log import logger
from util.lr_schedule import warmup_cosine
from util.mistakes import Mistakes
from util.transforms import Normalize, pretraining_transform
from util.updates import WeightUpdates


def build_model(args, classes):
    """The encoder that the flags name, with a probing head."""
    size = {'patch_size': args.patch_size} if args.patch_size else {}
    model = getattr(models_vit, args.model)(global_pool=args.global_pool, img_size=args.input_size,
                                            in_chans=args.in_chans, num_classes=classes, **size)
    model.head = probing_head(model.head.in_features, classes)
    return model


def load_encoder(model, args):
    """Fill the encoder from the checkpoint of --finetune, and say what it gave; its mean and std go to `args`.

    Raises:
        UserError: it is of another model, or lacks the norm that the class token goes through.
    """
    path = args.finetune
    if not path:
        logger.warning('--finetune is not given: the features are those of random weights')
        return
    if 'norm.weight' in weights.start_from(path, model, args, weights.load_pretrained):
        raise UserError('{}: has no norm for the class token, as a classifier of the mean has none; add --global_pool'
                        .format(path))


def build_data(args, world, accelerator):
    """(training set, its loader, evaluation loader); crops and flips are all the augmentation."""
    train_set = labelled_set(args.data_path, 'train',
                             pretraining_transform(args.input_size, args.in_chans, args.crop_min),
                             val_fraction=args.val_fraction, val_seed=args.val_seed)
    train_loader = training_loader(train_set, args.batch_size, world, args.seed, args.num_workers, args.pin_mem,
                                   accelerator)
    return train_set, train_loader, build_evaluation(args, world, accelerator, train_set.classes)[1]


def main(args):
    runtime = runtimes.start(args)
    precision = precisions.choose(runtime.accelerator, args.amp, args.amp_backend, args.amp_dtype)
    runtimes.describe(args, runtime, precision)
    resumed = checkpoint.find(args.resume, args.output_dir)
    args.val_fraction, args.val_seed = split_settings(args.val_fraction, args.val_seed, has_validation(args.data_path),
                                                      args.eval, resumed.get('args'))
    if args.eval:
        evaluate_checkpoint(args, runtime, precision, resumed, build_model, prepared)
    else:
        train(args, runtime, precision, resumed)
    runtime.world.leave()


def prepared(model, precision):
    """(model, precision) as evaluation takes them, of a model on its device."""
    probe = LinearProbe(model, precision)
    return probe, probe.precision


def train(args, runtime, precision, resumed):
    """Train the head, with an evaluation after each epoch."""
    train_set, train_loader, val_loader = build_data(args, runtime.world, runtime.accelerator)

    # encoder, head, optimizer, and what earlier runs left
    runtime.seed(args.seed, epoch=-1)
    model = build_model(args, count_classes(args, train_set))
    if resumed.path is None:
        load_encoder(model, args)
    adopt_statistics(args, resumed.get('args'), resumed.path)
    resumed.restore_model(model)
    runtime.place(model)
    probe = LinearProbe(model, precision)
    effective_batch, lr = runtimes.batch_and_lr(args, runtime.world)
    optimizer = LARS(probe.head.parameters(), lr=lr, weight_decay=args.weight_decay)
    resumed.restore_training(optimizer, probe.precision)
    updates = WeightUpdates(runtime.wrap(probe.head, probe.precision), optimizer, probe.precision,
                            lambda epoch: warmup_cosine(epoch, lr, args.epochs, args.warmup_epochs, args.min_lr),
                            args.accum_iter, args.clip_grad, resumed.bad_steps(args.max_bad_steps))
    parameters = runtimes.describe_training(args, train_set, probe.head, effective_batch, lr, val_loader.dataset)

    # epochs
    normalize, criterion = Normalize.of(vars(args)), CrossEntropyLoss()
    mistakes = Mistakes(val_loader.dataset, normalize)
    course = Course(args, runtime, updates, probe, train_loader, resumed, 'loss', mistakes, classes=train_set.classes,
                    best=resumed.get('best') or {'acc1': -1., 'epoch': -1})
    if course.nothing_left():
        return
    with course:
        val_loader.bad_images = course.bad_images
        for progress in course.epochs():
            stats = train_one_epoch(progress, updates, criterion,
                                    lambda images, labels: (probe.features(normalize(images)), labels))
            # Running statistics are each process's own: the first one's count, which checkpoints keep.
            runtime.world.share(probe.head)
            result = evaluate(probe, val_loader, probe.precision, runtime, normalize, mistakes)
            course.agree()                              # a signal may have cut the evaluation short
            close_epoch(course, progress.epoch, stats, result, parameters)
        finish(course, stats, result)


if __name__ == '__main__':
    run(main, ARGS)
