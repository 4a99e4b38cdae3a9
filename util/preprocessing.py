"""How a trained model wants its images: from the flags that its checkpoint keeps, in one place."""
from util.transforms import Normalize, evaluation_transform


def of(flags):
    """(transform, normalize) as in evaluation.

    Args:
        flags: of the training, as in util.trained.Trained.
    Returns:
        transform: util.pictures.Picture -> (H, W, C) uint8 tensor; normalize: (N, H, W, C) of these -> (N, C, H, W).
    """
    return evaluation_transform(flags.get('input_size') or 224, flags.get('in_chans') or 3), Normalize.of(flags)
