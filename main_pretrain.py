"""Pre-train a masked autoencoder: python main_pretrain.py --data_path FOLDER [flags]; --help lists them."""
from util import errors

errors.begin(__name__)

from argparse import Namespace

from util.config.train_flags import parse_pretrain

ARGS = parse_pretrain() if __name__ == '__main__' else None      # first: --help and wrong flags need no torch

from engine_pretrain import train_one_epoch
from util.checkpoints import weights
from util.checkpoints.checkpointer import Checkpointer
from util.data.datasets import pretraining_set
from util.data.loader import training_loader
from util.data.transforms import Normalize, evaluation_transform, pretraining_transform
from util.devices.precision import FullPrecision
from util.models.build import build_autoencoder
from util.reporting.reconstructions import ReconstructionSnapshots
from util.training import knn, setup
from util.training.optimizer_step import decay_groups
from util.training.session import Session
from util.training.trainer import Trainer


def main(args: Namespace) -> None:
    with setup.start_run(args) as (session, precision, checkpointer):
        train(args, session, precision, checkpointer)


def train(args: Namespace, session: Session, precision: FullPrecision, checkpointer: Checkpointer) -> None:
    """Pre-train for the remaining epochs."""
    dataset = pretraining_set(args.data_path, pretraining_transform(args.input_size, args.in_chans, args.crop_min),
                              args.val_fraction, args.val_seed)
    loader = training_loader(dataset, args.batch_size, session.world, args.seed, args.num_workers, args.pin_mem,
                             session.accelerator)

    # model
    session.seed(args.seed, epoch=-1)
    setup.adopt_decoder_flags(args, checkpointer)
    model = build_autoencoder(vars(args))
    setup.load_initial_weights(args, session, checkpointer, model, args.init_from, weights.load_for_pretraining)
    normalize = Normalize.of(vars(args))

    # optimizer
    setup.log_training_summary(args, session.world, dataset, model)
    groups = decay_groups(model, args.weight_decay)
    model, optimizer_step = setup.build_adamw_step(args, session, precision, checkpointer, model, groups,
                                                   betas=(.9, .95))

    # epochs
    snapshots = ReconstructionSnapshots(
        model, dataset, evaluation_transform(args.input_size, args.in_chans), normalize, args.mask_ratio, precision,
        session.device, args.epochs, checkpointer.get('reconstructions'),
        checkpointer.start(args.start_epoch)[0], lambda: optimizer_step.ema_weights(model))
    trainer = Trainer(args, session, optimizer_step, model, loader, checkpointer, 'train_loss', snapshots,
                      reconstructions=snapshots.snapshots)
    if trainer.nothing_left():
        return
    evaluate_knn = knn.build_periodic_evaluation(args, model, normalize, session, precision,
                                                 optimizer_step.ema_weights)
    with trainer:
        for epoch in trainer.epochs():
            stats = train_one_epoch(trainer, args.mask_ratio, normalize)
            accuracy = evaluate_knn(epoch, trainer)
            trainer.close_epoch(stats, tests=accuracy, result=accuracy)


if __name__ == '__main__':
    errors.run(main, ARGS)
