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
from util.data.validation_split import resolve_split
from util.models.build import build_autoencoder
from util.reporting.reconstructions import ReconstructionSnapshots
from util.training import knn
from util.training.optimizer_step import build_adamw_step, decay_groups
from util.training.session import log_training_setup, setup_precision, start_session
from util.training.trainer import Trainer


def build_data(args):
    """The images, as the model takes them but for their scale."""
    return pretraining_set(args.data_path, pretraining_transform(args.input_size, args.in_chans, args.crop_min),
                           args.val_fraction, args.val_seed)


def main(args):
    session = start_session(args)
    precision = setup_precision(args, session)
    train(args, session, precision)
    session.world.shutdown()


def train(args, session, precision):
    """Pre-train for the epochs that are left."""
    if args.val_fraction:
        args.val_fraction, args.val_seed = resolve_split(args.val_fraction, args.val_seed,
                                                         has_validation(args.data_path), False, None)
    dataset = build_data(args)
    loader = training_loader(dataset, args.batch_size, session.world, args.seed, args.num_workers, args.pin_mem,
                             session.accelerator)

    # model, optimizer, and what an earlier run left
    session.seed(args.seed, epoch=-1)
    resume = checkpointer.find(args.resume, args.output_dir)
    model = build_autoencoder(vars(args))
    if args.init_from and resume.path is None:
        weights.start_from(args.init_from, model, args, weights.load_for_pretraining)
    adopt_statistics(args, resume.get('args'), resume.path)
    normalize = Normalize.of(vars(args))
    resume.restore_model(model)
    session.place(model)
    lr = log_training_setup(args, session.world, dataset, model)
    groups = decay_groups(model, args.weight_decay)
    model, optimizer_step = build_adamw_step(args, session, precision, resume, model, groups, (.9, .95), lr)

    # epochs
    snapshots = ReconstructionSnapshots(
        model, dataset, evaluation_transform(args.input_size, args.in_chans), normalize, args.mask_ratio, precision,
        session.device, args.epochs, resume.get('reconstructions'), resume.start(args.start_epoch)[0],
        lambda: optimizer_step.ema_weights(model))
    trainer = Trainer(args, session, optimizer_step, model, loader, resume, 'train_loss', snapshots,
                      reconstructions=snapshots.snapshots)
    if trainer.nothing_left():
        return
    evaluate_knn = knn.periodic(args, model, normalize, session, precision, optimizer_step.ema_weights)
    with trainer:
        for epoch in trainer.epochs():
            stats = train_one_epoch(trainer, args.mask_ratio, normalize)
            accuracy = evaluate_knn(epoch, trainer)
            trainer.close_epoch(stats, accuracy, accuracy)


if __name__ == '__main__':
    run(main, ARGS)
