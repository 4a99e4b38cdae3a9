"""Flags of the training scripts."""
import os
from argparse import Namespace
from typing import Optional, Sequence
from urllib.parse import urlparse

from util.config import input_flags, parser as flags
from util.model_sizes import FINETUNE_MODELS, MASK_RATIO, PRETRAIN_MODELS, decoder_fault, visible_patches


def pretrain_parser() -> flags.Parser:
    """Flags of main_pretrain.py."""
    parser = flags.Parser(prog='main_pretrain.py', description='Pre-train a masked autoencoder (arXiv:2111.06377).')
    _add_training(parser, batch_size=64, epochs=400, warmup_epochs=40, min_lr=0., save_every=20)
    _add_model(parser, PRETRAIN_MODELS, default='mae_vit_large_patch16')
    _add_data(parser, crop_min=.2, val_fraction=0.)
    _add_run(parser)
    _add_full_training(parser)
    add = parser.adder(parser.add_argument_group('masked autoencoder'))
    add('--mask_ratio', type=flags.open_fraction, default=MASK_RATIO, help='share of patches to mask, between 0 and 1')
    add('--norm_pix_loss', action='store_true',
        help='normalize the target pixels of each patch by its own mean and variance')
    add('--predict_ratio', type=flags.number(float, 0, 1, excluded=[0]),
        help='share of the masked patches that a step predicts, a new random subset each time (arXiv:2401.14391); '
             'default: that of the --resume checkpoint, else 1')
    for name, what in (('depth', 'blocks'), ('embed_dim', 'width'), ('num_heads', 'attention heads')):
        add('--decoder_' + name, type=flags.number(int, 1, input_flags.MAX_SIDE),
            help=what + " of the decoder; default: that of the --resume checkpoint, else the model's own")
    add('--init_from', type=flags.weights, default='', help='initial weights of the encoder, and of the decoder if it '
        'has one: a checkpoint as for --finetune of main_finetune.py; default: random weights')
    add = parser.adder(parser.add_argument_group('representation evaluation'))
    add('--knn_every', type=flags.non_negative_int, default=0, help='epochs between k-NN evaluations, also after the '
        'last epoch; needs class folders (see python -m util.tools.knn); 0: none')
    add('--knn_images', type=flags.positive_int, default=20000,
        help='maximum number of training images for k-NN, balanced over the classes')
    return parser


def finetune_parser() -> flags.Parser:
    """Flags of main_finetune.py."""
    parser = flags.Parser(prog='main_finetune.py', description='Fine-tune or evaluate a Vision Transformer classifier.')
    _add_training(parser, batch_size=64, epochs=50, warmup_epochs=5, min_lr=1e-6, save_every=5)
    _add_model(parser, FINETUNE_MODELS, default='vit_large_patch16')
    _add_data(parser, crop_min=.08)
    _add_run(parser)
    _add_full_training(parser)
    _add_classification(parser, global_pool=True)
    _add_finetuning(parser)
    return parser


def linprobe_parser() -> flags.Parser:
    """Flags of main_linprobe.py; the defaults are the protocol of arXiv:2111.06377, appendix A.1."""
    parser = flags.Parser(prog='main_linprobe.py',
                          description='Train or evaluate a linear classifier on a frozen encoder.')
    _add_training(parser, batch_size=512, epochs=90, warmup_epochs=10, min_lr=0., save_every=5, blr=.1,
                  weight_decay=0., optimizer='LARS')
    _add_model(parser, FINETUNE_MODELS, default='vit_large_patch16')
    _add_data(parser, crop_min=.08)
    _add_run(parser)
    _add_precision(parser)
    _add_classification(parser, global_pool=False)
    return parser


def _add_training(parser, batch_size, epochs, warmup_epochs, min_lr, save_every, blr=1e-3, weight_decay=.05,
                  optimizer='AdamW'):
    add = parser.adder(parser.add_argument_group('training'))
    add('--batch_size', type=flags.positive_int, default=batch_size,
        help='images per device and iteration; effective batch size: batch_size x accum_iter x number of devices')
    add('--epochs', type=flags.positive_int, default=epochs, help='passes over the data')
    add('--accum_iter', type=flags.positive_int, default=1,
        help='iterations per optimizer step (gradient accumulation)')
    add('--weight_decay', type=flags.non_negative, default=weight_decay, help='weight decay of ' + optimizer)
    add('--lr', type=flags.positive, help='peak learning rate; default: blr x effective batch size / 256')
    add('--blr', type=flags.positive, default=blr, help='base learning rate, per 256 images')
    add('--base_batch_size', type=flags.positive_int,
        help='effective batch size that --lr was tuned for; warns if that of this run differs')
    add('--auto_scale_lr', action='store_true',
        help='scale --lr linearly from base_batch_size to the effective batch size of this run')
    add('--min_lr', type=flags.non_negative, default=min_lr, help='learning rate at the end of the cosine schedule')
    add('--warmup_epochs', type=flags.non_negative, default=warmup_epochs, help='epochs of linear warm-up from 0')
    add('--clip_grad', type=flags.positive, help='maximum 2-norm of the gradient; default: no clipping')
    add('--save_every', type=flags.positive_int, default=save_every,
        help='epochs between checkpoints; the last epoch is always saved')


