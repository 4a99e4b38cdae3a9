"""Linear probing: only the head is trained, and a checkpoint is enough to evaluate."""
import json

import pytest
import torch
from conftest import FINETUNE, linprobe, nano_vit, succeeded
from test_end_to_end import epochs_of, moments_of, same, weights_of

import main_linprobe
from util.checkpoints import load_model, pth_file, weights
from util.config.train_flags import parse_linprobe
from util.devices import precision
from util.devices.accelerator import Cpu
from util.errors import UserError
from util.models import features as encoder
from util.models.linear_probe import LinearProbe, probing_head


@pytest.fixture(scope='module')
def probed(images, pretrained, tmp_path_factory):
    """The output folder of a linear probing of two epochs."""
    folder = tmp_path_factory.mktemp('probed')
    output = succeeded(linprobe('--data_path', images, '--output_dir', folder, '--epochs', 2, '--save_every', 1, '--lr',
                                3, '--weight_decay', .01, '--finetune', pretrained / 'checkpoint-0.pth'))
    assert 'left out: the decoder\n' in output and 'starting from random weights: head.0.running_mean' in output
    return folder


def vit(**options):
    model = nano_vit(**options)
    model.head = probing_head(128, 8)
    return model


def test_only_the_head_is_trained(pretrained, probed):
    encoder_weights = weights_of(pretrained / 'checkpoint-0.pth')['model']
    states = [weights_of(probed / 'checkpoint-{}.pth'.format(epoch)) for epoch in (0, 1)]
    for state in states:
        own = {name for name in state['model'] if name not in encoder_weights}
        assert own == {'head.0.running_mean', 'head.0.running_var', 'head.0.num_batches_tracked', 'head.1.weight',
                       'head.1.bias'}
        assert all(torch.equal(value, encoder_weights[name]) for name, value in state['model'].items()
                   if name not in own)
    assert not torch.equal(states[0]['model']['head.1.weight'], states[1]['model']['head.1.weight'])
    assert epochs_of(probed)[0]['n_parameters'] == 128 * 8 + 8
    assert states[0]['optimizer']['param_groups'][0]['weight_decay'] == .01


@pytest.mark.compat
@pytest.mark.parametrize('global_pool, pool', [(False, 'cls'), (True, 'mean')])
def test_features_are_those_of_the_encoder_in_eval_mode_without_gradients(global_pool, pool):
    model = vit(global_pool=global_pool, drop_path_rate=.9)
    probe = LinearProbe(model, precision.FullPrecision())
    probe.head.train()
    imgs = torch.randn(4, 3, 32, 32)
    features = probe.features(imgs)
    assert not features.requires_grad
    assert torch.allclose(features, encoder.pooled(model.eval(), imgs, pool))


def test_the_class_token_is_classified_unless_global_pool_is_given(tmp_path):
    flags = [*FINETUNE, '--data_path', str(tmp_path)]
    for more, name in (([], 'norm'), (['--cls_token'], 'norm'), (['--global_pool'], 'fc_norm')):
        assert hasattr(main_linprobe.build_model(vars(parse_linprobe(flags + more)), 8), name)


def test_a_checkpoint_is_enough_to_evaluate(images, probed, tmp_path):
    succeeded(linprobe('--data_path', images, '--output_dir', tmp_path, '--eval', '--resume',
                       probed / 'checkpoint-1.pth'))
    result, last = json.loads((tmp_path / 'eval.json').read_text()), epochs_of(probed)[-1]
    assert (result['acc1'], result['acc5']) == (last['test_acc1'], last['test_acc5'])
    assert result['loss'] == pytest.approx(last['test_loss'], rel=1e-5) and result['images'] == 19


def test_a_resumed_probing_ends_as_the_uninterrupted_one(images, probed, tmp_path):
    succeeded(linprobe('--data_path', images, '--output_dir', tmp_path, '--epochs', 2, '--lr', 3, '--weight_decay', .01,
                       '--resume', probed / 'checkpoint-0.pth'))
    ends = [weights_of(folder / 'checkpoint-1.pth') for folder in (probed, tmp_path)]
    assert same(*([state['model'], moments_of(state), state['best']] for state in ends))


@pytest.mark.compat
def test_a_checkpoint_loads_as_an_ordinary_classifier(probed):
    path = str(probed / 'checkpoint-1.pth')
    model = vit()
    model.load_state_dict(pth_file.load(path)['model'])
    imgs = torch.randn(4, 3, 32, 32)
    classifier, flags, classes = load_model.load_classifier(path)
    assert torch.allclose(classifier(imgs), model.eval()(imgs), atol=1e-4)
    assert not flags['global_pool'] and len(classes) == 8


def test_a_classifier_of_the_mean_has_no_norm_for_the_class_token(images, tmp_path):
    model, path = nano_vit(num_classes=5, global_pool=True), str(tmp_path / 'fine.pth')
    pth_file.save(path, {'model': model.state_dict()})
    args = parse_linprobe([*FINETUNE, '--data_path', str(tmp_path), '--finetune', path])
    with pytest.raises(UserError, match='^{}: .*--global_pool'.format(path)):
        weights.start_from(path, vit(), args, main_linprobe.load_encoder)
    probing = vit(global_pool=True)
    weights.start_from(path, probing, args, main_linprobe.load_encoder)
    assert torch.equal(probing.blocks[5].mlp.fc2.weight, model.blocks[5].mlp.fc2.weight)


@pytest.mark.skipif(not hasattr(torch, 'autocast'), reason='this torch has no autocast for the CPU')
def test_in_half_precision_the_head_computes_in_fp32():
    probe = LinearProbe(vit(), precision.choose_precision(Cpu(), dtype='bf16'))
    assert probe.precision.name == 'native bf16 for the frozen encoder, fp32 for the head'
    probe.eval()
    logits = probe(torch.randn(4, 3, 32, 32))
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())
