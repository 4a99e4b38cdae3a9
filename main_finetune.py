"""Fine-tune or evaluate a ViT classifier: python main_finetune.py --data_path FOLDER [flags]; --help lists them."""
from util.config.train_flags import mixing, parse_finetune
from util.errors import UserError, run

ARGS = parse_finetune() if __name__ == '__main__' else None      # first: --help and wrong flags need no torch

from torch.nn import CrossEntropyLoss

from engine_finetune import evaluate, train_one_epoch
from util.checkpoints import checkpointer, weights
from util.config.input_flags import COLOURED
from util.config.normalization import adopt_statistics
from util.data.datasets import has_validation, labelled_set
from util.data.loader import evaluation_loader, training_loader
from util.data.transforms import Normalize, evaluation_transform, finetuning_transform
from util.data.unreadable import UnreadableTracker
from util.data.validation_split import resolve_split
from util.log import logger
from util.models.build import build_classifier
from util.models.timm_adapter import LabelSmoothingCrossEntropy, Mixup, RandomErasing, SoftTargetCrossEntropy
from util.reporting import report
from util.reporting.confusion import ConfusionTracker
from util.training.optimizer_step import build_adamw_step, layer_decay_groups
from util.training.session import (
    log_training_setup,
    open_run_logger,
    setup_precision,
    start_session,
    warn_of_empty_classes,
    write_result,
)
from util.training.trainer import Trainer


def build_model(args, classes):
    """The classifier that the flags describe."""
    return build_classifier(vars(args), classes)


def build_loss(args, classes):
    """(criterion, mix): the loss, and what mixes a batch before it."""
    if mixing(args):
        return SoftTargetCrossEntropy(), Mixup(
            mixup_alpha=args.mixup, cutmix_alpha=args.cutmix, cutmix_minmax=args.cutmix_minmax, prob=args.mixup_prob,
            switch_prob=args.mixup_switch_prob, mode=args.mixup_mode, label_smoothing=args.smoothing,
            num_classes=classes)
    return (LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else CrossEntropyLoss()), (
        lambda images, labels: (images, labels))


def build_augmentation(args, mix, device):
    """What makes a batch of bytes and labels, on the device, what model and criterion take."""
    normalize = Normalize.of(vars(args))
    erase = RandomErasing(args.reprob, mode=args.remode, max_count=args.recount, num_splits=2 * args.resplit,
                          device=device)
    return lambda images, labels: mix(erase(normalize(images)), labels)


def count_classes(args, dataset):
    """Number of classes of the head: the data's, or --nb_classes where that is more."""
    found = len(dataset.classes)
    if args.nb_classes is not None and args.nb_classes < found:
        raise UserError('--nb_classes {}: {} has {} classes'.format(args.nb_classes, args.data_path, found))
    if args.nb_classes is not None and args.nb_classes > found:
        logger.warning('--nb_classes %d: the data has only %d classes', args.nb_classes, found)
    return args.nb_classes or found


def freeze(model, flag):
    """Let nothing train of what --freeze names: patch embedding, class token, positions and the first blocks.

    They drop no paths: what no longer learns gains nothing by noise. The other blocks keep the rates that they have.
    Args:
        flag: a number of blocks, 'all', or None for nothing.
    Raises:
        UserError: there are not so many blocks.
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


def build_data(args, world, accelerator, transform=None):
    """(training set, its loader, evaluation loader); `transform` is another than fine-tuning's for the training."""
    if transform is None:
        if args.in_chans not in COLOURED:
            logger.info('no augmentation of colours: there is none for %d channels', args.in_chans)
        transform = finetuning_transform(args.input_size, args.in_chans, args.color_jitter, args.aa, args.crop_min)
    train_set = labelled_set(args.data_path, 'train', transform, None, args.val_fraction, args.val_seed)
    train_loader = training_loader(train_set, args.batch_size, world, args.seed, args.num_workers, args.pin_mem,
                                   accelerator)
    return train_set, train_loader, build_evaluation(args, world, accelerator, train_set.classes)[1]


def build_evaluation(args, world, accelerator, classes=None):
    """(evaluation set, its loader)."""
    dataset = labelled_set(args.data_path, 'val', evaluation_transform(args.input_size, args.in_chans), classes,
                           args.val_fraction, args.val_seed)
    return dataset, evaluation_loader(dataset, args.batch_size, world, args.dist_eval, args.num_workers,
                                      args.pin_mem, accelerator)


