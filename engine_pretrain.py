"""One epoch of masked pre-training."""
from util.progress import Progress


def train_one_epoch(model, loader, updates, epoch, mask_ratio, runtime, logbook, rate, first_epoch=False):
    """Show `model` every batch of `loader` once.

    Args:
        updates: util.updates.WeightUpdates of the model.
        epoch: counted from 0.
        rate: util.throughput.Rate of the run.
        first_epoch: leave the first iterations out of the speed.
    Returns:
        train_loss, train_lr, FPS, data_wait and skipped_steps of the epoch.
    Raises:
        UserError: the loss is no longer finite.
    """
    def on_line(at, loss, lr):
        logbook.scalars(at, {'train_loss': loss, 'lr': lr})

    model.train()
    progress = Progress(epoch, len(loader), runtime, updates, on_line, first_epoch)
    for i, (images, _) in progress.batches(loader):
        images = images.to(runtime.device, non_blocking=True)
        with updates.iteration(i, len(loader), epoch):
            with updates.precision.autocast():
                loss, _, _ = model(images, mask_ratio=mask_ratio)
            updates.backward(loss)
        progress.add(loss, len(images))
    return progress.finish(rate)
