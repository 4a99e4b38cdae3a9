"""Supervised training loop and evaluation of classifiers."""
from argparse import Namespace
from typing import Any, Callable, Dict

import torch
from torch.nn import functional as F

from util.checkpoints.checkpointer import Checkpointer
from util.config.input_flags import adopt_statistics
from util.data.loader import Batches
from util.data.transforms import Normalize
from util.data.unreadable import UnreadableTracker
from util.devices.precision import FullPrecision
from util.distributed import hang_detector
from util.errors import UserError
from util.log import logger, progress_bar
from util.reporting import report
from util.reporting.confusion import NO_IMAGE, ConfusionTracker
from util.training.epoch_meter import PRINT_EVERY, Throughput, per_second
from util.training.optimizer_step import OptimizerStep
from util.training.session import Session, enter_output_folder, write_result
from util.training.setup import build_evaluation_loader, class_names, count_classes
from util.training.trainer import Trainer


def train_epochs(args: Namespace, session: Session, checkpointer: Checkpointer, optimizer_step: OptimizerStep,
                 model: torch.nn.Module, loaders: tuple, criterion: Callable, augment: Callable) -> None:
    """Train for the remaining epochs and evaluate `model` after each.

    Args:
        model: as its precision made it, not in DistributedDataParallel.
        loaders: of util.training.setup.build_loaders.
        criterion, augment: see train_one_epoch.
    """
    train_loader, val_loader = loaders
    normalize = Normalize.of(vars(args))
    confusion = ConfusionTracker(val_loader.dataset, normalize)
    trainer = Trainer(args, session, optimizer_step, model, train_loader, checkpointer, 'loss', confusion,
                      classes=train_loader.dataset.classes, best=checkpointer.get('best') or {'acc1': -1., 'epoch': -1})
    if trainer.nothing_left():
        return
    with trainer:
        val_loader.unreadable_images = trainer.unreadable_images
        for epoch in trainer.epochs():
            stats = train_one_epoch(trainer, criterion, augment)
            with optimizer_step.ema_weights(model):
                result = evaluate(model, val_loader, optimizer_step.precision, session, normalize, confusion)
            trainer.stop_if_requested()                 # a signal may have interrupted the evaluation
            if result['acc1'] > trainer.values['best']['acc1']:
                trainer.values['best'] = {'acc1': result['acc1'], 'epoch': epoch}
            best = trainer.values['best']
            logger.info('Max accuracy: %.2f%% (epoch %d)', best['acc1'], best['epoch'])
            trainer.close_epoch(stats, {'test_' + name: result[name] for name in ('acc1', 'acc5', 'loss')}, {
                'acc1': result['acc1'], 'acc5': result['acc5'], 'best_acc1': best['acc1'],
                'best_epoch': best['epoch']}, improved=best['epoch'] == epoch)


def train_one_epoch(trainer: Trainer, criterion: Callable, augment: Callable) -> Dict[str, float]:
    """Train on the remaining batches of an epoch.

    Returns what EpochMeter.finish does, and raises what Trainer.check and Trainer.stop do.
    Args:
        criterion: loss of (logits, labels), or of (logits, soft labels) if `augment` makes such.
        augment: (images, labels) of the loader -> those of model and criterion.
    """
    optimizer_step, meter = trainer.optimizer_step, trainer.meter
    optimizer_step.model.train()
    for i, (images, labels) in meter.batches():                         # on the device
        optimizer_step.set_lr(meter.epoch, i, meter.iterations)         # changes when an accumulation window opens
        images, labels = augment(images, labels)
        with optimizer_step.gradient_sync():                            # all-reduce in the window's last iteration only
            with optimizer_step.precision.autocast():
                logits = optimizer_step.model(images)
            loss = criterion(logits.float(), labels)
            optimizer_step.backward(loss)
        if optimizer_step.due:
            optimizer_step.update()
        meter.log(i, loss, len(images))
        save, stop = trainer.check(i)                                   # agreed by all processes
        if save:
            trainer.save()
        if stop:
            trainer.stop()
    return meter.finish()


