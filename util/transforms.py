"""From a PIL image to a normalised tensor: augmentation for pre-training and fine-tuning, resizing for evaluation."""
from torchvision import transforms

from util.errors import UserError
from util.timm_compat import create_transform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)        # of ImageNet, RGB
# torchvision before 0.8 knows interpolations by Pillow's numbers only.
BICUBIC = transforms.InterpolationMode.BICUBIC if hasattr(transforms, 'InterpolationMode') else 3
EVAL_CROP = .875            # share of the short side that evaluation keeps, up to 224 pixels


def statistics(in_chans):
    """(mean, std) of each input channel; a grey image takes the average of the three."""
    return (MEAN, STD) if in_chans == 3 else ((sum(MEAN) / 3,), (sum(STD) / 3,))


def pretraining_transform(input_size, in_chans=3):
    """Random resized crop and flip (arXiv:2111.06377, appendix A.1)."""
    return transforms.Compose([
        transforms.RandomResizedCrop(input_size, scale=(.2, 1.), interpolation=BICUBIC),
        transforms.RandomHorizontalFlip(),
        *_to_tensor(in_chans)])


def finetuning_transform(input_size, in_chans=3, color_jitter=None, aa='rand-m9-mstd0.5-inc1', reprob=.25,
                         remode='pixel', recount=1, resplit=False):
    """timm's training augmentation: random resized crop, flip, RandAugment, random erasing.

    Raises:
        UserError: timm cannot read the policy `aa`.
    """
    mean, std = statistics(in_chans)
    try:
        geometry, colour, finish = create_transform(
            input_size, is_training=True, color_jitter=color_jitter, auto_augment=None if aa == 'none' else aa,
            interpolation='bicubic', re_prob=reprob, re_mode=remode, re_count=recount,
            re_num_splits=2 if resplit else 0, mean=mean, std=std, separate=True)
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError('--aa {}: timm does not know this policy ({}); e.g. rand-m9-mstd0.5-inc1, or none'
                        .format(aa, error)) from error
    return transforms.Compose([geometry, colour, *_grey(in_chans), finish])


def evaluation_transform(input_size, in_chans=3):
    """Bicubic resize so that the centre crop keeps 0.875 of the short side (all of it above 224 pixels)."""
    side = int(input_size / EVAL_CROP) if input_size <= 224 else input_size
    return transforms.Compose([transforms.Resize(side, interpolation=BICUBIC), transforms.CenterCrop(input_size),
                               *_to_tensor(in_chans)])


def _to_tensor(in_chans):
    return [*_grey(in_chans), transforms.ToTensor(), transforms.Normalize(*statistics(in_chans))]


def _grey(in_chans):
    # Augmentations are defined on colour images, so a grey input is made at the end.
    return [transforms.Grayscale(1)] if in_chans == 1 else []
