"""Linear probing of a frozen encoder: python main_linprobe.py --data_path FOLDER --finetune CHECKPOINT [flags]."""
from util.config.train_flags import parse_linprobe
from util.errors import UserError, run

ARGS = parse_linprobe() if __name__ == '__main__' else None      # first: --help and wrong flags need no torch

from torch.nn import CrossEntropyLoss

from engine_finetune import evaluate_checkpoint, train_epochs
from util.checkpoints import weights
from util.data.transforms import Normalize, pretraining_transform
from util.log import logger
from util.models.build import build_classifier
from util.models.linear_probe import LARS, LinearProbe, probing_head
from util.training.classification import build_loaders, count_classes, start
from util.training.optimizer_step import peak_lr
from util.training.setup import build_optimizer_step, load_initial_weights, log_training_summary


def main(args):
    session, precision, checkpointer = start(args)
    if args.eval:
        evaluate_checkpoint(args, session, precision, checkpointer, build_model, LinearProbe)
    else:
        train(args, session, precision, checkpointer)
    session.world.shutdown()


def train(args, session, precision, checkpointer):
    """Train the head, with an evaluation after each epoch."""
    loaders = train_loader, val_loader = build_loaders(args, session, build_transform(args))

    # encoder in the run's precision, head in fp32
    session.seed(args.seed, epoch=-1)
    model = build_model(args, count_classes(args, train_loader.dataset))
    if not (args.finetune or checkpointer.path):
        logger.warning('--finetune is not given: the features are those of random weights')
    load_initial_weights(args, session, checkpointer, model, args.finetune, load_encoder)
    probe = LinearProbe(model, precision, session.world)

    # optimizer
    log_training_summary(args, session.world, train_loader.dataset, probe.head, val_loader.dataset)
    optimizer = LARS(probe.head.parameters(), lr=peak_lr(args, session.world), weight_decay=args.weight_decay)
    optimizer_step = build_optimizer_step(args, session, probe.precision, checkpointer, probe.head, optimizer)

    # epochs
    normalize = Normalize.of(vars(args))
    train_epochs(args, session, checkpointer, optimizer_step, probe, loaders, CrossEntropyLoss(),
                 lambda images, labels: (probe.features(normalize(images)), labels))


def build_transform(args):
    """Random crops and flips, without further augmentation (arXiv:2111.06377, appendix A.1)."""
    return pretraining_transform(args.input_size, args.in_chans, args.crop_min)


def build_model(args, classes):
    """The encoder with a probing head."""
    model = build_classifier(vars(args), classes)
    model.head = probing_head(model.head.in_features, classes)
    return model


def load_encoder(model, state, path, flags=None):
    """As weights.load_pretrained, but raise UserError if the norm of the class token is missing."""
    left_out, missing = weights.load_pretrained(model, state, path, flags)
    if 'norm.weight' in missing:
        raise UserError('{}: no norm for the class token, as in a classifier with global pooling; add --global_pool'
                        .format(path))
    return left_out, missing


if __name__ == '__main__':
    run(main, ARGS)
