"""Each flag is validated and takes effect; test_baseline.py checks names and defaults."""
import shutil

import pytest
import torch
from conftest import FINETUNE, PRETRAIN, call, finetune, succeeded
from synthetic_dataset import CLASSES

import main_finetune
from util.config.train_flags import parse_finetune, parse_linprobe, parse_pretrain
from util.data.transforms import finetuning_transform
from util.devices.accelerator import Cpu
from util.distributed.world import World
from util.models.build import build_autoencoder, build_classifier
from util.training.optimizer_step import effective_batch_size, peak_lr
from util.training.session import Session
from util.training.setup import build_evaluation_loader, build_loaders, count_classes, log_training_summary

BAD = {
    parse_pretrain: [
        '--batch_size 0', '--epochs -1', '--accum_iter 1.5', '--blr 0', '--min_lr -1e-3', '--weight_decay -0.1',
        '--warmup_epochs -5', '--seed -1', '--input_size 225', '--input_size 32 48 64', '--num_workers -1',
        '--device tpu', '--amp_dtype fp8', '--clip_grad 0', '--model resnet50', '--lr nan', '--blr inf',
        '--data_path /no/such/folder', '--resume /no/such/file', '--in_chans 2', '--mean .5', '--std .5',
        '--std 0 --mean .5', '--mean .5 .5 --std 1', '--mask_ratio 0', '--dist_url http://x', '--world_size 0',
        '--save_every 0', '--start_epoch 9999', '--crop_min 0', '--report_every -1', '--val_fraction 1.1',
        '--val_fraction 1', '--val_seed -1', '--base_batch_size 0', '--base_batch_size 64', '--mask_ratio 1',
        '--predict_ratio 0', '--predict_ratio 1.1', '--decoder_num_heads 5', '--decoder_embed_dim 6',
        '--mask_ratio 0.999', '--init_from /no/file', '--ema 1', '--loss_scale 0', '--knn_every -1', '--knn_images 0',
        '--auto_scale_lr --lr 1e-3', '--auto_scale_lr --blr 1e-3 --base_batch_size 64', '--hang_timeout 1e12',
        '--epochs ' + '9' * 400, '--lr ' + '9' * 400, '--seed 99999999999', '--input_size 1000000',
        '--input_size 4096 --patch_size 1', '--output_dir=', '--device cuda:0', '--device npu:1', '--device cpu:0',
        *('--dist_url tcp://' + address for address in (':::9', 'host', ':1', 'host:x', '[::1', 'host:65536'))],
    parse_finetune: [
        '--drop_path 1', '--smoothing 1.5', '--reprob 2', '--mixup -1', '--nb_classes 0', '--layer_decay 0',
        '--cutmix_minmax 0', '--mixup_mode all', '--finetune /no/file', '--freeze -1', '--freeze some', '--recount 0',
        '--remode black', '--mixup_prob 1.1', '--color_jitter -1', '--eval',
        '--cutmix_minmax .9 .1', '--cutmix_minmax .5 .5', '--cutmix_minmax .5 .501',
        '--batch_size 7 --mixup .8', '--aa rand-m9 --in_chans 5 --mean 0 --std 1',
        '--color_jitter .4 --in_chans 5 --mean 0 --std 1'],
    parse_linprobe: ['--nb_classes 0', '--batch_size 1', '--eval']}


@pytest.mark.parametrize('parse, flags', [(parse, flags) for parse in BAD for flags in BAD[parse]])
def test_a_bad_value_is_one_line_that_names_the_first_flag(tmp_path, capsys, parse, flags):
    with pytest.raises(SystemExit) as ended:
        parse(['--data_path', str(tmp_path), *flags.split()])
    error, flag = capsys.readouterr().err, flags.split()[0].split('=')[0]
    assert ended.value.code == 2 and error.count('\n') == 1 and flag in error, error


# Effects of flags

def parsed(parse, base, folder, *flags):
    return parse(['--data_path', str(folder), *base, *[str(flag) for flag in flags]])


def autoencoder(folder, *flags):
    return build_autoencoder(vars(parsed(parse_pretrain, PRETRAIN, folder, *flags)))


def classifier(folder, *flags):
    return build_classifier(vars(parsed(parse_finetune, FINETUNE, folder, *flags)), 8)


def head(folder, *flags):
    args = parsed(parse_finetune, FINETUNE, folder, *flags)
    loader = build_evaluation_loader(args, Session(Cpu(), World()))
    return build_classifier(vars(args), count_classes(args, loader.dataset)).head


def data(folder, *flags):
    accelerator = Cpu()
    accelerator.is_accelerator = True
    args = parsed(parse_finetune, FINETUNE, folder, *flags)
    return build_loaders(args, Session(accelerator, World()), main_finetune.build_transform(args))


def mixing(folder, *flags):
    return main_finetune.build_loss(parsed(parse_finetune, FINETUNE, folder, *flags), 8)[1]


