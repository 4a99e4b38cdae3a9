"""Finding the newest checkpoint, resuming, starting from pre-trained weights, and saving."""
import argparse
import errno
import math
import os
import subprocess
import threading
from functools import partial

import pytest
import torch
from conftest import NANO, nano_mae, nano_vit, pretrain
from test_end_to_end import same

from util.checkpoints import checkpointer, load_model, pth_file, weights
from util.checkpoints.checkpointer import Checkpointer
from util.checkpoints.schema import CHECKPOINT, validate
from util.config.train_flags import parse_finetune, parse_pretrain
from util.devices.precision import FullPrecision
from util.errors import SystemFailure, UserError
from util.file_lock import RunLock
from util.models.linear_probe import probing_head
from util.reporting.run_logger import RunLogger
from util.training import setup
from util.training.ema import EMA
from util.training.trainer import model_state

pytestmark = pytest.mark.compat

vit = partial(nano_vit, global_pool=True)


def adamw(model, **options):
    """An optimizer that has made a step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=.1, **options)
    model(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    return optimizer


def test_checkpoints_are_ordered_by_epoch_and_image(tmp_path):
    for name in ('checkpoint-9.pth', 'checkpoint-10.pth', 'checkpoint-best.pth', 'checkpoint-10-64.pth',
                 'checkpoint-10-8.pth', 'checkpoint-11-8.pth', 'checkpoint-12.pth.tmp-1', 'checkpoint-12.2026.pth'):
        (tmp_path / name).write_bytes(b'')
    assert [path[len(str(tmp_path)) + 12:-4] for path in checkpointer.numbered(str(tmp_path))] == [
        '11-8', '10', '10-64', '10-8', '9']


def test_auto_takes_the_newest_readable_checkpoint_and_starts_from_scratch_only_without_any(tmp_path):
    (tmp_path / 'checkpoint-2.pth').write_bytes(b'')
    with pytest.raises(UserError, match='--resume auto'):
        Checkpointer(str(tmp_path), 'auto')
    for epoch in (0, 1):
        torch.save({'model': {}, 'epoch': epoch}, str(tmp_path / 'checkpoint-{}.pth'.format(epoch)))
    (tmp_path / 'checkpoint-1-8.pth').write_bytes((tmp_path / 'checkpoint-1.pth').read_bytes()[:-100])
    assert Checkpointer(str(tmp_path), 'auto').path == str(tmp_path / 'checkpoint-1.pth')
    assert Checkpointer(str(tmp_path / 'empty'), 'auto').path is None
    assert Checkpointer(str(tmp_path)).path is None


@pytest.mark.parametrize('make', [
    os.mkdir, os.mkfifo, lambda path: os.symlink(path, path), lambda path: os.symlink('nowhere', path)], ids=range(4))
def test_what_is_not_a_file_but_named_as_a_checkpoint_is_skipped_and_moved_out_of_the_way(tmp_path, make):
    pth_file.save(str(tmp_path / 'checkpoint-0.pth'), {'model': {'w': torch.ones(2)}, 'epoch': 0})
    make(str(tmp_path / 'checkpoint-7.pth'))
    found = Checkpointer(str(tmp_path), 'auto')
    assert found.path == str(tmp_path / 'checkpoint-0.pth')
    aside, = found.set_newer_aside((1, 0))
    found.save({'model': {'w': torch.ones(2)}}, ['checkpoint-7.pth'])
    assert found.wait() and os.path.lexists(aside) and (tmp_path / 'checkpoint-7.pth').is_file()


def test_an_unreadable_disk_is_not_taken_for_a_damaged_checkpoint(tmp_path, monkeypatch):
    """`auto` would otherwise go back to an older one."""
    for epoch in (0, 1):
        pth_file.save(str(tmp_path / checkpointer.name_after(epoch)), {'model': {}, 'epoch': epoch})
    monkeypatch.setattr(pth_file.pth_format, 'parse', lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, 'I/O error')))
    with pytest.raises(SystemFailure, match='checkpoint-1.pth: '):
        Checkpointer(str(tmp_path), 'auto')


@pytest.mark.parametrize('new_format', [True, False])
def test_a_published_checkpoint_is_read(tmp_path, new_format):
    path, layer = str(tmp_path / 'published.pth'), torch.nn.Linear(3, 2)
    torch.save({
        'model': {'weight': layer.weight, 'bias': layer.bias.data}, 'optimizer': adamw(layer).state_dict(), 'epoch': 3,
        'args': argparse.Namespace(model='x', device=torch.device('cpu'), betas=(.9, .95)), 'scaler': {}}, path,
        _use_new_zipfile_serialization=new_format)
    state = pth_file.load(path)
    assert state['epoch'] == 3 and state['args'] == {'model': 'x', 'device': 'cpu', 'betas': (.9, .95)}
    assert torch.equal(state['model']['weight'], layer.weight)
    moments, = [moments for moments in state['optimizer']['state'].values() if moments['exp_avg'].dim() == 1]
    assert torch.equal(moments['exp_avg'], torch.full((2,), .2))
    validate(state, path)


@pytest.mark.parametrize('model, other, flag', [
    ('vit', 'mae', '--finetune x.pth'), ('probe', 'encoder', '--finetune x.pth'), ('mae', 'vit', '--init_from x.pth'),
    ('vit', 'probe', 'main_linprobe.py'), ('probe', 'vit', 'main_finetune.py')])
def test_weights_for_another_flag_or_script_are_rejected_by_its_name(model, other, flag):
    mae, probe = nano_mae(), vit()
    probe.head = probing_head(128, 8)
    models = {'mae': mae, 'vit': vit(), 'probe': probe}
    states = {**{name: built.state_dict() for name, built in models.items()}, 'encoder': {
        name: value for name, value in mae.state_dict().items() if not name.startswith(('decoder', 'mask_token'))}}
    with pytest.raises(UserError, match='^x.pth: .*' + flag):
        weights.load_strict(models[model], states[other], 'x.pth')


@pytest.mark.parametrize('name, shape', [('pos_embed', ()), ('pos_embed', (2, 65, 128)), ('pos_embed', (1, 4, 128)),
                                         ('pos_embed', (1, 0, 128)), ('head.weight', ())])
def test_weights_of_invalid_shapes_are_rejected_by_name(name, shape):
    model, odd = vit(), {**vit().state_dict(), name: torch.zeros(shape)}
    with pytest.raises(UserError, match=name):
        weights.load_strict(model, weights.with_positions_for(model, odd), 'x.pth')
    if not name.startswith('head'):
        with pytest.raises(UserError, match=name):
            weights.load_pretrained(model, odd, 'x.pth')


@pytest.fixture
def trained_layer():
    """(layer, its optimizer, the optimizer state, the moments of the layer's weight)."""
    layer = torch.nn.Linear(3, 2)
    optimizer = adamw(layer, weight_decay=.5)
    saved = optimizer.state_dict()
    first = saved['param_groups'][0]['params'][0]           # not 0 in torch 1.5
    return layer, optimizer, saved, saved['state'][first]


def test_optimizer_state_is_loaded_with_the_hyperparameters_of_the_new_run(trained_layer):
    layer, _, saved, moments = trained_layer
    fresh = torch.optim.AdamW(layer.parameters(), lr=.1, weight_decay=.01)
    checkpointer.load_optimizer(fresh, saved, 'x.pth')
    assert fresh.param_groups[0]['weight_decay'] == .01
    assert torch.equal(fresh.state[layer.weight]['exp_avg'], moments['exp_avg'])


@pytest.mark.parametrize('name, value', [
    ('exp_avg', torch.zeros(3, 2)), ('exp_avg_sq', torch.zeros(2, 3).double()), ('exp_avg', None),
    ('max_exp_avg_sq', torch.zeros(1)), ('step', torch.tensor(-1.)), ('step', torch.zeros(2))])
def test_moments_that_do_not_match_their_parameter_are_rejected(trained_layer, name, value):
    """Fused optimizers would write out of bounds."""
    _, optimizer, saved, moments = trained_layer
    moments[name] = value
    with pytest.raises(UserError, match='^x.pth: .*{}'.format(name)):
        checkpointer.load_optimizer(optimizer, saved, 'x.pth')


def test_moments_are_made_contiguous(trained_layer):
    """Fused optimizers would write out of bounds here, too."""
    layer, optimizer, saved, moments = trained_layer
    moments['exp_avg'] = torch.arange(4.).as_strided((2, 3), (1, 1))
    checkpointer.load_optimizer(optimizer, saved, 'x.pth')
    moment = optimizer.state[layer.weight]['exp_avg']
    assert moment.is_contiguous() and moment.tolist() == [[0., 1., 2.], [1., 2., 3.]]


def test_optimizer_state_of_other_parameters_is_rejected(trained_layer):
    _, optimizer, saved, moments = trained_layer
    other = torch.optim.AdamW(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2)).parameters())
    with pytest.raises(UserError, match='x.pth: .*--finetune'):
        checkpointer.load_optimizer(other, saved, 'x.pth')
    key = saved['param_groups'][0]['params'][0]
    lacking = {'step': 1, 'exp_avg': moments['exp_avg']}
    for odd in ({'state': {**saved['state'], key: lacking}}, {'state': {**saved['state'], 7: {}}},
                {'param_groups': [{'params': [key, key]}]}):
        with pytest.raises(UserError, match='^x.pth: '):
            checkpointer.load_optimizer(optimizer, {**saved, **odd}, 'x.pth')


