"""One epoch of supervised training, and evaluation."""
import torch
from torch.nn import functional as F

from util.distributed import hang_detector
from util.errors import UserError
from util.log import logger, progress_bar
from util.training.epoch_meter import PRINT_EVERY, Throughput, per_second


def train_one_epoch(trainer, criterion, augment):
    """Train on the batches that are left of an epoch.

    Args:
        trainer: Trainer, in one of its epochs.
        criterion: loss of (logits, labels), or of (logits, soft labels) where `augment` makes such.
        augment: (images, labels) as the loader gives them -> as model and criterion take them.
    Returns:
        train_loss, train_lr, FPS, data_wait and skipped_steps of the epoch.
    Raises:
        Preempted, SaveFailed, UserError: see Trainer.
    """
    optimizer_step, meter = trainer.optimizer_step, trainer.meter
    optimizer_step.model.train()
    for i, (images, labels) in meter.batches():                         # on the device
        optimizer_step.set_lr(meter.epoch, i, meter.iterations)         # changes when an accumulation window opens
        images, labels = augment(images, labels)
        with optimizer_step.gradient_sync():                            # none before the window's last iteration
            with optimizer_step.precision.autocast():
                logits = optimizer_step.model(images)
            loss = criterion(logits.float(), labels)
            optimizer_step.backward(loss)
        if optimizer_step.due:
            optimizer_step.update()
        meter.log(i, loss, len(images))
        trainer.agree_when_due(i)
        if trainer.save_due:
            trainer.save()
        if trainer.stop_due:
            trainer.stop()
    return meter.finish()


@torch.no_grad()
def evaluate(model, loader, precision, session, normalize, confusion):
    """Top-1 and top-5 accuracy and cross-entropy over all readable images of all processes, each counted once.

    Args:
        model: not in DistributedDataParallel, since processes may have unequal numbers of batches.
        loader: of util.data.loader.evaluation_loader.
        normalize: images as the loader gives them -> as the model takes them.
        confusion: ConfusionTracker, which is shown the predictions.
    Returns:
        acc1 and acc5 in percent, loss, images, FPS; unreadable, where there are such images.
    Raises:
        UserError: no image can be read.
    """
    model.eval()
    totals, seen = torch.zeros(4, device=session.device), []        # correct@1, correct@5, loss, images
    clock = Throughput(len(loader), warmup=0, synchronize=session.accelerator.synchronize)
    batches = progress_bar('evaluation', 'batches', len(loader), items=clock.batches(loader))
    for i, (images, labels) in hang_detector.monitored(batches, 'evaluation'):
        if session.signals.requested:
            break                               # the caller stops before it uses the result
        images, labels = session.accelerator.to_device((images, labels), session.device)
        images = normalize(images)
        with precision.autocast():
            logits = model(images)
        seen.append(torch.stack([labels, logits.argmax(dim=1)]))
        loss = F.cross_entropy(logits.float(), labels, reduction='sum')
        totals += torch.cat([count_correct(logits, labels), torch.stack([loss, torch.full_like(loss, len(images))])])
        if (i + 1) % PRINT_EVERY == 0:
            logger.info('Test:  [%d/%d]', i + 1, len(loader))
    totals = torch.cat([totals, totals.new_tensor([loader.unreadable, bool(session.signals.requested)])])
    correct1, correct5, loss, images, unreadable, stopped = session.world.all_reduce(totals).tolist()
    if unreadable and not images:
        raise UserError('--data_path: none of the {:.0f} validation images can be read; is the disk there?'
                        .format(unreadable))
    confusion.share(seen, loader, session.world, session.device)
    shown = max(images, 1)                      # 0 only where all have been asked to stop
    result = {'acc1': 100 * correct1 / shown, 'acc5': 100 * correct5 / shown, 'loss': loss / shown,
              'images': int(images), 'FPS': round(per_second(images, clock.seconds), 2)}
    if unreadable:
        result['unreadable'] = int(unreadable)
    if not stopped:
        logger.info('* Acc@1 %.3f Acc@5 %.3f loss %.4f  (%d images%s)', result['acc1'], result['acc5'], result['loss'],
                    result['images'], ', {:.0f} more cannot be read'.format(unreadable) if unreadable else '')
    return result


def count_correct(logits, labels):
    """How many labels (N,) have the highest logit of (N, classes), and how many are among the 5 highest: (2,)."""
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices.eq(labels[:, None]).float()
    return torch.stack([hits[:, 0].sum(), hits.sum()])
