"""One epoch of masked pre-training."""


def train_one_epoch(progress, updates, mask_ratio, normalize):
    """Show the model every batch that is left of an epoch.

    Args:
        progress: Progress of the epoch.
        updates: WeightUpdates of the model.
        normalize: images as the loader gives them -> as the model takes them.
    Returns:
        train_loss, train_lr, FPS, data_wait and skipped_steps of the epoch.
    Raises:
        Stopped, UserError: see Course.agree.
    """
    updates.model.train()
    for i, (images, _) in progress.batches():
        images = normalize(images)
        with updates.iteration(i, progress.iterations, progress.epoch):
            with updates.precision.autocast():
                loss = updates.model(images, mask_ratio=mask_ratio, loss_only=True)
            updates.backward(loss)
        progress.add(loss, len(images))
    return progress.finish()
