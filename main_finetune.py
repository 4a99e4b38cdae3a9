"""Fine-tune or evaluate a ViT classifier: python main_finetune.py --data_path FOLDER [flags]; --help lists them."""
from util import errors

errors.begin(__name__)

from argparse import Namespace
from typing import Callable, Tuple, Union

from util.config.train_flags import mixing, parse_finetune
from util.errors import UserError

ARGS = parse_finetune() if __name__ == '__main__' else None      # first: --help and wrong flags need no torch

import torch
from torch.nn import CrossEntropyLoss

from engine_finetune import evaluate_checkpoint, train_epochs
from util.checkpoints import weights
from util.checkpoints.checkpointer import Checkpointer
from util.config.input_flags import COLOURED
from util.data.batch_augmentation import Mixup, RandomErasing
from util.data.transforms import Normalize, finetuning_transform
from util.devices.precision import FullPrecision
from util.log import logger
from util.models.build import build_classifier
from util.models.timm_adapter import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from util.training import setup
from util.training.optimizer_step import layer_decay_groups
from util.training.session import Session


def main(args: Namespace) -> None:
    with setup.start_run(args) as (session, precision, checkpointer):
        if args.eval:
            evaluate_checkpoint(args, session, precision, checkpointer, build_classifier,
                                lambda model, precision: precision.prepare_inference(model))
        else:
            train(args, session, precision, checkpointer)


def train(args: Namespace, session: Session, precision: FullPrecision, checkpointer: Checkpointer) -> None:
    """Fine-tune, or train from scratch, with an evaluation after each epoch."""
    if args.freeze is not None and not (args.finetune or checkpointer.path):
        raise UserError('--freeze {}: would freeze random weights; give pre-trained ones with --finetune'
                        .format(args.freeze))
    loaders = train_loader, _ = setup.build_loaders(args, session, build_transform(args),
                                                    setup.class_names(args, checkpointer))
    classes = setup.count_classes(args, train_loader.dataset, checkpointer)

    # model
    session.seed(args.seed, epoch=-1)
    model = build_classifier(vars(args), classes)
    setup.load_initial_weights(args, session, checkpointer, model, args.finetune, weights.load_pretrained)
    freeze(model, args.freeze)

    # optimizer
    setup.log_training_summary(args, session.world, train_loader.dataset, model)
    groups = layer_decay_groups(model, args.weight_decay, args.layer_decay)
    model, optimizer_step = setup.build_adamw_step(args, session, precision, checkpointer, model, groups,
                                                   betas=(.9, .999))

    # epochs
    criterion, mix = build_loss(args, classes)
    train_epochs(args, session, checkpointer, optimizer_step, model, loaders, criterion, build_augmentation(args, mix))


def build_transform(args: Namespace) -> Callable:
    """Augmentation of the training images in the loader; the rest follows on the device, see build_augmentation."""
    if args.in_chans not in COLOURED:
        logger.info('no colour augmentation: not defined for %d channels', args.in_chans)
    return finetuning_transform(args.input_size, args.in_chans, args.color_jitter, args.aa, args.crop_min)


def build_loss(args: Namespace, classes: int) -> Tuple[Callable, Callable]:
    """(criterion, mix): the loss, and Mixup or CutMix of a batch."""
    if mixing(args):
        return SoftTargetCrossEntropy(), Mixup(
            mixup_alpha=args.mixup, cutmix_alpha=args.cutmix, cutmix_minmax=args.cutmix_minmax, prob=args.mixup_prob,
            switch_prob=args.mixup_switch_prob, mode=args.mixup_mode, label_smoothing=args.smoothing,
            num_classes=classes)
    return (LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else CrossEntropyLoss()), (
        lambda images, labels: (images, labels))


def build_augmentation(args: Namespace, mix: Callable) -> Callable:
    """(uint8 images, labels) -> (normalized images, mixed labels), on the device."""
    normalize = Normalize.of(vars(args))
    erase = RandomErasing(args.reprob, mode=args.remode, max_count=args.recount, num_splits=2 * args.resplit)
    return lambda images, labels: mix(erase(normalize(images)), labels)


def freeze(model: torch.nn.Module, flag: Union[int, str, None]) -> None:
    """--freeze: patch embedding, class token, positions and the first blocks are not trained and drop no paths.

    `flag` is a number of blocks, 'all', or None to freeze nothing; raises UserError if the model has fewer blocks.
    """
    if flag is None:
        return
    depth = len(model.blocks)
    blocks = depth if flag == 'all' else flag
    if blocks > depth:
        raise UserError('--freeze {}: the model has {} blocks; give at most {}, or all'.format(flag, depth, depth))
    frozen = [*model.patch_embed.parameters(), model.cls_token, model.pos_embed, *model.blocks[:blocks].parameters()]
    for parameter in frozen:
        parameter.requires_grad = False
    for module in model.blocks[:blocks].modules():
        if hasattr(module, 'drop_prob'):
            module.drop_prob = 0.
    logger.info('frozen: patch embedding, class token, positions and %d of %d blocks, %.2f M parameters',
                blocks, depth, sum(parameter.numel() for parameter in frozen) / 1e6)


if __name__ == '__main__':
    errors.run(main, ARGS)
