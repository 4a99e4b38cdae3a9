"""Training loop of masked pre-training."""
from typing import Dict

from util.data.transforms import Normalize
from util.training.trainer import Trainer


def train_one_epoch(trainer: Trainer, mask_ratio: float, normalize: Normalize) -> Dict[str, float]:
    """Train on the remaining batches of an epoch.

    Args:
        mask_ratio: fraction of the patches to mask.
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
        with optimizer_step.gradient_sync():                            # all-reduce in the window's last iteration only
            with optimizer_step.precision.autocast():
                loss = optimizer_step.model(images, mask_ratio=mask_ratio, loss_only=True)
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
