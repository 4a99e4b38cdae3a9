"""One epoch of masked pre-training."""


def train_one_epoch(trainer, mask_ratio, normalize):
    """Train on the batches that are left of an epoch.

    Args:
        trainer: Trainer, in one of its epochs.
        mask_ratio: share of the patches to remove.
        normalize: images as the loader gives them -> as the model takes them.
    Returns:
        train_loss, train_lr, FPS, data_wait and skipped_steps of the epoch.
    Raises:
        Preempted, SaveFailed, UserError: see Trainer.
    """
    optimizer_step, meter = trainer.optimizer_step, trainer.meter
    optimizer_step.model.train()
    for i, (images, _) in meter.batches():                              # on the device
        optimizer_step.set_lr(meter.epoch, i, meter.iterations)         # changes when an accumulation window opens
        images = normalize(images)
        with optimizer_step.gradient_sync():                            # none before the window's last iteration
            with optimizer_step.precision.autocast():
                loss = optimizer_step.model(images, mask_ratio=mask_ratio, loss_only=True)
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
