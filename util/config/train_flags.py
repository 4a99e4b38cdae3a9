"""The flags of the entry scripts. Nothing here imports torch, so --help and a wrong flag answer at once."""
import os

from util.config import input_flags, input_size
from util.config.parser import (
    Parser,
    add_device,
    fraction,
    fraction_below_one,
    non_negative,
    non_negative_int,
    number,
    open_fraction,
    positive,
    positive_int,
)
from util.config.weights_location import fault_of_weights
from util.model_sizes import SIZES

FINETUNE_MODELS = tuple('vit_{}_patch{}'.format(name, size.patch) for name, size in SIZES.items())
PRETRAIN_MODELS = (*('mae_' + name for name in FINETUNE_MODELS),
                   *('mae_{}_dec512d8b'.format(name) for name in FINETUNE_MODELS[3:]))       # the published names


def _or(word, value, number_of):
    """An argparse type: `word`, which stands for `value`, or a number."""
    return lambda text: value if text.lower() == word else number_of(text)


def pretrain_parser():
    """Flags of main_pretrain.py."""
    parser = Parser(prog='main_pretrain.py', description='Pre-train a masked autoencoder (arXiv:2111.06377).')
    _add_training(parser, batch_size=64, epochs=400, warmup_epochs=40, min_lr=0., save_every=20)
    _add_model(parser, PRETRAIN_MODELS, default='mae_vit_large_patch16')
    _add_data(parser, crop_min=.2, val_fraction=0.)
    _add_run(parser)
    _add_full_training(parser)
    _add_autoencoder(parser)
    return parser


def finetune_parser():
    """Flags of main_finetune.py."""
    parser = Parser(prog='main_finetune.py', description='Fine-tune or evaluate a Vision Transformer classifier.')
    _add_training(parser, batch_size=64, epochs=50, warmup_epochs=5, min_lr=1e-6, save_every=5)
    _add_model(parser, FINETUNE_MODELS, default='vit_large_patch16')
    _add_data(parser, crop_min=.08)
    _add_run(parser)
    _add_full_training(parser)
    _add_classification(parser, global_pool=True)
    _add_finetuning(parser)
    _add_augmentation(parser)
    return parser


def linprobe_parser():
    """Flags of main_linprobe.py; the defaults are the protocol of arXiv:2111.06377, appendix A.1."""
    parser = Parser(prog='main_linprobe.py', description='Train or evaluate a linear classifier on a frozen encoder.')
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
    add('--batch_size', type=positive_int, default=batch_size,
        help='images per device and iteration; the effective batch is this x accum_iter x number of devices')
    add('--epochs', type=positive_int, default=epochs, help='passes over the data in the whole schedule')
    add('--accum_iter', type=positive_int, default=1, help='iterations whose gradients make one optimizer step')
    add('--weight_decay', type=non_negative, default=weight_decay, help='weight decay of ' + optimizer)
    add('--lr', type=positive, help='peak learning rate; default: blr x effective batch / 256')
    add('--blr', type=positive, default=blr, help='base learning rate, for 256 images')
    add('--base_batch_size', type=positive_int,
        help='effective batch, in images, that --lr is for; a line says where that of this run is another one')
    add('--auto_scale_lr', action='store_true',
        help='scale --lr linearly from base_batch_size to the effective batch of this run')
    add('--min_lr', type=non_negative, default=min_lr, help='learning rate at which the cosine ends')
    add('--warmup_epochs', type=non_negative, default=warmup_epochs, help='epochs of linear warm-up from 0')
    add('--clip_grad', type=positive, help='clip the gradient to this 2-norm; default: no clipping')
    add('--save_every', type=positive_int, default=save_every,
        help='epochs between checkpoints; the last is always saved')


def _add_model(parser, models, default):
    add = parser.adder(parser.add_argument_group('model'))
    add('--model', default=default, choices=models, metavar='MODEL', help='one of ' + ', '.join(models))
    input_flags.add(add)