def test_a_checkpoint_has_the_documented_keys_and_none_that_is_not_in_the_schema(pretrained):
    state = torch.load(str(pretrained / 'checkpoint-0.pth'))
    assert {'model', 'optimizer', 'epoch', 'scaler', 'args'} <= set(state) <= set(CHECKPOINT)
    assert type(state['args']) is dict and state['args']['model'] == 'mae_vit_nano_patch16'


PROGRESS = {'loss': {'total': [1., 2.], 'windows': [[0., 0.]]}, 'skipped_steps': 0, 'lr': .1}


@pytest.mark.parametrize('odd', [
    {'epoch': 'seven'}, {'epoch': -2}, {'images': {}}, {'processes': 0}, {'classes': [3]}, {'log': ['{']},
    {'log': ['{"epoch": "x"}']}, {'best': {'acc1': 1.}}, {'scaler': {'scale': -1.}}, {'optimizer': {}},
    {'optimizer': {'state': {}, 'param_groups': []}}, {'progress': {**PROGRESS, 'lr': math.nan}},
    {'reconstructions': [{'epoch': 0, 'of': ['x'], 'jpegs': [3]}]}, {'args': {'mean': [.5], 'std': [0.]}},
    {'args': {'input_size': [True, 32]}}, {'args': {'input_size': [32, 48, 64]}}, {'args': {'mask_ratio': 2.}}])