def evaluate_checkpoint(args: Namespace, session: Session, precision: FullPrecision, checkpointer: Checkpointer,
                        build: Callable, prepare: Callable) -> None:
    """--eval: accuracy of the --resume checkpoint on the validation images.

    `build`: (flags, classes) -> classifier; `prepare`: (classifier on the device, precision) -> model to evaluate.
    """
    if checkpointer.path is None:
        raise UserError('--resume auto: no checkpoint in {}'.format(args.output_dir))
    loader = build_evaluation_loader(args, session, class_names(args, checkpointer), checkpointer.get('labels'))
    dataset = loader.dataset
    model = build(vars(args), count_classes(args, dataset, checkpointer))
    adopt_statistics(args, checkpointer.get('args'), checkpointer.path)
    checkpointer.load_model(model, fit_positions=True, ema_weights=True)
    run_logger = enter_output_folder(args, session)
    model = prepare(model.to(session.device), precision)
    precision = getattr(model, 'precision', precision)          # a LinearProbe has its own
    loader.unreadable_images = UnreadableTracker.of_run(args.output_dir, args.max_bad_images, dataset, session.world)
    normalize = Normalize.of(vars(args))
    confusion = ConfusionTracker(dataset, normalize)
    result = evaluate(model, loader, precision, session, normalize, confusion)
    loader.unreadable_images.sync(session.world, session.device)
    result = write_result(session, run_logger, 'eval', {
        'task': 'Evaluation', 'images_per_sec': result.pop('FPS'), **result, 'checkpoint': checkpointer.path})
    report.write_evaluation_report(args, session, precision, result, confusion)
    run_logger.close()


@torch.no_grad()
def evaluate(model: torch.nn.Module, loader: Batches, precision: FullPrecision, session: Session,
             normalize: Normalize, confusion: ConfusionTracker) -> Dict[str, Any]:
    """Collective: top-1 and top-5 accuracy and cross-entropy over the readable images, each counted once.

    `model` is not in DistributedDataParallel, since processes may have unequal numbers of batches.
    Returns:
        acc1 and acc5 in percent, loss, images, FPS; unreadable, if there are such images.
    Raises:
        UserError: no image is readable.
    """
    model.eval()
    totals, predictions, seen = torch.zeros(3, device=session.device), [], 0       # correct@1, correct@5, loss
    clock = Throughput(len(loader), warmup=0, synchronize=session.accelerator.synchronize)
    batches = progress_bar('evaluation', 'batches', len(loader), items=clock.batches(loader))
    for i, (images, labels) in hang_detector.monitored(batches, 'evaluation'):
        if session.signals.requested:
            break                               # the caller stops before using the result
        seen += len(images)
        missing = loader.loader.batch_size - len(images)
        if missing and session.accelerator.is_accelerator:          # NPUs compile operators for each new shape
            images, labels = F.pad(images, (0, 0) * 3 + (0, missing)), F.pad(labels, (0, missing), value=NO_IMAGE)
        images, labels = session.accelerator.to_device((images, labels), session.device)
        images = normalize(images)
        with precision.autocast():
            logits = model(images)
        predictions.append(torch.stack([labels, logits.argmax(dim=1)]))
        loss = F.cross_entropy(logits.float(), labels, ignore_index=NO_IMAGE, reduction='sum')
        totals += torch.cat([count_correct(logits, labels), loss[None]])
        if (i + 1) % PRINT_EVERY == 0:
            logger.info('Test:  [%d/%d]', i + 1, len(loader))
    totals = torch.cat([totals, totals.new_tensor([seen, len(loader.failures), bool(session.signals.requested)])])
    correct1, correct5, loss, images, unreadable, stopped = session.world.all_reduce(totals).tolist()
    if unreadable and not images:
        raise UserError('--data_path: none of the {:.0f} validation images is readable; is the disk mounted?'
                        .format(unreadable))
    count = max(images, 1)                      # 0 only if all processes were stopped
    result = {'acc1': 100 * correct1 / count, 'acc5': 100 * correct5 / count, 'loss': loss / count,
              'images': int(images), 'FPS': round(per_second(images, clock.seconds), 2)}
    if unreadable:
        result['unreadable'] = int(unreadable)
    if not stopped:
        confusion.gather(predictions, loader, session.world, session.device)
        logger.info('* Acc@1 %.3f Acc@5 %.3f loss %.4f  (%d images%s)', result['acc1'], result['acc5'], result['loss'],
                    result['images'], ', {:.0f} more unreadable'.format(unreadable) if unreadable else '')
    return result


def count_correct(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Number of top-1 and of top-5 hits of logits (N, classes) against labels (N,), as a tensor (2,)."""
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices.eq(labels[:, None]).float()
    return torch.stack([hits[:, 0].sum(), hits.sum()])