def evaluate_checkpoint(args, session, precision, resume, build, prepare):
    """--eval: accuracy of the --resume checkpoint, of what `build` builds, on the validation images."""
    if resume.path is None:
        raise UserError('--resume auto: {} holds no checkpoint'.format(args.output_dir))
    dataset, loader = build_evaluation(args, session.world, session.accelerator, resume.get('classes'))
    warn_of_empty_classes(dataset)
    model = build(args, count_classes(args, dataset))
    adopt_statistics(args, resume.get('args'), resume.path)
    resume.restore_model(model, fit_positions=True, ema_weights=True)
    run_logger = open_run_logger(args, session)
    model = prepare(model.to(session.device), precision)
    precision = getattr(model, 'precision', precision)          # a LinearProbe's own
    loader.unreadable_images = UnreadableTracker.of_run(args.output_dir, args.max_bad_images, dataset, session.world)
    normalize = Normalize.of(vars(args))
    confusion = ConfusionTracker(dataset, normalize)
    result = evaluate(model, loader, precision, session, normalize, confusion)
    confusion.after(0, True, run_logger)
    loader.unreadable_images.sync(session.world, session.device)
    result = write_result(session, run_logger, 'eval', {
        'task': 'Evaluation', 'images_per_sec': result.pop('FPS'), **result, 'checkpoint': resume.path})
    report.of_evaluation(args, session, precision, result, confusion)
    run_logger.close()


def train(args, session, precision, resume):
    """Fine-tune, or train from scratch, with an evaluation after each epoch."""
    if args.freeze is not None and not (args.finetune or resume.path):
        raise UserError('--freeze {}: there are only random weights to freeze; name others with --finetune'
                        .format(args.freeze))
    data = train_set, _, val_loader = build_data(args, session.world, session.accelerator)
    classes = count_classes(args, train_set)

    # model, optimizer, and what earlier runs left
    session.seed(args.seed, epoch=-1)
    model = build_model(args, classes)
    if args.finetune and resume.path is None:
        weights.start_from(args.finetune, model, args, weights.load_pretrained)
    adopt_statistics(args, resume.get('args'), resume.path)
    resume.restore_model(model)
    freeze(model, args.freeze)
    session.place(model)
    lr = log_training_setup(args, session.world, train_set, model, val_loader.dataset)
    groups = layer_decay_groups(model, args.weight_decay, args.layer_decay)
    model, optimizer_step = build_adamw_step(args, session, precision, resume, model, groups, (.9, .999), lr)
    criterion, mix = build_loss(args, classes)
    train_epochs(args, session, resume, optimizer_step, model, data, criterion,
                 build_augmentation(args, mix, session.device))


def train_epochs(args, session, resume, optimizer_step, model, data, criterion, augment):
    """Train the epochs that are left of `data`, what build_data gave, and evaluate `model` after each; see
    engine_finetune for the other arguments."""
    normalize, (train_set, train_loader, val_loader) = Normalize.of(vars(args)), data
    confusion = ConfusionTracker(val_loader.dataset, normalize)
    trainer = Trainer(args, session, optimizer_step, model, train_loader, resume, 'loss', confusion,
                      classes=train_set.classes, best=resume.get('best') or {'acc1': -1., 'epoch': -1})
    if trainer.nothing_left():
        return

    def evaluation():
        return evaluate(model, val_loader, optimizer_step.precision, session, normalize, confusion)
    with trainer:
        val_loader.unreadable_images = trainer.unreadable_images
        for epoch in trainer.epochs():
            stats = train_one_epoch(trainer, criterion, augment)
            result = optimizer_step.ema.evaluate(model, evaluation) if optimizer_step.ema else evaluation()
            trainer.stop_if_asked()                     # a signal may have cut the evaluation short
            close_epoch(trainer, epoch, stats, result)


def close_epoch(trainer, epoch, stats, result):
    """Log an epoch with its evaluation, and remember the best."""
    improved = result['acc1'] > trainer.values['best']['acc1']
    if improved:
        trainer.values['best'] = {'acc1': result['acc1'], 'epoch': epoch}
    best = trainer.values['best']
    logger.info('Max accuracy: %.2f%% (epoch %d)', best['acc1'], best['epoch'])
    tests = {'test_' + name: value for name, value in result.items() if name.endswith(('acc1', 'acc5', 'loss'))}
    trainer.close_epoch(stats, tests, {'acc1': result['acc1'], 'acc5': result['acc5'], 'best_acc1': best['acc1'],
                                       'best_epoch': best['epoch']}, improved)


def main(args, train=train, build=build_model, prepare=lambda model, precision: precision.prepare_inference(model)):
    """Train by `train`, or evaluate what `build` builds and `prepare` makes ready; main_linprobe.py has its own."""
    session = start_session(args)
    precision = setup_precision(args, session)
    resume = checkpointer.find(args.resume, args.output_dir)
    args.val_fraction, args.val_seed = resolve_split(args.val_fraction, args.val_seed, has_validation(args.data_path),
                                                     args.eval, resume.get('args'))
    if args.eval:
        evaluate_checkpoint(args, session, precision, resume, build, prepare)
    else:
        train(args, session, precision, resume)
    session.world.shutdown()


if __name__ == '__main__':
    run(main, ARGS)
