"""One epoch of supervised training, and evaluation."""
import torch
from torch.nn import functional as F

from util.log import logger
from util.metrics import count_correct
from util.progress import PRINT_EVERY, Progress
from util.throughput import Throughput, per_second


def train_one_epoch(model, loader, updates, epoch, criterion, mix, runtime, logbook, rate, first_epoch=False):
    """Show `model` every batch of `loader` once.

    Args:
        updates: util.updates.WeightUpdates of the model.
        epoch: counted from 0.
        criterion: loss of (logits, labels), or of (logits, soft labels) where `mix` makes such.
        mix: (images, labels) -> (images, labels); mixup and cutmix, or what changes nothing.
        rate: util.throughput.Rate of the run.
        first_epoch: leave the first iterations out of the speed.
    Returns:
        train_loss, train_lr, FPS, data_wait and skipped_steps of the epoch.
    Raises:
        UserError: the loss is no longer finite.
    """
    def on_line(at, loss, lr):
        logbook.scalars(at, {'loss': loss, 'lr': lr})

    model.train()
    progress = Progress(epoch, len(loader), runtime, updates, on_line, first_epoch)
    for i, (images, labels) in progress.batches(loader):
        images = images.to(runtime.device, non_blocking=True)
        labels = labels.to(runtime.device, non_blocking=True)
        images, labels = mix(images, labels)
        with updates.iteration(i, len(loader), epoch):
            with updates.precision.autocast():
                logits = model(images)
            loss = criterion(logits.float(), labels)
            updates.backward(loss)
        progress.add(loss, len(images))
    return progress.finish(rate)


@torch.no_grad()
def evaluate(model, loader, precision, runtime):
    """Top-1 and top-5 accuracy and cross-entropy over all images of all processes, each counted once.

    Args:
        model: not in DistributedDataParallel, since processes may have unequal numbers of batches.
    Returns:
        acc1 and acc5 in percent, loss, images, FPS.
    """
    model.eval()
    totals = torch.zeros(4, device=runtime.device)                  # correct@1, correct@5, loss, images
    clock = Throughput(len(loader), warmup=0, synchronize=runtime.accelerator.synchronize)
    for i, (images, labels) in enumerate(clock.batches(loader)):
        images = images.to(runtime.device, non_blocking=True)
        labels = labels.to(runtime.device, non_blocking=True)
        with precision.autocast():
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, reduction='sum')
        totals += torch.cat([count_correct(logits, labels), torch.stack([loss, torch.full_like(loss, len(images))])])
        if (i + 1) % PRINT_EVERY == 0:
            logger.info('Test:  [%d/%d]', i + 1, len(loader))
    correct1, correct5, loss, images = runtime.world.sum(totals).tolist()
    result = {'acc1': 100 * correct1 / images, 'acc5': 100 * correct5 / images, 'loss': loss / images,
              'images': int(images), 'FPS': round(per_second(images, clock.seconds), 2)}
    logger.info('* Acc@1 %.3f Acc@5 %.3f loss %.4f  (%d images)', result['acc1'], result['acc5'], result['loss'],
                result['images'])
    return result
