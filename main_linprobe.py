"""Linear probing of a frozen encoder: python main_linprobe.py --data_path FOLDER --finetune CHECKPOINT [flags]."""
from util.config.train_flags import parse_linprobe
from util.errors import UserError, run

ARGS = parse_linprobe() if __name__ == '__main__' else None      # first: --help and wrong flags need no torch

from torch.nn import CrossEntropyLoss

import main_finetune
from util.checkpoints import weights
from util.config.normalization import adopt_statistics
from util.data.transforms import Normalize, pretraining_transform
from util.log import logger
from util.models.linear_probe import LARS, LinearProbe, probing_head
from util.training.optimizer_step import build_optimizer_step
from util.training.session import log_training_setup


def build_model(args, classes):
    """The encoder that the flags name, with a probing head."""
    model = main_finetune.build_model(args, classes)
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
    """As main_finetune.build_data, but crops and flips are all the augmentation."""
    return main_finetune.build_data(args, world, accelerator,
                                    pretraining_transform(args.input_size, args.in_chans, args.crop_min))


def train(args, session, precision, checkpointer):
    """Train the head, with an evaluation after each epoch."""
    data = train_set, _, val_loader = build_data(args, session.world, session.accelerator)

    # encoder, head, optimizer, and what earlier runs left
    session.seed(args.seed, epoch=-1)
    model = build_model(args, main_finetune.count_classes(args, train_set))
    if checkpointer.path is None:
        load_encoder(model, args)
    adopt_statistics(args, checkpointer.get('args'), checkpointer.path)
    checkpointer.load_model(model)
    session.place(model)
    probe = LinearProbe(model, precision, session.world)
    lr = log_training_setup(args, session.world, train_set, probe.head, val_loader.dataset)
    optimizer = LARS(probe.head.parameters(), lr=lr, weight_decay=args.weight_decay)
    checkpointer.load_training(optimizer, probe.precision)
    optimizer_step = build_optimizer_step(args, session, probe.precision, checkpointer, probe.head, optimizer, lr)
    normalize = Normalize.of(vars(args))
    main_finetune.train_epochs(args, session, checkpointer, optimizer_step, probe, data, CrossEntropyLoss(),
                               lambda images, labels: (probe.features(normalize(images)), labels))


def main(args):
    main_finetune.main(args, train, build_model, LinearProbe)


if __name__ == '__main__':
    run(main, ARGS)
