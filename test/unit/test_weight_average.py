"""--ema: the average of the weights, and who uses it."""
import json

import pytest
import torch
from conftest import FINETUNE, ROOT, finetune, two_processes

import main_finetune
import main_predict
from util import attention, checkpoint_file, extract_features, trained, weight_average
from util.arguments import parse_finetune
from util.checkpoint import Resumed, training_state
from util.errors import UserError
from util.inference_arguments import parse_predict
from util.precision import FullPrecision
from util.updates import WeightUpdates
from util.weight_average import NoAverage, WeightAverage


class Linear(torch.nn.Module):
    """One weight; its gradient is the input."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.fixed = torch.nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x):
        return (self.weight * x).sum()


def expected(values, decay, average=0., updates=0):
    """The average after it has followed `values`."""
    for value in values:
        keep = min(decay, (1 + updates) / (10 + updates))
        average, updates = keep * average + (1 - keep) * value, updates + 1
    return average


def run(inputs, decay, accum_iter=1):
    """(weights after each step that SGD took, average) over inputs."""
    model = Linear()
    average = WeightAverage(decay, FullPrecision().trained_weights(model, None))
    updates = WeightUpdates(model, torch.optim.SGD(model.parameters(), lr=1.), FullPrecision(), lambda epoch: 1.,
                            accum_iter, average=average)
    weights = []
    for i, value in enumerate(inputs):
        with updates.iteration(i, len(inputs), 0):
            updates.backward(model(torch.full((3,), value)))
        if updates.complete and value == value:
            weights.append(model.weight[0].item())
    return weights, average.state(model.state_dict())


@pytest.mark.parametrize('decay', [.3, .9999])
def test_the_average_follows_each_step_by_the_decay_that_has_warmed_up(decay):
    weights, state = run([1., 2., -3., 4., 5.], decay)
    assert state['model_ema']['weight'].tolist() == pytest.approx([expected(weights, decay)] * 3, rel=1e-5)
    assert state['ema_updates'] == 5 and state['model_ema']['fixed'].tolist() == [1.]


def test_a_window_of_iterations_is_one_update():
    weights, state = run([1., 2., 3., 4., 5.], .5, accum_iter=2)
    assert len(weights) == state['ema_updates'] == 3
    assert state['model_ema']['weight'][0].item() == pytest.approx(expected(weights, .5))


def test_a_skipped_step_is_no_update():
    weights, state = run([1., float('nan'), 2.], .5)
    assert state['ema_updates'] == 2
    assert state['model_ema']['weight'][0].item() == pytest.approx(expected(weights, .5))


@pytest.mark.parametrize('skipped', [0, 1])
def test_what_the_device_says_of_a_skipped_step_is_what_the_host_would(skipped):
    states = []
    for said in (skipped, torch.tensor(skipped)):
        weight = torch.nn.Parameter(torch.ones(4))
        average = WeightAverage(.9, {'w': weight})
        weight.data.fill_(3.)
        average.update(said)
        states.append(average.state({}))
    assert torch.equal(states[0]['model_ema']['w'], states[1]['model_ema']['w'])
    assert states[0]['ema_updates'] == states[1]['ema_updates'] == 1 - skipped
    assert states[0]['model_ema']['w'][0].item() == pytest.approx(1. if skipped else 2.8)


def test_without_the_fast_way_the_average_is_the_same(monkeypatch):
    fast = run([1., 2., 3.], .9)
    monkeypatch.setattr(weight_average, '_all_at_once', lambda *_: torch.no_such_function)
    assert torch.equal(run([1., 2., 3.], .9)[1]['model_ema']['weight'], fast[1]['model_ema']['weight'])


def test_the_model_has_the_average_within_and_its_own_weights_again_afterwards():
    model = Linear().half()         # as apex has it, beside weights in fp32
    average = WeightAverage(.9, {'weight': torch.nn.Parameter(torch.full((3,), .1))})
    own = model.weight.detach().clone()
    with pytest.raises(KeyError), average.within(model):
        assert torch.equal(model.weight.float(), torch.full((3,), .1).half().float())
        raise KeyError
    assert torch.equal(model.weight.float(), own.float())


def test_an_average_of_another_model_is_refused():
    average = WeightAverage(.9, {'w': torch.nn.Parameter(torch.zeros(3))})
    for other in ({}, {'w': torch.zeros(4)}):
        with pytest.raises(UserError, match='^x.pth: its averaged weights .* w differs'):
            average.load({'model_ema': other}, 'x.pth')


# In checkpoints

@pytest.fixture
def checkpoint(tmp_path):
    """(path, state) of a classifier whose average is not its weights."""
    args = parse_finetune(['--model', 'vit_nano_patch16', '--input_size', '32', '--patch_size', '8', '--data_path',
                           str(tmp_path)])
    model = main_finetune.build_model(args, 3)
    precision = FullPrecision()
    average = WeightAverage(.9, precision.trained_weights(model, None))
    for parameter in model.parameters():
        parameter.data += 1
    average.update(0)
    state = training_state(model, torch.optim.SGD(model.parameters(), lr=1.), precision, 4, args, average)
    path = str(tmp_path / 'x.pth')
    checkpoint_file.save(path, state)
    return path, state


def test_whoever_uses_a_checkpoint_gets_the_average(checkpoint):
    path, state = checkpoint
    assert set(state['model_ema']) == set(state['model'])
    assert not torch.equal(state['model']['head.bias'], state['model_ema']['head.bias'])
    assert torch.equal(checkpoint_file.load(path)['model']['head.bias'], state['model_ema']['head.bias'])
    assert torch.equal(trained.load_classifier(path).model.head.bias, state['model_ema']['head.bias'])


@pytest.mark.parametrize('averaged, name', [(False, 'model'), (True, 'model_ema')])
def test_going_on_takes_the_weights_as_trained_and_evaluation_the_average(checkpoint, averaged, name):
    path, state = checkpoint
    model = trained.load_classifier(path).model
    Resumed(path).restore_model(model, averaged=averaged)
    assert torch.equal(model.head.bias, state[name]['head.bias'])


def test_a_resumed_average_is_the_saved_one_and_a_new_one_starts_from_the_weights(checkpoint, tmp_path):
    path, state = checkpoint
    weights = {'head.bias': torch.nn.Parameter(torch.zeros(3))}
    assert isinstance(Resumed(path).average(None, weights), NoAverage)
    again = Resumed(path).average(.9, weights).state({})
    assert torch.equal(again['model_ema']['head.bias'], state['model_ema']['head.bias']) and again['ema_updates'] == 1
    state = {name: value for name, value in state.items() if name not in ('model_ema', 'ema_updates')}
    checkpoint_file.save(str(tmp_path / 'without.pth'), state)
    anew = Resumed(str(tmp_path / 'without.pth')).average(.9, weights).state({})
    assert anew['model_ema']['head.bias'].tolist() == [0, 0, 0] and anew['ema_updates'] == 0


@pytest.mark.parametrize('foreign', [None, {}, 7, {'x': 7}])
def test_a_foreign_model_ema_that_is_no_state_dict_is_left_alone(tmp_path, foreign):
    checkpoint_file.save(str(tmp_path / 'x.pth'), {'model': {'a': torch.ones(1)}, 'model_ema': foreign})
    assert torch.equal(checkpoint_file.load(str(tmp_path / 'x.pth'))['model']['a'], torch.ones(1))


# In runs

FLAGS = ['--ema', '.9', '--lr', '.01', '--warmup_epochs', '0', '--epochs', '2', '--save_every', '1', '--mixup', '.8']


@pytest.fixture(scope='module')
def finetuned(images, pretrained, tmp_path_factory):
    """The output folder of a fine-tuning with --ema and frozen blocks."""
    folder = tmp_path_factory.mktemp('finetuned')
    run = finetune('--data_path', images, '--finetune', pretrained / 'checkpoint-0.pth', '--output_dir', folder,
                   '--freeze', '2', *FLAGS)
    assert run.status == 0, run.output
    assert run.output.index('with the weights as trained:') < run.output.index('with their average (--ema):')
    return folder


def test_the_log_tells_of_both_and_the_best_is_of_the_average(finetuned):
    records = [json.loads(line) for line in (finetuned / 'log.txt').read_text().splitlines()]
    assert all(record['test_raw_loss'] != record['test_loss'] for record in records)
    best = checkpoint_file.load(str(finetuned / 'checkpoint-best.pth'))['best']
    assert best['acc1'] == max(record['test_acc1'] for record in records)


def test_evaluation_finds_what_training_has_told_and_leaves_its_flags(images, finetuned):
    run = finetune('--data_path', images, '--eval', '--resume', finetuned / 'checkpoint-1.pth',
                   '--output_dir', finetuned)
    assert run.status == 0, run.output
    last = json.loads((finetuned / 'log.txt').read_text().splitlines()[-1])
    result = json.loads((finetuned / 'eval.json').read_text())
    assert result['acc1'] == last['test_acc1'] and result['loss'] == pytest.approx(last['test_loss'], rel=1e-5)
    assert 'eval: false' in (finetuned / 'config.yaml').read_text()
    assert 'eval: true' in (finetuned / 'eval_config.yaml').read_text()


@pytest.mark.parametrize('tool, output', [(main_predict, 'x.jsonl'), (extract_features, 'x'), (attention, 'x.png')],
                         ids=lambda value: getattr(value, '__name__', ''))
def test_a_tool_says_beside_its_results_that_it_takes_the_average(images, finetuned, tmp_path, capsys, tool, output):
    words = ['--resume', str(finetuned / 'checkpoint-1.pth'), '--output', str(tmp_path / output), '--device', 'cpu',
             str(images / 'val')]
    tool.main(parse_predict(words) if tool is main_predict else words)
    out, err = capsys.readouterr()
    assert err.count('taking its averaged weights (--ema)\n') == 1 and 'averaged' not in out


def differing(one, other):
    """Names of the tensors of two checkpoints that are not the same to the last bit."""
    one, other = (checkpoint_file.load(str(path), as_trained=True) for path in (one, other))
    assert one['ema_updates'] == other['ema_updates'] > 0
    return [name for part in ('model', 'model_ema') for name, value in one[part].items()
            if not torch.equal(value, other[part][name])]


def test_a_resumed_run_ends_with_the_same_average_to_the_last_bit(images, finetuned, tmp_path):
    run = finetune('--data_path', images, '--resume', finetuned / 'checkpoint-0.pth', '--output_dir', tmp_path,
                   '--freeze', '2', *FLAGS)
    assert run.status == 0, run.output
    assert not differing(finetuned / 'checkpoint-1.pth', tmp_path / 'checkpoint-1.pth')


@pytest.mark.slow
def test_two_processes_keep_the_average_and_need_no_gradient_of_frozen_blocks(images, pretrained, tmp_path):
    start = checkpoint_file.load(str(pretrained / 'checkpoint-0.pth'))['model']
    run = two_processes(ROOT / 'main_finetune.py', *FINETUNE, '--data_path', images, '--output_dir', tmp_path,
                        '--finetune', pretrained / 'checkpoint-0.pth', '--freeze', '2', *FLAGS)
    assert run.status == 0, run.output
    state = checkpoint_file.load(str(tmp_path / 'checkpoint-1.pth'), as_trained=True)
    assert state['ema_updates'] == 4 and not torch.equal(state['model_ema']['head.bias'], state['model']['head.bias'])
    name = 'blocks.{}.attn.qkv.weight'
    assert [torch.equal(state['model'][name.format(i)], start[name.format(i)]) for i in range(3)] == [True, True, False]
