"""Setup of training and evaluation: loaders, classes, weights, optimizer and its learning-rate schedule.

Weights are loaded first, then the precision prepared, then the optimizer's state loaded. apex O2 requires this order:
`precision.prepare` makes fp32 master weights from the weights of the model, and the moments belong to these.
"""
import math
from argparse import Namespace
from contextlib import contextmanager
from typing import Callable, Iterator, List, Optional, Tuple

import torch
from torch.utils.data import Dataset

from util.checkpoints import weights
from util.checkpoints.checkpointer import Checkpointer
from util.checkpoints.pth_file import checkpoint_errors
from util.config.input_flags import adopt_statistics
from util.data.datasets import by_number, has_validation, labelled_set
from util.data.file_index import read_class_names
from util.data.loader import Batches, evaluation_loader, training_loader
from util.data.transforms import evaluation_transform
from util.data.validation_split import resolve_split
from util.devices.compile import compile_blocks
from util.devices.precision import FullPrecision
from util.distributed.world import World
from util.errors import UserError
from util.log import logger
from util.model_sizes import PRETRAIN_MODELS, decoder_fault, decoder_flags
from util.models.activation_checkpointing import checkpointed
from util.models.build import DECODER_FLAGS
from util.text import listed
from util.training.ema import EMA
from util.training.non_finite_steps import NonFiniteSteps
from util.training.optimizer_step import OptimizerStep, effective_batch_size, peak_lr, warmup_cosine
from util.training.session import Session, setup_precision, start_session


@contextmanager
def start_run(args: Namespace) -> Iterator[Tuple[Session, FullPrecision, Checkpointer]]:
    """As start_session; also choose the precision, find the --resume checkpoint and settle the validation split."""
    with start_session(args) as session:
        precision = setup_precision(args, session)
        checkpointer = Checkpointer(args.output_dir, args.resume, args.save_every_minutes, args.keep_last,
                                    session.world.is_main)
        session.check_same_start(checkpointer.path is not None, *checkpointer.start(args.start_epoch))
        if args.val_fraction or hasattr(args, 'nb_classes'):        # pre-training takes all images by default
            args.val_fraction, args.val_seed = resolve_split(
                args.val_fraction, args.val_seed, has_validation(args.data_path), getattr(args, 'eval', False),
                checkpointer.get('args'))
        yield session, precision, checkpointer


def adopt_decoder_flags(args: Namespace, checkpointer: Checkpointer) -> None:
    """Set the flags of the decoder that are not given to those of the --resume checkpoint, if it is of this model."""
    saved = checkpointer.get('args') or {}
    sizes = decoder_flags(checkpointer.get('model', {}))        # a damaged file's flags could ask for any memory
    if PRETRAIN_MODELS.get(saved.get('model')) == PRETRAIN_MODELS[args.model]:
        for name in DECODER_FLAGS:
            if getattr(args, name) is None and saved.get(name):
                setattr(args, name, sizes.get(name, saved[name]))
                logger.info('--%s %s, as in %s', name, getattr(args, name), checkpointer.path)
    args.predict_ratio = args.predict_ratio or 1.
    fault = decoder_fault(vars(args))
    if fault:
        raise UserError('{}, with the flags in {}'.format(fault, checkpointer.path))


def class_names(args: Namespace, checkpointer: Checkpointer) -> Optional[List[str]]:
    """Class names by label: of --class_names, else of the --resume checkpoint; None: those of the data, sorted."""
    if not args.class_names:
        return checkpointer.get('classes')
    names = read_class_names(args.class_names)
    if len(set(names)) < len(names):
        raise UserError('--class_names {}: a name is there twice'.format(args.class_names))
    return names


def build_loaders(args: Namespace, session: Session, transform: Callable,
                  classes: Optional[List[str]] = None) -> Tuple[Batches, Batches]:
    """(training loader, evaluation loader); `transform` is that of the training images, `classes`: see class_names."""
    train_set = labelled_set(args.data_path, 'train', transform, classes, args.val_fraction, args.val_seed)
    train_loader = training_loader(train_set, args.batch_size, session.world, args.seed, args.num_workers,
                                   args.pin_mem, session.accelerator)
    return train_loader, build_evaluation_loader(args, session, train_set.classes)


