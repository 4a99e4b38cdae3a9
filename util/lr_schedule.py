"""Learning rate: linear warm-up, then half a cosine, as a function of the fractional epoch."""
import math


def warmup_cosine(epoch, peak, epochs, warmup_epochs, floor=0.):
    """Learning rate at a fractional epoch (arXiv:2111.06377, appendix A.1; arXiv:1608.03983 without restarts).

    Args:
        epoch: epochs done so far, e.g. 2.5.
        peak: learning rate at the end of the warm-up.
        floor: learning rate at the end of the last epoch.
    """
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-12)
    return floor + (peak - floor) * .5 * (1. + math.cos(math.pi * progress))


def peak_lr(lr, blr, effective_batch, lr_batch=None):
    """The peak learning rate: `lr` where given, else `blr`, which is for 256 images, scaled to the batch.

    Scaling is linear (arXiv:1706.02677).
    Args:
        lr_batch: effective batch that `lr` is for, where it is to be scaled too (--auto_scale_lr).
    """
    if lr is None:
        return blr * effective_batch / 256
    return lr * effective_batch / lr_batch if lr_batch else lr


def set_lr(optimizer, lr):
    """Give every parameter group `lr` times its own lr_scale (layer-wise decay), if it has one."""
    for group in optimizer.param_groups:
        group['lr'] = lr * group.get('lr_scale', 1.)
