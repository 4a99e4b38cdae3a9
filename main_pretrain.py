"""Pre-train a masked autoencoder: python main_pretrain.py --data_path FOLDER [flags]; --help lists them."""
from util.config.train_flags import parse_pretrain
from util.errors import run

ARGS = parse_pretrain() if __name__ == '__main__' else None      # first: --help and wrong flags need no torch

from engine_pretrain import train_one_epoch
from util.checkpoints import checkpointer, weights
from util.config.normalization import adopt_statistics
from util.data.datasets import has_validation, pretraining_set
from util.data.loader import training_loader
from util.data.transforms import Normalize, evaluation_transform, pretraining_transform
from util.data.validation_split import split_settings
from util.models.build import build_autoencoder
from util.reporting.reconstructions import Reconstructions
from util.training import knn, session as runtimes
from util.training.optimizer_step import adamw_updates, decay_groups
from util.training.trainer import Course


def build_data(args):
    """The images, as the model takes them but for their scale."""
    return pretraining_set(args.data_path, pretraining_transform(args.input_size, args.in_chans, args.crop_min),
                           args.val_fraction, args.val_seed)


def main(args):
    runtime = runtimes.start(args)
    precision = runtimes.choose_precision(args, runtime)
    train(args, runtime, precision)
    runtime.world.leave()


def train(args, runtime, precision):
    """Pre-train for the epochs that are left."""
    if args.val_fraction:
        args.val_fraction, args.val_seed = split_settings(args.val_fraction, args.val_seed,
                                                          has_validation(args.data_path), False, None)
    dataset = build_data(args)
    loader = training_loader(dataset, args.batch_size, runtime.world, args.seed, args.num_workers, args.pin_mem,
                             runtime.accelerator)

    # model, optimizer, and what an earlier run left
    runtime.seed(args.seed, epoch=-1)
    resumed = checkpointer.find(args.resume, args.output_dir)
    model = build_autoencoder(vars(args))
    if args.init_from and resumed.path is None:
        weights.start_from(args.init_from, model, args, weights.load_for_pretraining)
    adopt_statistics(args, resumed.get('args'), resumed.path)
    normalize = Normalize.of(vars(args))
    resumed.restore_model(model)
    runtime.place(model)
    lr = runtimes.describe_training(args, runtime.world, dataset, model)
    groups = decay_groups(model, args.weight_decay)
    model, updates = adamw_updates(args, runtime, precision, resumed, model, groups, (.9, .95), lr)

    # epochs
    gallery = Reconstructions(model, dataset, evaluation_transform(args.input_size, args.in_chans), normalize,
                              args.mask_ratio, precision, runtime.device, args.epochs, resumed.get('reconstructions'),
                              resumed.start(args.start_epoch)[0], lambda: updates.averaged(model))
    course = Course(args, runtime, updates, model, loader, resumed, 'train_loss', gallery,
                    reconstructions=gallery.snapshots)
    if course.nothing_left():
        return
    judge = knn.periodic(args, model, normalize, runtime, precision, updates.averaged)
    with course:
        for progress in course.epochs():
            stats = train_one_epoch(progress, updates, args.mask_ratio, normalize)
            judged = judge(progress.epoch, course)
            course.close_epoch(stats, judged, judged)


if __name__ == '__main__':
    run(main, ARGS)
