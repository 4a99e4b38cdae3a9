"""Warnings at the head of a run, for settings that would waste it."""
import numpy as np

from util.log import logger

SHOWN = 5                   # names in a line


def before_training(args, images, effective_batch, val_set=None):
    """Warn of a warm-up that takes all epochs, of a batch larger than the data, and see before_evaluation.

    Args:
        args: the flags.
        images: number of training images.
        val_set: the validation images, where there are classes.
    """
    if args.warmup_epochs >= args.epochs > 1:
        logger.info('warning: --warmup_epochs %g of --epochs %d: the learning rate never falls, and reaches %.0f%% of '
                    'its peak', args.warmup_epochs, args.epochs, 100 * args.epochs / args.warmup_epochs)
    if effective_batch > images:
        logger.info('warning: the effective batch of %d is more than the %d training images: an epoch is one step; '
                    'lower --accum_iter', effective_batch, images)
    if val_set is not None:
        before_evaluation(val_set)


def before_evaluation(val_set):
    """Warn of classes without validation images."""
    counts = np.bincount(val_set.labels, minlength=len(val_set.classes))
    missing = [name for name, count in zip(val_set.classes, counts) if not count]
    if missing:
        logger.info('warning: no validation images of %d of %d classes: %s%s', len(missing), len(counts),
                    ', '.join(missing[:SHOWN]), ', ...' if len(missing) > SHOWN else '')
