"""Linear probing of a frozen encoder: python main_linprobe.py --data_path FOLDER --finetune CHECKPOINT [flags]."""
from util import errors

errors.begin(__name__)

from argparse import Namespace
from typing import Any, Dict

from util.config.train_flags import parse_linprobe
from util.errors import UserError

ARGS = parse_linprobe() if __name__ == '__main__' else None      # first: --help and wrong flags need no torch

import torch
from torch.nn import CrossEntropyLoss

from engine_finetune import evaluate_checkpoint, train_epochs
from util.checkpoints import weights
from util.checkpoints.checkpointer import Checkpointer
from util.data.transforms import Normalize, pretraining_transform
from util.devices.precision import FullPrecision
from util.log import logger
from util.models.build import build_classifier
from util.models.linear_probe import LARS, LinearProbe, probing_head
from util.training import setup
from util.training.optimizer_step import peak_lr
from util.training.session import Session


def main(args: Namespace) -> None:
    with setup.start_run(args) as (session, precision, checkpointer):
        if args.eval:
            evaluate_checkpoint(args, session, precision, checkpointer, build_model, LinearProbe)
        else:
            train(args, session, precision, checkpointer)


def train(args: Namespace, session: Session, precision: FullPrecision, checkpointer: Checkpointer) -> None:
    """Train the head, with an evaluation after each epoch."""
    # random crops and flips, without further augmentation (arXiv:2111.06377, appendix A.1)
    transform = pretraining_transform(args.input_size, args.in_chans, args.crop_min)
    loaders = train_loader, _ = setup.build_loaders(args, session, transform, setup.class_names(args, checkpointer))

    # encoder in the run's precision, head in fp32
    session.seed(args.seed, epoch=-1)
    model = build_model(vars(args), setup.count_classes(args, train_loader.dataset, checkpointer))
    if not (args.finetune or checkpointer.path):
        logger.warning('--finetune is not given: the features are those of random weights')
    setup.load_initial_weights(args, session, checkpointer, model, args.finetune, load_encoder)
    probe = LinearProbe(model, precision, session.world)

    # optimizer
    setup.log_training_summary(args, session.world, train_loader.dataset, probe.head)
    optimizer = LARS(probe.head.parameters(), lr=peak_lr(args, session.world), weight_decay=args.weight_decay)
    optimizer_step = setup.build_optimizer_step(args, session, probe.precision, checkpointer, probe.head, optimizer)

    # epochs
    normalize = Normalize.of(vars(args))
    train_epochs(args, session, checkpointer, optimizer_step, probe, loaders, CrossEntropyLoss(),
                 lambda images, labels: (probe.features(normalize(images)), labels))


def build_model(flags: Dict[str, Any], classes: int) -> torch.nn.Module:
    """The encoder with a probing head."""
    model = build_classifier(flags, classes)
    model.head = probing_head(model.head.in_features, classes)
    return model


def load_encoder(model: torch.nn.Module, state: dict, path: str, flags: weights.Flags = None) -> tuple:
    """As weights.load_pretrained, but raise UserError if the norm of the class token is missing."""
    left_out, missing = weights.load_pretrained(model, state, path, flags)
    if 'norm.weight' in missing:
        raise UserError('{}: no norm for the class token, as in a classifier with global pooling; add --global_pool'
                        .format(path))
    return left_out, missing


if __name__ == '__main__':
    errors.run(main, ARGS)