def build_evaluation_loader(args: Namespace, session: Session, classes: Optional[List[str]] = None,
                            labels: Optional[List[str]] = None) -> Batches:
    """Loader of the validation images; `classes`: see class_names.

    `labels`: class names of another library's model. Without `classes` they count, if they include all of the data's.
    """
    def load(names):
        return labelled_set(args.data_path, 'val', evaluation_transform(args.input_size, args.in_chans), names,
                            args.val_fraction, args.val_seed)
    dataset = load(classes)
    if labels and not classes and set(dataset.classes) <= set(labels) and len(set(labels)) == len(labels):
        dataset = load(labels)
    empty = sorted(set(range(len(dataset.classes))) - set(map(int, dataset.labels)))
    if empty:
        logger.info('warning: no validation images of %d of %d classes: %s', len(empty), len(dataset.classes),
                    listed([dataset.classes[label] for label in empty]))
    return evaluation_loader(dataset, args.batch_size, session.world, args.dist_eval, args.num_workers, args.pin_mem,
                             session.accelerator)


def count_classes(args: Namespace, dataset: Dataset, checkpointer: Optional[Checkpointer] = None) -> int:
    """Number of classes of the head: that of the --resume checkpoint, else the dataset's, or --nb_classes if larger.

    Raises:
        UserError: --nb_classes is another number, or it is unknown which output of the checkpoint is which class.
    """
    found, wanted = len(dataset.classes), args.nb_classes
    outputs = checkpointer.outputs if checkpointer else None
    if outputs is not None:
        check_labels(args, dataset, checkpointer)
    if wanted is not None and (wanted < found or outputs not in (None, wanted)):
        raise UserError('--nb_classes {}: {} has {} classes'.format(
            wanted, *((args.data_path, found) if wanted < found else (checkpointer.path, outputs))))
    return outputs or wanted or found


def check_labels(args: Namespace, dataset: Dataset, checkpointer: Checkpointer) -> None:
    """Raise UserError if it is unknown which output of the checkpoint's classifier is which class of the data.

    Without names, by --class_names or in the checkpoint, outputs are in the order of the sorted names of the data. But
    programs sort names with numbers differently, and a part of the classes would get other outputs.
    """
    path, outputs, names = checkpointer.path, checkpointer.outputs, list(dataset.classes)
    stated = class_names(args, checkpointer)
    if stated and names != stated:                              # CIFAR has names of its own
        raise UserError('--data_path {}: its classes {} are not those of the model: {}'.format(
            args.data_path, listed(names), listed(stated)))
    if args.class_names and len(names) != outputs:
        raise UserError('--class_names {}: has {} names, but {} has {} classes'.format(args.class_names, len(names),
                                                                                      path, outputs))
    if stated or names == checkpointer.get('labels'):
        return
    if len(names) != outputs or names != sorted(names, key=by_number):
        raise UserError('{}: its {} classes have no names, and the {} of the data, {}, are others or sort otherwise by '
                        'their numbers; state the names, one a line, in the order of the training, by --class_names '
                        'FILE'.format(path, outputs, len(names), listed(names)))
    logger.info('%s: no class names; taking its outputs for the classes of the data in the order of their names, %s',
                path, listed(names))


def load_initial_weights(args: Namespace, session: Session, checkpointer: Checkpointer, model: torch.nn.Module,
                         pretrained: Optional[str], load: Callable) -> None:
    """Load the weights of --resume, else of `pretrained` (--finetune or --init_from); move the model to the device.

    `load` is load_pretrained or load_for_pretraining of util.checkpoints.weights.
    """
    if pretrained and checkpointer.path is None:
        weights.start_from(pretrained, model, args, load)
    adopt_statistics(args, checkpointer.get('args'), checkpointer.path)
    checkpointer.load_model(model)
    session.place(model)


def build_adamw_step(args: Namespace, session: Session, precision: FullPrecision, checkpointer: Checkpointer,
                     model: torch.nn.Module, groups: list, betas: tuple) -> Tuple[torch.nn.Module, OptimizerStep]:
    """(model prepared for its precision, OptimizerStep with AdamW) for a model whose weights are loaded."""
    optimizer = precision.adamw(session.accelerator, groups, lr=peak_lr(args, session.world), betas=betas)
    model, optimizer = precision.prepare(model, optimizer)
    if args.grad_checkpoint:
        enable_activation_checkpointing(model, session)
    if args.compile:
        compile_blocks(model, session.device)
    return model, build_optimizer_step(args, session, precision, checkpointer, model, optimizer)