def test_a_checkpoint_that_violates_the_schema_is_rejected_by_name(tmp_path, odd):
    pth_file.save(str(tmp_path / 'odd.pth'), {'model': {}, **odd})
    with pytest.raises(UserError, match='^{}: '.format(tmp_path / 'odd.pth')):
        Checkpointer(None, str(tmp_path / 'odd.pth'))


@pytest.mark.parametrize('flags', [
    {'input_size': 10 ** 9}, {'decoder_depth': 10 ** 9}, {'decoder_num_heads': 5}, {'predict_ratio': 2},
    {'model': '__builtins__'}, {'model': ['x']}, 7, {'mean': [.5, .5], 'std': [1.]}])
def test_a_model_of_invalid_flags_is_rejected(tmp_path, flags):
    flags = {'model': 'mae_vit_nano_patch16', **flags} if isinstance(flags, dict) else flags
    pth_file.save(str(tmp_path / 'x.pth'), {'model': {}, 'args': flags})
    with pytest.raises(UserError, match='x.pth: '):
        load_model.load_autoencoder(str(tmp_path / 'x.pth'))


def test_pretrained_weights_of_an_invalid_mean_are_rejected(tmp_path):
    pth_file.save(str(tmp_path / 'x.pth'), {'model': {}, 'args': {'mean': [.5]}})
    with pytest.raises(UserError, match='x.pth: .*--mean'):
        weights.start_from(str(tmp_path / 'x.pth'), None, argparse.Namespace(in_chans=3, mean=None, std=None), None)