@pytest.mark.parametrize('build, flags, look, expected', [
    *[(build, ['--patch_size', 4], lambda m: m.grid_size, (8, 8)) for build in (autoencoder, classifier)],
    *[(build, ['--in_chans', 1], lambda m: m.patch_embed.proj.weight.shape[1], 1)
      for build in (autoencoder, classifier)],
    (autoencoder, ['--model', 'mae_vit_tiny_patch16'], lambda m: m.cls_token.shape[-1], 192),
    (autoencoder, ['--norm_pix_loss'], lambda m: m.norm_pix_loss, True),
    (autoencoder, ['--predict_ratio', .5], lambda m: m.predict_ratio, .5),
    (autoencoder, ['--decoder_depth', 3], lambda m: len(m.decoder_blocks), 3),
    (autoencoder, ['--decoder_embed_dim', 32], lambda m: m.decoder_embed.out_features, 32),
    (autoencoder, ['--decoder_num_heads', 8], lambda m: m.decoder_blocks[0].attn.num_heads, 8),
    (classifier, ['--model', 'vit_tiny_patch16'], lambda m: m.cls_token.shape[-1], 192),
    (classifier, ['--cls_token'], lambda m: hasattr(m, 'norm'), True),
    (classifier, ['--global_pool'], lambda m: hasattr(m, 'fc_norm'), True),
    (head, ['--nb_classes', 11], lambda m: m.out_features, 11),
    (data, ['--crop_min', .5], lambda d: d[0].dataset.transform.transforms[0].scale, (.5, 1.)),
    *[(data, ['--num_workers', 3, *more],
       lambda d: [(part.loader.num_workers, part.loader.pin_memory, part.loader.batch_size) for part in d],
       [(3, not more, 8)] * 2) for more in ([], ['--no_pin_mem'])],
    (classifier, ['--drop_path', .5],
     lambda m: (getattr(m.blocks[-1], 'drop_path1', None) or m.blocks[-1].drop_path).drop_prob, .5),
    (mixing, ['--mixup', .8], lambda m: m.mixup_alpha, .8), (mixing, ['--cutmix', 1], lambda m: m.cutmix_alpha, 1.),
    (mixing, ['--cutmix_minmax', .2, .4], lambda m: m.cutmix_minmax, [.2, .4]),
    (mixing, ['--mixup', 1, '--mixup_prob', .3], lambda m: m.mix_prob, .3),
    (mixing, ['--mixup', 1, '--mixup_switch_prob', .2], lambda m: m.switch_prob, .2),
    (mixing, ['--mixup', 1, '--mixup_mode', 'elem'], lambda m: m.mode, 'elem'),
    (mixing, ['--mixup', 1, '--smoothing', .3], lambda m: m.label_smoothing, .3)])
def test_a_flag_takes_effect(images, build, flags, look, expected):
    assert look(build(images, *flags)) == expected


def test_label_smoothing_without_mixing_takes_effect_in_the_loss(tmp_path):
    logits, label = torch.tensor([[2., 0, 0, 0]]), torch.tensor([0])
    losses = [main_finetune.build_loss(parsed(parse_finetune, FINETUNE, tmp_path, '--smoothing', smoothing), 4)[0](
        logits, label).item() for smoothing in (0, .2)]
    logs = torch.log_softmax(logits, dim=1)[0]
    assert losses == pytest.approx([-logs[0].item(), (-.8 * logs[0] - .2 * logs.mean()).item()], rel=1e-5)


def steps_of(**flags):
    """The steps of the fine-tuning transform as one text."""
    return ' '.join(type(step).__name__ for step in finetuning_transform(32, **flags).transforms)


def test_colour_augmentation_flags_take_effect_on_colour_images_only():
    assert 'RandAugment' in steps_of() and 'ColorJitter' not in steps_of() and 'RandAugment' in steps_of(in_chans=1)
    assert 'RandAugment' not in steps_of(aa='none') and 'ColorJitter' in steps_of(aa='none', color_jitter=.4)
    assert 'AugMix' in steps_of(aa='augmix-m5-w4-d2')
    assert steps_of(in_chans=4) == 'RandomResizedCrop function'


@pytest.mark.parametrize('flags, expected', [
    (['--reprob', '0'], [0] * 4), (['--reprob', '1', '--remode', 'const'], [1] * 4),
    (['--reprob', '1', '--resplit'], [0, 0, 1, 1])])
def test_random_erasing_flags_take_effect(tmp_path, flags, expected):
    args = parsed(parse_finetune, FINETUNE, tmp_path, '--mixup', '0', '--cutmix', '0', *flags)
    augment = main_finetune.build_augmentation(args, main_finetune.build_loss(args, 8)[1])
    images, _ = augment(torch.full((4, 32, 32, 3), 255, dtype=torch.uint8), torch.zeros(4, dtype=torch.long))
    assert [int(image[0].max() - image[0].min() > .1) for image in images] == expected
    assert '--remode' not in flags or all((image == 0).any() for image in images)