def enable_activation_checkpointing(model: torch.nn.Module, session: Session) -> None:
    """--grad_checkpoint. Raises UserError if recomputed blocks would drop other paths: gradients would be wrong."""
    drops_paths = any(getattr(module, 'drop_prob', None) for module in model.modules())
    if drops_paths and not session.accelerator.checkpoint_preserves_rng:
        raise UserError('--grad_checkpoint: torch {} does not restore the random state of {} for recomputation; add '
                        '--drop_path 0'.format(torch.__version__, session.accelerator.type))
    model.run_block = checkpointed


def build_optimizer_step(args: Namespace, session: Session, precision: FullPrecision, checkpointer: Checkpointer,
                         model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> OptimizerStep:
    """OptimizerStep for a prepared model; optimizer, loss scale, EMA and counters resume from the checkpoint."""
    checkpointer.load_training(optimizer, precision)
    ema = None
    if getattr(args, 'ema', None) is not None:          # main_linprobe.py has no --ema
        ema = EMA(args.ema, precision.trained_weights(model, optimizer))
        logger.info('--ema %g: evaluation uses the EMA weights', args.ema)
        checkpointer.load_ema(ema)
    non_finite_steps = NonFiniteSteps(args.max_bad_steps)
    non_finite_steps.load_state_dict(checkpointer.state)
    report_schedule_change(args, session.world, checkpointer)
    return OptimizerStep(session.wrap(model, precision), optimizer, precision, schedule(args, session.world),
                         args.accum_iter, args.clip_grad, non_finite_steps, ema)


def schedule(args: Namespace, world: World) -> Callable[[float], float]:
    """Fractional epoch -> learning rate."""
    peak = peak_lr(args, world)
    return lambda epoch: warmup_cosine(epoch, peak, args.epochs, args.warmup_epochs, args.min_lr)


def report_schedule_change(args: Namespace, world: World, checkpointer: Checkpointer) -> None:
    """Log how the learning rate of a resumed run differs from that by the flags in the checkpoint, such as --epochs."""
    if not checkpointer.is_resume:
        return
    saved, epoch = {**vars(args), **(checkpointer.get('args') or {})}, checkpointer.start(args.start_epoch)[0]
    with checkpoint_errors(checkpointer.path):
        before = schedule(Namespace(**saved), World(0, checkpointer.get('processes', world.size)))(epoch)
    now = schedule(args, world)(epoch)
    if not math.isclose(before, now, rel_tol=1e-3):
        logger.info('warning: the learning rate at epoch %d is %.2g, with the flags of the checkpoint it was %.2g: the '
                    'schedule follows the flags of this run from epoch 0 to %d', epoch, now, before, args.epochs)


def log_training_summary(args: Namespace, world: World, dataset: Dataset, model: torch.nn.Module) -> None:
    """Log dataset size, trained parameters, batch size and learning rate; warn of settings that would waste the run."""
    batch, lr = effective_batch_size(args, world), peak_lr(args, world)
    if args.lr is not None and args.auto_scale_lr:
        logger.info('lr scaled from %.3e for a batch of %d images', args.lr, args.base_batch_size)
    elif args.lr is not None and args.base_batch_size not in (None, batch):
        logger.warning('--lr %g was tuned for a batch of %d images, the effective batch is %d: --auto_scale_lr would '
                       'make it %.3e', args.lr, args.base_batch_size, batch, args.lr * batch / args.base_batch_size)
    logger.info('data: %d images', len(dataset))
    logger.info('model: %.2f M trained parameters', sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6)
    logger.info('effective batch size: %d, peak lr: %.3e', batch, lr)
    if args.warmup_epochs >= args.epochs > 1:
        logger.info('warning: --warmup_epochs %g of --epochs %d: the learning rate never decays, and reaches %.0f%% of '
                    'its peak', args.warmup_epochs, args.epochs, 100 * args.epochs / args.warmup_epochs)
    if batch > len(dataset):
        logger.info('warning: the effective batch of %d exceeds the %d training images: an epoch is a single step; '
                    'lower --accum_iter', batch, len(dataset))