def test_a_decoder_of_other_heads_is_rejected_though_its_weights_fit(tmp_path):
    model, path = nano_mae(), str(tmp_path / 'x.pth')
    for heads, fits in ((2, True), (4, False), (None, True)):
        pth_file.save(path, {'model': model.state_dict(), 'args': {'model': 'mae_vit_nano_patch16',
                                                                    'decoder_num_heads': heads}})
        if fits:
            Checkpointer(None, path).load_model(model)
        else:
            with pytest.raises(UserError, match='x.pth: .*--decoder_num_heads 4'):
                Checkpointer(None, path).load_model(model)
    with pytest.raises(UserError, match='x.pth: .*--model'):
        Checkpointer(None, path).load_model(nano_mae(embed_dim=192, decoder_num_heads=4))


def test_a_resumed_pretraining_has_the_decoder_of_its_checkpoint_unless_flags_say_otherwise(tmp_path):
    saved = {'decoder_embed_dim': 96, 'decoder_num_heads': 6, 'decoder_depth': 3, 'predict_ratio': .5}
    weights_of_it = nano_mae(**{name: saved[name] for name in list(saved)[:3]}).state_dict()
    damaged = {**saved, 'decoder_depth': 8192}                  # the weights say otherwise
    pth_file.save(str(tmp_path / 'x.pth'), {'model': weights_of_it,
                                            'args': {'model': 'mae_vit_nano_patch16', **damaged}})
    checkpointer, none = Checkpointer(None, str(tmp_path / 'x.pth')), dict.fromkeys(saved)
    for given, before, expected in (
            ([], checkpointer, saved), (['--predict_ratio', '1'], checkpointer, {**saved, 'predict_ratio': 1.}),
            ([], Checkpointer(None), {**none, 'predict_ratio': 1.}),
            (['--model', 'mae_vit_tiny_patch16'], checkpointer, {**none, 'predict_ratio': 1.})):
        args = parse_pretrain(['--model', 'mae_vit_nano_patch16', '--data_path', str(tmp_path), *given])
        setup.adopt_decoder_flags(args, before)
        assert {name: getattr(args, name) for name in saved} == expected
    args.model, args.decoder_embed_dim = 'mae_vit_nano_patch16', 80
    with pytest.raises(UserError, match='--decoder_num_heads: 6 .*x.pth'):
        setup.adopt_decoder_flags(args, checkpointer)


def fails(*_, **__):
    raise IndexError('unforeseen')


@pytest.mark.parametrize('broken', ['model', 'optimizer', 'average', 'pretrained', 'tool'])
def test_any_error_while_a_checkpoint_is_loaded_names_it(tmp_path, monkeypatch, broken):
    args = parse_finetune(['--model', 'vit_nano_patch16', *NANO, '--data_path', str(tmp_path)])
    path, model, precision = str(tmp_path / 'x.pth'), vit(), FullPrecision()
    optimizer = torch.optim.AdamW(model.parameters())
    state = {**model_state(model, optimizer, precision), 'epoch': 0, 'args': vars(args)}
    pth_file.save(path, {**state, 'model_ema': state['model']})
    resumed = Checkpointer(None, path)
    fill, load, arguments = {
        'model': (torch.nn.Module, resumed.load_model, [model]),
        'optimizer': (optimizer, resumed.load_training, [optimizer, precision]),
        'average': (torch.Tensor, resumed.load_ema, [EMA(.9, state['model'])]),
        'pretrained': (torch.nn.Module, weights.start_from, [path, model, args, weights.load_pretrained]),
        'tool': (torch.nn.Module, load_model.load_classifier, [path])}[broken]
    monkeypatch.setattr(fill, 'copy_' if broken == 'average' else 'load_state_dict', fails)
    with pytest.raises(UserError, match='^{}: .*IndexError'.format(path)):
        load(*arguments)


