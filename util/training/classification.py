"""Shared by fine-tuning and linear probing: session with checkpoint and validation split, loaders, class count."""
from argparse import Namespace
from typing import Callable, List, Optional, Tuple

from torch.utils.data import Dataset

from util.checkpoints.checkpointer import Checkpointer
from util.data.datasets import has_validation, labelled_set
from util.data.loader import Batches, evaluation_loader, training_loader
from util.data.transforms import evaluation_transform
from util.data.validation_split import split_settings
from util.devices.precision import FullPrecision
from util.errors import UserError
from util.log import logger
from util.training.session import Session, setup_precision, start_session


def start(args: Namespace) -> Tuple[Session, FullPrecision, Checkpointer]:
    """Start the session, find the --resume checkpoint and settle --val_fraction and --val_seed."""
    session = start_session(args)
    precision = setup_precision(args, session)
    checkpointer = Checkpointer(args.output_dir, args.resume, args.save_every_minutes, args.keep_last,
                                session.world.is_main)
    args.val_fraction, args.val_seed = split_settings(args.val_fraction, args.val_seed, has_validation(args.data_path),
                                                      args.eval, checkpointer.get('args'))
    return session, precision, checkpointer


def build_loaders(args: Namespace, session: Session, transform: Callable) -> Tuple[Batches, Batches]:
    """(training loader, evaluation loader); `transform` is that of the training images."""
    train_set = labelled_set(args.data_path, 'train', transform, None, args.val_fraction, args.val_seed)
    train_loader = training_loader(train_set, args.batch_size, session.world, args.seed, args.num_workers,
                                   args.pin_mem, session.accelerator)
    return train_loader, build_evaluation_loader(args, session, train_set.classes)


def build_evaluation_loader(args: Namespace, session: Session, classes: Optional[List[str]] = None) -> Batches:
    """Loader of the validation images; `classes` are those of the training, by default those of the data."""
    dataset = labelled_set(args.data_path, 'val', evaluation_transform(args.input_size, args.in_chans), classes,
                           args.val_fraction, args.val_seed)
    return evaluation_loader(dataset, args.batch_size, session.world, args.dist_eval, args.num_workers, args.pin_mem,
                             session.accelerator)


def count_classes(args: Namespace, dataset: Dataset) -> int:
    """Number of classes of the head: the dataset's, or --nb_classes if that is larger."""
    found = len(dataset.classes)
    if args.nb_classes is not None and args.nb_classes < found:
        raise UserError('--nb_classes {}: {} has {} classes'.format(args.nb_classes, args.data_path, found))
    if args.nb_classes is not None and args.nb_classes > found:
        logger.warning('--nb_classes %d: the data has only %d classes', args.nb_classes, found)
    return args.nb_classes or found
