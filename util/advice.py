"""What looks like a mistake, said at the head of a run, before the hours are spent: values go in, lines come out."""
import math
import os
from collections import namedtuple

import numpy as np

from util.datasets import VAL_NAMES, ImageList
from util.listing import Listing, Paths as CsvPaths
from util.log import logger

# Of arXiv:2111.06377, tables 8, 9 and 10: effective batch, and base learning rate for 256 images.
Recipe = namedtuple('Recipe', 'batch blr')
PRETRAINING, FINETUNING, PROBING = Recipe(4096, 1.5e-4), Recipe(1024, 1e-3), Recipe(16384, .1)
# AdamW moves a weight by about the learning rate. Weights start with a standard deviation of 0.02, where fp32 numbers
# are 1.9e-9 apart: less than half of that changes nothing.
LEAST_LR = float(np.spacing(np.float32(.02))) / 2
FEW = 5                     # images of a class
SHOWN = 5                   # names in a line
PROGRAMS = ('__macosx', '@eadir', '$recycle.bin', 'lost+found')     # folders that programs make, beside hidden ones


def before_training(args, recipe, train_set, effective_batch, lr, lowest_scale=1., val_set=None):
    """Log all that looks like a mistake of a training.

    Args:
        args: the flags.
        recipe: the published one to compare with.
        lowest_scale: the least factor of the learning rate that a layer has.
        val_set: the validation images, where there are classes.
    """
    lines = schedule(args.epochs, args.warmup_epochs, lr, args.min_lr, lowest_scale)
    lines += batch(effective_batch, args.accum_iter, len(train_set), lr if args.lr else None, recipe)
    if val_set is None:
        lines += folders(getattr(train_set, 'paths', None))
    else:
        lines += classes(train_set.classes, _counts(train_set)) + unjudged(val_set.classes, _counts(val_set))
        lines += shared(train_set, val_set)
    tell(lines)


def before_evaluation(val_set):
    """Log what looks like a mistake of an evaluation."""
    tell(unjudged(val_set.classes, _counts(val_set)))


def tell(lines):
    """Log warnings, on the main process."""
    for line in lines:
        logger.info('warning: %s', line)


def schedule(epochs, warmup_epochs, lr, min_lr, lowest_scale=1.):
    """Lines about a warm-up that takes all epochs, and learning rates that are too small or upside down."""
    lines = []
    if warmup_epochs >= epochs:
        lines.append('--warmup_epochs {:g} of --epochs {}: the learning rate never falls, and reaches {:.0f}% of its '
                     'peak; {:g} would be a tenth of the epochs'.format(warmup_epochs, epochs,
                                                                        100 * epochs / warmup_epochs, epochs / 10))
    if min_lr > lr:
        lines.append('--min_lr {:g} is above the peak learning rate {:.3g}: after the warm-up the learning rate rises; '
                     'lower --min_lr'.format(min_lr, lr))
    if lr < LEAST_LR:
        lines.append('a peak learning rate of {:.2g} moves weights by less than fp32 can tell (about {:.1g}): nothing '
                     'would be learnt; raise --lr or --blr'.format(lr, LEAST_LR))
    elif lr * lowest_scale < LEAST_LR:
        lines.append('--layer_decay leaves the lowest layer a peak learning rate of {:.2g}, which moves weights by '
                     'less than fp32 can tell (about {:.1g})'.format(lr * lowest_scale, LEAST_LR))
    return lines