def _add_data(parser, crop_min, val_fraction=None):
    add = parser.adder(parser.add_argument_group('data'))
    add('--data_path', required=True,
        help='folder with train/<class>/ and val/<class>/, or <class>/ alone, the same packed into tar files (python '
             '-m util.tools.pack_shards), CIFAR-10 or CIFAR-100 batches, train.csv and val.csv, or one CSV file, '
             'of path,label; pre-training also takes any folder of images')
    as_trained = '' if val_fraction is not None else "; default: the checkpoint's, else {}"
    add('--val_fraction', type=fraction, default=val_fraction,
        help='where the data have no val/, share of each class that is held out for it, the same images in training '
        'and in evaluation; 0: none, 1: all (--eval alone)' + as_trained.format(.1))
    add('--val_seed', type=non_negative_int, default=None if val_fraction is None else 0,
        help='seed of that choice' + as_trained.format(0))
    add('--crop_min', type=number(float, 0, 1, excluded=[0]), default=crop_min,
        help='share of an image that a random crop takes at least, by area')
    add('--num_workers', type=non_negative_int,
        help='loader processes per device, 0: load in the training process; default: the cores there are, at most 10')
    add('--pin_mem', action='store_true', default=True, help='page-locked host memory, for faster copies to a device')
    add('--no_pin_mem', action='store_false', dest='pin_mem', help='pageable host memory')


def _add_run(parser):
    add = parser.adder(parser.add_argument_group('run'))
    add('--output_dir', default='./output_dir', help='folder for checkpoints, log.txt, summary.json and report.html')
    add('--log_dir', help='folder for TensorBoard files; default: output_dir')
    add('--seed', type=non_negative_int, default=0, help='seed of weights, order, augmentation and masks')
    add('--resume', default='',
        help='checkpoint to continue from (or to evaluate): a file, a folder of Hugging Face, a URL with a hash in its '
             "name (.../name-HASH.pth), or 'auto': the newest in output_dir")
    add('--start_epoch', type=non_negative_int,
        help='first epoch to run, counted from 0; default: the one after the checkpoint')
    add('--report_every', type=non_negative_int, default=0,
        help='epochs between rewritings of output_dir/report.html on the way; 0: only at the end')
    add('--config', metavar='FILE',
        help='YAML file of lines "flag: value", for any flags; the command line wins. Each run writes its flags to '
             'output_dir/config.yaml in this form')
    add('--prof', action='store_true',
        help='write a profiler trace of 10 iterations (3 before PyTorch 1.9) to output_dir/prof')

    add = parser.adder(parser.add_argument_group('reliability'))
    add('--save_every_minutes', type=non_negative, default=30.,
        help='minutes between checkpoints, also within an epoch; 0: only by --save_every')
    add('--keep_last', type=non_negative_int, default=3,
        help='newest checkpoints that are kept, beside the best; 0: all of them')
    add('--max_bad_steps', type=positive_int, default=10,
        help='optimizer steps in a row with a loss or gradient that is not finite, until the run stops')
    add('--max_bad_images', type=non_negative_int,
        help='image files that may be unreadable until the run stops; default: 1 in 1000, at least 10')
    add('--hang_timeout', type=number(float, 0, 10 ** 8, excluded=[0]), default=600.,
        help='seconds without progress, until a process ends with all its stacks and status 70')

    add = parser.adder(parser.add_argument_group('devices and processes'))
    add_device(add)
    add('--world_size', type=positive_int, help='number of processes, where no launcher says it in the environment')
    add('--local_rank', '--local-rank', type=number(int, -1), default=-1,
        help='index of this process on its node, where no launcher says it in the environment')
    add('--dist_on_itp', action='store_true', help='read rank and world size from OpenMPI')
    add('--dist_url', default='env://', help='rendezvous: env:// or tcp://host:port')
    add('--addr', help='address of the master, where MASTER_ADDR is not set')


def _add_precision(parser):
    add = parser.adder(parser.add_argument_group('mixed precision'))
    add('--amp', action='store_true',
        help='mixed precision where the device gains by it (of CPUs, those with bf16 instructions)')
    add('--amp_backend', default='auto', choices=('auto', 'apex', 'native', 'none'),
        help='auto: apex O2 on an NPU that has it, else native; apex and native also switch --amp on')
    add('--amp_dtype', default='auto', choices=('auto', 'fp16', 'bf16'),
        help='type of native mixed precision; auto: bf16 where the device has it; fp16 and bf16 also switch --amp on')
    return add