# Background saving; on a full or read-only disk the old checkpoint stays and the reason is logged

@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1.5 MB."""
    folder = tmp_path / 'small disk'
    folder.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1500k', 'tmpfs', str(folder)],
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if mounted.returncode:
        pytest.skip('a small disk takes the right to mount: ' + mounted.stdout.decode().strip())
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)


def state(value, size=1000):
    return {'model': {'w': torch.full((size,), float(value))}, 'epoch': value}


def test_a_background_save_writes_the_state_at_the_time_of_the_call(tmp_path, monkeypatch):
    gate, save = threading.Event(), pth_file.save
    monkeypatch.setattr(checkpointer, 'save', lambda path, content: (gate.wait(30), save(path, content)))
    saver, weights = Checkpointer(str(tmp_path), every_minutes=1e-9), state(1)
    saver.failed = True                     # the previous save
    saver.save(weights, ['checkpoint-0.pth'])
    weights['model']['w'] += 1              # the next step, while the thread has not written yet
    assert not list(tmp_path.iterdir()) and not saver.due
    gate.set()
    assert saver.wait() and saver.due
    assert same(pth_file.load(str(tmp_path / 'checkpoint-0.pth')), state(1))


def test_the_newest_and_the_best_checkpoints_are_kept_and_keep_last_0_keeps_all(tmp_path):
    for keep_last, left in ((0, {0, 1, 2, 3}), (2, {2, 3})):
        saver = Checkpointer(str(tmp_path), keep_last=keep_last)
        for epoch in range(4):
            saver.save(state(epoch), [checkpointer.name_after(epoch), checkpointer.BEST])
        names = {checkpointer.BEST, *map(checkpointer.name_after, left)}
        assert saver.wait() and set(os.listdir(str(tmp_path))) == names


@pytest.mark.parametrize('room', range(0, 1500, 450))
def test_a_disk_that_fills_up_at_any_stage_of_a_save_leaves_the_old_checkpoint(small_disk, room):
    path = str(small_disk / 'checkpoint-0.pth')
    pth_file.save(path, state(0))
    before = (small_disk / 'checkpoint-0.pth').read_bytes()
    (small_disk / 'filler').write_bytes(b'x' * 1024 * (1400 - room))
    with pytest.raises(OSError) as caught:
        pth_file.save(path, state(1, 400000))
    assert caught.value.errno == errno.ENOSPC       # PyTorch 1.8 and 1.11 abort if a write of theirs fails
    assert (small_disk / 'checkpoint-0.pth').read_bytes() == before
    assert sorted(os.listdir(str(small_disk))) == ['checkpoint-0.pth', 'filler']


@pytest.mark.slow
def test_training_continues_on_a_full_disk_and_exits_with_74(images, small_disk):
    run = pretrain('--data_path', images, '--output_dir', small_disk / 'o', '--epochs', 2, '--save_every', 1)
    assert run.status == 74 and 'Traceback' not in run.output, run.output
    assert '{}: '.format(small_disk / 'o' / 'checkpoint-0.pth') in run.output
    assert len((small_disk / 'o' / 'log.txt').read_text().splitlines()) == 2


def test_log_lines_on_a_full_disk_are_kept_and_written_when_there_is_room(small_disk):
    run_logger = RunLogger(str(small_disk), None, RunLock(str(small_disk)))
    run_logger.log_epoch({'epoch': 0})
    with open(str(small_disk / 'filler'), 'wb', buffering=0) as file, pytest.raises(OSError, match='No space left'):
        while file.write(b'x' * 4096):
            pass
    for epoch in (1, 2):
        run_logger.log_scalars(epoch, {'loss': 1.})
        run_logger.log_epoch({'epoch': epoch})
    assert (small_disk / 'log.txt').read_text() == '{"epoch": 0}\n'
    run_logger.write_result('summary', {'task': 'Training', 'duration_sec': 1})
    (small_disk / 'filler').unlink()
    run_logger.log_epoch({'epoch': 3})
    assert (small_disk / 'log.txt').read_text() == ''.join('{{"epoch": {}}}\n'.format(i) for i in range(4))
    run_logger.close()
