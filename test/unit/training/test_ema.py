"""--ema: EMA weights, their update, and where they are used."""
import json

import pytest
import torch
from conftest import NANO, finetune, succeeded
from test_end_to_end import epochs_of
from test_optimization import Linear, run

from util.checkpoints import load_model, pth_file
from util.checkpoints.checkpointer import Checkpointer
from util.config.train_flags import parse_finetune
from util.devices.precision import FullPrecision
from util.models.build import build_classifier
from util.training.ema import EMA
from util.training.trainer import model_state


def expected(values, decay):
    """The EMA of `values`, starting at 0."""
    average = 0.
    for updates, value in enumerate(values):
        keep = min(decay, (1 + updates) / (10 + updates))
        average = keep * average + (1 - keep) * value
    return average


@pytest.mark.compat
@pytest.mark.parametrize('inputs, decay, accum_iter, steps', [
    ([1, 2, -3, 4, 5], .3, 1, range(5)), ([1, 2, -3, 4, 5], .9999, 1, range(5)), ([1, 2, 3, 4, 5], .5, 2, [1, 3, 4]),
    ([1, float('nan'), 2], .5, 1, [0, 2])])         # a skipped step
def test_each_step_that_is_not_skipped_updates_the_ema_by_the_decay_after_warm_up(inputs, decay, accum_iter, steps):
    made = []
    weights = run(inputs, accum_iter, ema=lambda weights: made.append(EMA(decay, weights)) or made[0])
    state = made[0].state_dict()
    average = expected([weights[step] for step in steps], decay)
    assert state['model_ema']['weight'].tolist() == pytest.approx([average], rel=1e-5)
    assert state['ema_updates'] == len(steps)


def test_the_model_has_the_ema_weights_within_the_context_and_its_own_afterwards():
    model = Linear().half()         # as under apex, whose master weights are in fp32
    ema = EMA(.9, {'weight': torch.nn.Parameter(torch.tensor([.1]))})
    own = model.weight.detach().clone()
    with pytest.raises(KeyError), ema.applied_to(model):
        assert torch.equal(model.weight.float(), torch.tensor([.1]).half().float())
        raise KeyError
    assert torch.equal(model.weight.float(), own.float())


# In checkpoints

def test_tools_and_evaluation_load_the_ema_weights_and_resuming_the_raw_ones(tmp_path):
    args = parse_finetune(['--model', 'vit_nano_patch16', *NANO, '--data_path', str(tmp_path)])
    model, precision = build_classifier(vars(args), 3), FullPrecision()
    ema = EMA(.9, precision.trained_weights(model, None))
    for parameter in model.parameters():
        parameter.data += 1
    ema.update(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.)
    path, state = str(tmp_path / 'x.pth'), model_state(model, optimizer, precision, ema)
    pth_file.save(path, {**state, 'epoch': 4, 'args': vars(args)})
    assert set(state['model_ema']) == set(state['model'])
    model = load_model.load_classifier(path).model
    assert torch.equal(model.head.bias, state['model_ema']['head.bias'])
    for ema_weights, name in ((False, 'model'), (True, 'model_ema')):
        Checkpointer(None, path).load_model(model, ema_weights=ema_weights)
        assert torch.equal(model.head.bias, state[name]['head.bias'])
    assert not torch.equal(state['model']['head.bias'], state['model_ema']['head.bias'])


@pytest.mark.parametrize('foreign', [{}, {'x': 7}])
def test_a_foreign_model_ema_that_is_not_a_state_dict_is_ignored(tmp_path, foreign):
    pth_file.save(str(tmp_path / 'x.pth'), {'model': {'a': torch.ones(1)}, 'model_ema': foreign})
    assert torch.equal(pth_file.load(str(tmp_path / 'x.pth'))['model']['a'], torch.ones(1))


# In runs; test_resume.py has one with --ema

def test_log_best_checkpoint_and_evaluation_are_of_the_ema_weights(images, tmp_path):
    succeeded(finetune('--data_path', images, '--output_dir', tmp_path, '--ema', .9, '--lr', .01, '--warmup_epochs', 0,
                       '--epochs', 2, '--mixup', .8))
    records = epochs_of(tmp_path)
    best = pth_file.load(str(tmp_path / 'checkpoint-best.pth'))['best']
    assert best['acc1'] == max(record['test_acc1'] for record in records)
    succeeded(finetune('--data_path', images, '--output_dir', tmp_path, '--eval', '--resume',
                       tmp_path / 'checkpoint-1.pth'))
    result = json.loads((tmp_path / 'eval.json').read_text())
    assert result['acc1'] == records[-1]['test_acc1']
    assert result['loss'] == pytest.approx(records[-1]['test_loss'], rel=1e-5)
    assert 'eval: true' in (tmp_path / 'eval_config.yaml').read_text()