def _add_full_training(parser):
    """Flags of a training of all weights."""
    _add_precision(parser)('--loss_scale', type=_or('dynamic', 'dynamic', positive), default='dynamic',
                           help="fp16 loss scale: 'dynamic' or a number")
    add = parser.adder(parser.add_argument_group('speed and memory'))
    add('--compile', action='store_true',
        help='compile the transformer blocks by torch.compile, which the first steps wait for; where it does not work, '
        'go on without')
    add('--grad_checkpoint', action='store_true',
        help="recompute the blocks' activations in the backward pass: less memory, about a third more time")
    add = parser.adder(parser.add_argument_group('average of the weights'))
    add('--ema', type=open_fraction, metavar='DECAY',
        help='keep a moving average of the weights, of which a step replaces the share 1 - DECAY, e.g. 0.9999 (at '
        'first more); checkpoints are judged and used by it; default: none')


def _add_autoencoder(parser):
    add = parser.adder(parser.add_argument_group('masked autoencoder'))
    add('--mask_ratio', type=open_fraction, default=.75, help='share of patches to hide, between 0 and 1')
    add('--norm_pix_loss', action='store_true',
        help="predict each patch's pixels normalised by its own mean and variance")
    add('--init_from', default='',
        help='checkpoint whose encoder, and decoder where there is one, a new pre-training starts from, a file, folder '
        'or URL as for --finetune of main_finetune.py; default: random weights')
    add = parser.adder(parser.add_argument_group('judging the representation'))
    add('--knn_every', type=non_negative_int, default=0,
        help='epochs between two k-NN classifications of the validation images, which need class folders (see python '
             '-m util.tools.knn); the last epoch gets one too; 0: none')
    add('--knn_images', type=positive_int, default=20000,
        help='training images that these compare with, at most, spread evenly over the classes')


def _add_classification(parser, global_pool):
    group = parser.add_argument_group('classification')
    add, pool = parser.adder(group), parser.adder(group.add_mutually_exclusive_group())
    add('--finetune', default='',
        help='pre-trained checkpoint to start from: a file, a folder of Hugging Face, or a URL with a hash in its name '
             '(.../name-HASH.pth); default: random weights')
    add('--eval', action='store_true', help='evaluate the --resume checkpoint and end')
    add('--dist_eval', action='store_true', help='share evaluation among all processes; else rank 0 does it')
    add('--nb_classes', type=positive_int, help='number of classes; default: as many as the data has')
    pool('--global_pool', action='store_true', default=global_pool,
                      help='classify the mean of the patch tokens' + ', the default' * global_pool)
    pool('--cls_token', action='store_false', dest='global_pool',
                      help='classify the class token' + ', the default' * (not global_pool))


def _add_finetuning(parser):
    add = parser.adder(parser.add_argument_group('fine-tuning'))
    add('--freeze', type=_or('all', 'all', non_negative_int), metavar='N',
        help='train without the patch embedding, class token, positions and the first N blocks; all: nothing but the '
             'head and its norm trains; default: all is trained')
    add('--drop_path', type=fraction_below_one, default=.1, help='stochastic depth of the last block')
    add('--layer_decay', type=number(float, 0, 1, excluded=[0]), default=.75,
        help='factor of the learning rate from one layer to the one below it')