def _add_model(parser, models, default):
    add = parser.adder(parser.add_argument_group('model'))
    add('--model', default=default, choices=models, metavar='MODEL', help='one of ' + ', '.join(models))
    input_flags.add_flags(add)


def _add_data(parser, crop_min, val_fraction=None):
    add = parser.adder(parser.add_argument_group('data'))
    add('--data_path', required=True, help='folder with train/<class>/ and val/<class>/, or <class>/ alone, the same '
        'packed into tar files (python -m util.tools.pack_shards), CIFAR-10 or CIFAR-100 batches, train.csv and '
        'val.csv, or one CSV file, of path,label; pre-training also takes any folder of images')
    as_trained = '' if val_fraction is not None else "; default: the checkpoint's, else {}"
    add('--val_fraction', type=flags.fraction, default=val_fraction,
        help='validation split without a val/ folder: share of each class, the same images in training and evaluation; '
        '0: none, 1: all (--eval only)' + as_trained.format(.1))
    add('--val_seed', type=flags.non_negative_int, default=None if val_fraction is None else 0,
        help='seed of the validation split' + as_trained.format(0))
    add('--crop_min', type=flags.number(float, 0, 1, excluded=[0]), default=crop_min,
        help='minimum area of a random crop, as a share of the image')
    add('--num_workers', type=flags.non_negative_int,
        help='loader processes per device; 0: load in the training process; default: available cores, at most 10')
    add('--pin_mem', action='store_true', default=True, help='pinned host memory, for faster copies to a device')
    add('--no_pin_mem', action='store_false', dest='pin_mem', help='pageable host memory')


def _add_run(parser):
    add = parser.adder(parser.add_argument_group('run'))
    add('--output_dir', default='./output_dir', help='folder for checkpoints, log.txt, summary.json and report.html')
    add('--log_dir', help='folder for TensorBoard files; default: output_dir')
    add('--seed', type=flags.non_negative_int, default=0, help='seed of weights, data order, augmentation and masks')
    add('--deterministic', action='store_true',
        help='deterministic operators and collectives, slower: repeated and resumed runs are bit-equal; PyTorch 1.8')
    add('--resume', type=flags.weights, default='', help='checkpoint to resume (or to evaluate): a file, a Hugging '
        "Face folder, a URL with a hash in its name (.../name-HASH.pth), or 'auto': the newest in output_dir")
    add('--start_epoch', type=flags.non_negative_int,
        help='first epoch, counted from 0; default: the one after the checkpoint')
    add('--report_every', type=flags.non_negative_int, default=0,
        help='epochs between updates of output_dir/report.html; 0: only at the end')
    add('--config', metavar='FILE', help='YAML file of lines "flag: value", for any flags; the command line takes '
        'precedence. Each run writes its flags to output_dir/config.yaml in this form')
    add('--prof', action='store_true',
        help='write a profiler trace of 10 iterations (3 before PyTorch 1.9) to output_dir/prof')

    add = parser.adder(parser.add_argument_group('reliability'))
    add('--save_every_minutes', type=flags.non_negative, default=30.,
        help='minutes between checkpoints, also within an epoch; 0: only --save_every')
    add('--keep_last', type=flags.non_negative_int, default=3,
        help='number of newest checkpoints to keep, plus the best; 0: all')
    add('--max_bad_steps', type=flags.positive_int, default=10,
        help='abort after this many consecutive optimizer steps with a non-finite loss or gradient')
    add('--max_bad_images', type=flags.non_negative_int,
        help='maximum number of unreadable image files; default: 1 in 1000, at least 10')
    add('--hang_timeout', type=flags.number(float, 0, 10 ** 8, excluded=[0]), default=600.,
        help='seconds without progress until a process prints all stacks and exits with status 70')

    add = parser.adder(parser.add_argument_group('devices and processes'))
    flags.add_device(add)
    add('--world_size', type=flags.positive_int, help='number of processes, if no launcher sets it in the environment')
    add('--local_rank', '--local-rank', type=flags.number(int, -1), default=-1,
        help='index of this process on its node, if no launcher sets it in the environment')
    add('--dist_on_itp', action='store_true', help='read rank and world size from OpenMPI')
    add('--dist_url', type=_dist_url, default='env://', help='rendezvous: env:// or tcp://host:port')
    add('--addr', help='address of the master, if MASTER_ADDR is not set')