@pytest.mark.parametrize('flags, expected, lines', [
    ([], 1e-3 / 8, 0), (['--lr', '.1'], .1, 0), (['--lr', '.1', '--base_batch_size', '32'], .1, 0),
    (['--lr', '.1', '--base_batch_size', '64'], .1, 1),
    (['--lr', '.1', '--base_batch_size', '64', '--auto_scale_lr'], .05, 1)])
def test_an_lr_for_another_batch_size_is_scaled_on_request_else_warned_of(tmp_path, caplog, flags, expected, lines):
    args = parsed(parse_pretrain, PRETRAIN, tmp_path, '--accum_iter', 2, *flags)
    world = World(0, 2)
    assert (effective_batch_size(args, world), peak_lr(args, world)) == (32, pytest.approx(expected))
    log_training_summary(args, world, range(1000), torch.nn.Linear(1, 1))
    assert len(caplog.messages) == 3 + lines


def test_layer_decay_takes_effect_in_training(images, tmp_path):
    succeeded(finetune('--data_path', images, '--output_dir', tmp_path, '--epochs', 1, '--layer_decay', .5))
    groups = torch.load(str(tmp_path / 'checkpoint-0.pth'))['optimizer']['param_groups']
    assert min(group['lr_scale'] for group in groups) == .5 ** 7


def test_an_ipv6_address_is_accepted_and_an_index_of_a_device_names_the_variable(tmp_path, capsys):
    assert parsed(parse_pretrain, [], tmp_path, '--dist_url', 'tcp://[fe80::1]:9/').dist_url == 'tcp://[fe80::1]:9/'
    with pytest.raises(SystemExit):
        parsed(parse_pretrain, [], tmp_path, '--device', 'npu:3')
    assert 'ASCEND_RT_VISIBLE_DEVICES=3' in capsys.readouterr().err


@pytest.mark.parametrize('tool, argument', [('dataset_stats', 'DATA'), ('pack_shards', 'SOURCE')])
def test_errors_of_a_tool_name_its_own_argument(tmp_path, tool, argument):
    (tmp_path / 'data').mkdir()
    paths = [tmp_path / 'data', *[tmp_path / 'x'] * (argument == 'SOURCE')]
    run = call('util.tools.' + tool, *paths)
    assert run.status == 2 and run.output.startswith('error: {}: {}'.format(argument, tmp_path / 'data')), run.output


@pytest.mark.parametrize('flags', [
    '--nb_classes 3', '--aa rand-m9-foo1', '--resume auto --eval', '--freeze 1', '--output_dir /dev/null/o'])
def test_a_flag_that_does_not_fit_is_one_line_before_training(images, tmp_path, flags):
    run = finetune('--data_path', images, '--output_dir', tmp_path / 'o', *flags.split())
    assert run.status == 2 and not (tmp_path / 'o').exists(), run.output
    assert run.output.splitlines()[-1].startswith('error: ' + ' '.join(flags.split()[:2])), run.output


@pytest.mark.parametrize('epochs, warmup, batch, named', [
    (400, 40, 1000, ''), (1, 40, 1000, ''), (10, 10, 1000, '--warmup_epochs 10'), (10, 40, 1000, '--warmup_epochs 40'),
    (10, 1, 1001, '--accum_iter')])
def test_a_warmup_over_all_epochs_and_a_batch_over_all_images_warn(tmp_path, caplog, epochs, warmup, batch, named):
    args = parsed(parse_pretrain, [], tmp_path, '--epochs', epochs, '--warmup_epochs', warmup, '--batch_size', batch)
    log_training_summary(args, World(), range(1000), torch.nn.Linear(1, 1))
    warnings = [line for line in caplog.messages if line.startswith('warning: ')]
    assert len(warnings) == bool(named) and all(named in line for line in warnings)


def test_classes_without_validation_images_are_named(images, tmp_path, caplog):
    shutil.copytree(str(images / 'train'), str(tmp_path / 'train'))
    shutil.copytree(str(images / 'val' / CLASSES[0]), str(tmp_path / 'val' / CLASSES[0]))
    data(tmp_path)
    assert [CLASSES[1] in line for line in caplog.messages if line.startswith('warning: ')] == [True]


@pytest.mark.parametrize('flag, meant', [('--mask_ration', '--mask_ratio'), ('--workers', '--num_workers'),
                                         ('--optimizer', None), ('--lr_sched', None)])
def test_only_a_near_name_is_suggested(tmp_path, capsys, flag, meant):
    with pytest.raises(SystemExit):
        parsed(parse_pretrain, [], tmp_path, flag, 1)
    error = capsys.readouterr().err
    assert 'did you mean {}?'.format(meant) in error if meant else 'did you mean' not in error, error