def batch(effective_batch, accum_iter, images, lr, recipe):
    """Lines about an effective batch that the data or the recipe do not fit.

    Args:
        lr: the peak that --lr gives; None where the learning rate follows the batch.
    """
    lines = []
    if effective_batch > images:
        iteration = effective_batch // accum_iter
        lines.append('the effective batch of {} is more than the {} training images: an epoch is one step, on {} of '
                     'them; lower --accum_iter'.format(effective_batch, images, images // iteration * iteration))
    elif effective_batch * 128 < recipe.batch:
        wanted = math.ceil(recipe.batch / 128 / (effective_batch // accum_iter))
        lines.append('an effective batch of {} makes noisy steps, the published recipe has {}; without more memory, '
                     '--accum_iter {} makes it {}'.format(effective_batch, recipe.batch, wanted,
                                                          effective_batch // accum_iter * wanted))
    elif effective_batch >= 4 * recipe.batch and lr is None:
        lines.append('an effective batch of {} is {:.0f} times that of the published recipe ({}), and so is the '
                     'learning rate; --lr sets a lower one'.format(effective_batch, effective_batch / recipe.batch,
                                                                   recipe.batch))
    usual = recipe.blr * effective_batch / 256
    if lr is not None and lr >= LEAST_LR and not usual / 10 <= lr <= usual * 100:
        lines.append('--lr {:g} is {:g} times what the published recipe takes for an effective batch of {}, {:.2g}; '
                     '--blr {:g} follows the batch'.format(lr, float('{:.2g}'.format(lr / usual)), effective_batch,
                                                           usual, recipe.blr))
    return lines


def classes(names, counts):
    """Lines about classes that are one, or have suspicious names or few images.

    Args:
        names, counts: of each class, and of its training images.
    """
    lines = []
    if len(names) == 1:
        lines.append('there is one class, {!r}: nothing to tell apart'.format(names[0]))
    strange = [name for name in names if _of_a_program(name)]
    if strange:
        lines.append('made by a program, and counted as a class: {}; remove it if it is none'.format(_few(strange)))
    parts = [name for name in names if name.lower() in ('train', 'training', *VAL_NAMES)]
    if parts:
        lines.append('named like a part of the data, but taken for a class: {}; is there a level of folders too many?'
                     .format(_few(parts)))
    spelt = {}
    for name in names:
        spelt.setdefault(name.casefold(), []).append(name)
    twins = [name for group in spelt.values() if len(group) > 1 for name in group]
    if twins:
        lines.append('classes that differ in capital letters alone: {}'.format(_few(twins)))
    rare = ['{} ({})'.format(name, count) for name, count in zip(names, counts) if count < FEW]
    if rare:
        lines.append('{} of {} classes {} fewer than {} training images: {}'.format(
            len(rare), len(names), 'has' if len(rare) == 1 else 'have', FEW, _few(rare)))
    return lines


def unjudged(names, counts):
    """Lines about classes without validation images."""
    missing = [name for name, count in zip(names, counts) if not count]
    return ['no validation images of {} of {} classes: {}'.format(len(missing), len(names), _few(missing))
            ] if missing else []


def folders(paths):
    """Lines about images below hidden folders and those that programs make; `paths` may be of any kind."""
    if not isinstance(paths, Listing):
        return []
    counts = np.bincount(paths.folder_of, minlength=len(paths.folders))
    strange = {folder: int(count) for folder, count in zip(paths.folders, counts)
               if count and any(map(_of_a_program, folder.split(os.sep)))}
    return ['{} images are in folders made by a program: {}; remove these if they are no pictures to train on'.format(
        sum(strange.values()), _few(list(strange)))] if strange else []


def shared(train_set, val_set):
    """Lines about files that two CSV files both list."""
    lists = [dataset.paths for dataset in (train_set, val_set)
             if isinstance(dataset, ImageList) and isinstance(dataset.paths, CsvPaths)]
    if len(lists) < 2:
        return []
    both = sorted({os.path.normpath(path) for path in lists[0]} & {os.path.normpath(path) for path in lists[1]})
    return ['{} of the {} validation images are trained on too, such as {}'.format(
        len(both), len(val_set), both[0])] if both else []


def _of_a_program(name):
    return name.startswith('.') or name.lower() in PROGRAMS


def _few(names):
    return ', '.join(names[:SHOWN]) + (', ...' if len(names) > SHOWN else '')


def _counts(dataset):
    return np.bincount(dataset.labels, minlength=len(dataset.classes))