def _add_precision(parser):
    add = parser.adder(parser.add_argument_group('mixed precision'))
    add('--amp', action='store_true',
        help='mixed precision on devices that it speeds up (CPUs: those with bf16 instructions)')
    add('--amp_backend', default='auto', choices=('auto', 'apex', 'native', 'none'),
        help='auto: apex O2 on an NPU if installed, else native; apex and native imply --amp')
    add('--amp_dtype', default='auto', choices=('auto', 'fp16', 'bf16'),
        help='type of native mixed precision; auto: bf16 if the device supports it; fp16 and bf16 imply --amp')
    return add


def _add_full_training(parser):
    """Flags of pre-training and fine-tuning, not linear probing."""
    _add_precision(parser)('--loss_scale', type=flags.word_or('dynamic', 'dynamic', flags.positive),
                           default='dynamic', help="fp16 loss scale: 'dynamic' or a number")
    add = parser.adder(parser.add_argument_group('speed and memory'))
    add('--compile', action='store_true',
        help='compile the transformer blocks by torch.compile; slow first steps; runs uncompiled if it fails')
    add('--grad_checkpoint', action='store_true',
        help='activation checkpointing of the blocks: less memory, about a third more time')
    add = parser.adder(parser.add_argument_group('exponential moving average (EMA)'))
    add('--ema', type=flags.open_fraction, metavar='DECAY',
        help='EMA of the weights, e.g. 0.9999 (with warm-up), used for evaluation and inference; default: none')


def _add_classification(parser, global_pool):
    add = parser.adder(parser.add_argument_group('classification'))
    add('--finetune', type=flags.weights, default='', help='pre-trained checkpoint: a file, a Hugging Face folder, or '
        'a URL with a hash in its name (.../name-HASH.pth); default: random weights')
    add('--eval', action='store_true', help='evaluate the --resume checkpoint and exit')
    add('--dist_eval', action='store_true', help='distribute evaluation over all processes; default: rank 0 only')
    add('--nb_classes', type=flags.positive_int, help='number of classes; default: that of the data')
    add('--class_names', metavar='FILE',
        help='text file of class names, one a line, in label order, for images of some or all of these classes; '
             'default: the names in the --resume checkpoint, else those of the data, sorted')
    add('--global_pool', action='store_true', default=global_pool,
        help='classify the mean of the patch tokens' + ', the default' * global_pool)
    add('--cls_token', action='store_false', dest='global_pool',
        help='classify the class token' + ', the default' * (not global_pool))


def _add_finetuning(parser):
    add = parser.adder(parser.add_argument_group('fine-tuning'))
    add('--freeze', type=flags.word_or('all', 'all', flags.non_negative_int), metavar='N',
        help='freeze the patch embedding, class token, positions and the first N blocks; all: everything except the '
             'head and its norm; default: train all weights')
    add('--drop_path', type=flags.fraction_below_one, default=.1, help='stochastic depth of the last block')
    add('--layer_decay', type=flags.number(float, 0, 1, excluded=[0]), default=.75,
        help='learning rate of a layer, relative to the layer above')

    add = parser.adder(parser.add_argument_group('augmentation and regularisation'))
    add('--color_jitter', type=flags.word_or('none', None, flags.non_negative),
        help='strength of color jitter; used if --aa is none')
    add('--aa', help="AutoAugment policy in timm's notation, or none; default: " + input_flags.RECIPE_AA +
        ', or none if --in_chans is neither 1 nor 3')
    add('--smoothing', type=flags.fraction_below_one, default=.1, help='label smoothing')
    add('--reprob', type=flags.fraction, default=.25, help='probability of random erasing')
    add('--remode', default='pixel', choices=('const', 'rand', 'pixel'), help='fill of random erasing')
    add('--recount', type=flags.positive_int, default=1, help='maximum number of rectangles per random erasing')
    add('--resplit', action='store_true', help='no random erasing in the first half of each batch')
    add('--mixup', type=flags.non_negative, default=0., help='mixup alpha; 0: off')
    add('--cutmix', type=flags.non_negative, default=0., help='cutmix alpha; 0: off')
    add('--cutmix_minmax', type=flags.open_fraction, nargs=2, metavar=('MIN', 'MAX'),
        help='range of the cutmix side, as shares of the image, instead of alpha')
    add('--mixup_prob', type=flags.fraction, default=1., help='probability of mixup or cutmix per batch')
    add('--mixup_switch_prob', type=flags.fraction, default=.5, help='probability of cutmix over mixup if both are on')
    add('--mixup_mode', default='batch', choices=('batch', 'pair', 'elem'), help='unit that shares a mixing factor')