def _add_augmentation(parser):
    add = parser.adder(parser.add_argument_group('augmentation and regularisation'))
    add('--color_jitter', type=_or('none', None, non_negative),
        help='strength of colour jitter; used where --aa is none')
    add('--aa', help="AutoAugment policy in timm's notation, or none; default: " + input_flags.RECIPE_AA +
        ', and none where --in_chans is neither 1 nor 3')
    add('--smoothing', type=fraction_below_one, default=.1, help='label smoothing')
    add('--reprob', type=fraction, default=.25, help='probability of random erasing')
    add('--remode', default='pixel', choices=('const', 'rand', 'pixel'), help='what random erasing fills with')
    add('--recount', type=positive_int, default=1, help='rectangles per random erasing')
    add('--resplit', action='store_true', help='leave the first half of each batch free of random erasing')
    add('--mixup', type=non_negative, default=0., help='mixup alpha; 0: off')
    add('--cutmix', type=non_negative, default=0., help='cutmix alpha; 0: off')
    add('--cutmix_minmax', type=open_fraction, nargs=2, metavar=('MIN', 'MAX'),
        help='cutmix side as shares of the image, instead of alpha')
    add('--mixup_prob', type=fraction, default=1., help='probability of mixing a batch')
    add('--mixup_switch_prob', type=fraction, default=.5, help='probability of cutmix where both are on')
    add('--mixup_mode', default='batch', choices=('batch', 'pair', 'elem'), help='what shares one mixing factor')


def parse_pretrain(argv=None):
    """Parse and check the flags of pre-training; a bad one ends the process with one line."""
    parser = pretrain_parser()
    args = parser.parse_args(argv)
    _check_shared(parser, args)
    rows, columns = (side // _patch_size(args) for side in input_size.sides(args.input_size))
    patches = rows * columns
    kept = int(patches * (1 - args.mask_ratio))
    if not 0 < kept < patches:
        parser.error('argument --mask_ratio: {} hides {} of {} patches; at least one must be hidden and one kept'
                     .format(args.mask_ratio, patches - kept, patches))
    return args


def parse_finetune(argv=None):
    """Parse and check the flags of fine-tuning; a bad one ends the process with one line."""
    parser = finetune_parser()
    args = parser.parse_args(argv)
    _check_shared(parser, args)
    if mixing(args) and args.batch_size % 2 and args.mixup_mode != 'elem':
        parser.error('argument --batch_size: mixup and cutmix pair images, so {} must be even'.format(args.batch_size))
    input_flags.settle_colours(parser, args)
    return args


def parse_linprobe(argv=None):
    """Parse and check the flags of linear probing; a bad one ends the process with one line."""
    parser = linprobe_parser()
    args = parser.parse_args(argv)
    _check_shared(parser, args)
    if args.batch_size == 1 and not args.eval:
        parser.error('argument --batch_size: the batch normalisation before the head needs 2 images at least')
    return args


def mixing(args):
    """True where mixup or cutmix is on."""
    return args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None


def _check_shared(parser, args):
    input_flags.check(parser, args, _patch_size(args))
    if not (os.path.isdir(args.data_path) or is_csv(args.data_path)):
        parser.error('argument --data_path: {} is not a folder or CSV file'.format(args.data_path))
    if getattr(args, 'eval', False):
        if not args.resume:
            parser.error('argument --eval: name the checkpoint to evaluate with --resume')
    elif args.val_fraction == 1:
        parser.error('argument --val_fraction: 1 leaves nothing to train on')
    for flag in ('resume', 'finetune', 'init_from'):
        path = getattr(args, flag, '')
        fault = None if path in ('', 'auto') else fault_of_weights(path)
        if fault:
            parser.error('argument --{}: {} {}'.format(flag, path, fault))
    for flag in ('auto_scale_lr', 'base_batch_size'):
        if getattr(args, flag) and args.lr is None:
            parser.error('argument --{}: is for --lr; --blr is scaled to the batch anyway'.format(flag))
    if args.auto_scale_lr and args.base_batch_size is None:
        parser.error('argument --auto_scale_lr: give the batch that --lr is for by --base_batch_size')
    if args.start_epoch is not None and args.start_epoch >= args.epochs:
        parser.error('argument --start_epoch: {} leaves nothing of --epochs {}'.format(args.start_epoch, args.epochs))
    if not (args.dist_url == 'env://' or args.dist_url.startswith('tcp://')):
        parser.error('argument --dist_url: {!r} is neither env:// nor tcp://host:port'.format(args.dist_url))


def is_csv(path):
    """True where `path` is a file with the ending .csv."""
    return path.lower().endswith('.csv') and os.path.isfile(path)


def _patch_size(args):
    return args.patch_size or input_size.patch_in_name(args.model)