def parse_pretrain(argv: Optional[Sequence[str]] = None) -> Namespace:
    """Parse and check the flags of pre-training; an error ends the process with one line."""
    parser, args = _parse(pretrain_parser(), argv)
    rows, columns = input_flags.grid_of(vars(args))
    patches = rows * columns
    visible = visible_patches(patches, args.mask_ratio)
    if not 0 < visible < patches:
        parser.error('argument --mask_ratio: {} hides {} of {} patches; at least one must be hidden and one visible'
                     .format(args.mask_ratio, patches - visible, patches))
    fault = decoder_fault(vars(args))
    if fault:
        parser.error('argument ' + fault)
    return args


def parse_finetune(argv: Optional[Sequence[str]] = None) -> Namespace:
    """Parse and check the flags of fine-tuning; an error ends the process with one line."""
    parser, args = _parse(finetune_parser(), argv)
    if mixing(args) and args.batch_size % 2 and args.mixup_mode != 'elem':
        parser.error('argument --batch_size: mixup and cutmix need an even number, not {}'.format(args.batch_size))
    low, high = args.cutmix_minmax or (0, 1)
    if any(int(side * low) >= int(side * high) for side in input_flags.sides(args.input_size)):
        parser.error('argument --cutmix_minmax: MIN {} must be below MAX {}, by a pixel at least'.format(low, high))
    input_flags.set_augmentation(parser, args)
    return args


def parse_linprobe(argv: Optional[Sequence[str]] = None) -> Namespace:
    """Parse and check the flags of linear probing; an error ends the process with one line."""
    parser, args = _parse(linprobe_parser(), argv)
    if args.batch_size == 1 and not args.eval:
        parser.error('argument --batch_size: the batch normalisation of the head needs at least 2 images')
    return args


def mixing(args: Namespace) -> bool:
    """Whether mixup or cutmix is on."""
    return args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None


def _parse(parser, argv):
    """(parser, args) after the checks that all scripts share."""
    args = parser.parse_args(argv)
    input_flags.check_flags(parser, args)
    if not (os.path.isdir(args.data_path) or is_csv(args.data_path)):
        parser.error('argument --data_path: {} is not a folder or CSV file'.format(args.data_path))
    if getattr(args, 'eval', False):
        if not args.resume:
            parser.error('argument --eval: give the checkpoint to evaluate by --resume')
    elif args.val_fraction == 1:
        parser.error('argument --val_fraction: 1 leaves no training images')
    for flag in ('auto_scale_lr', 'base_batch_size'):
        if getattr(args, flag) and args.lr is None:
            parser.error('argument --{}: requires --lr; --blr is scaled to the batch size anyway'.format(flag))
    if args.auto_scale_lr and args.base_batch_size is None:
        parser.error('argument --auto_scale_lr: requires --base_batch_size, the effective batch size of --lr')
    if not args.output_dir:
        parser.error('argument --output_dir: names no folder')
    if args.start_epoch is not None and args.start_epoch >= args.epochs:
        parser.error('argument --start_epoch: {} is not below --epochs {}'.format(args.start_epoch, args.epochs))
    return parser, args


def _dist_url(text):
    url = urlparse(text)
    # `port` raises ValueError too, as urlparse does for an IPv6 address without brackets.
    if text != 'env://' and not (url.scheme == 'tcp' and url.hostname and url.port and not url.path.strip('/')):
        raise ValueError
    return text


_dist_url.__name__ = 'env:// or tcp://host:port'        # in argparse's message


def is_csv(path: str) -> bool:
    """Whether `path` is a file named *.csv."""
    return path.lower().endswith('.csv') and os.path.isfile(path)
