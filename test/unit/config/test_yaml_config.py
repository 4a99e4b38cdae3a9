"""--config: flags from a YAML file, and config.yaml, which a run writes."""
import sys
from pathlib import Path

import pytest
from conftest import launcher
from test_clusters import check_printed

from util.config import parser
from util.config.inference_flags import predict_parser
from util.config.train_flags import parse_finetune, parse_pretrain
from util.errors import UserError
from util.reporting import output_dir


@pytest.fixture
def parsed(tmp_path):
    """Parse flags with a --config file of the given text."""
    def parse(text, *flags, by=parse_pretrain):
        (tmp_path / 'recipe.yaml').write_bytes(text if isinstance(text, bytes) else text.encode())
        return by(['--data_path', str(tmp_path), *flags, '--config', str(tmp_path / 'recipe.yaml')])
    return parse


# Reading

@pytest.mark.compat
@pytest.mark.parametrize('line, flag, value', [
    ('"--batch_size": "8"', 'batch_size', 8), ('{"seed": 8}', 'seed', 8), ('blr: 1e-3', 'blr', 1e-3),
    ('seed: 010', 'seed', 10), ('norm_pix_loss: true', 'norm_pix_loss', True), ('amp: no', 'amp', False),
    ('no_pin_mem: on', 'pin_mem', False), ('no_pin_mem: False', 'pin_mem', True), ('pin_mem: off', 'pin_mem', False),
    ('input_size: [32, 64]', 'input_size', [32, 64]), ('log_dir: "null"', 'log_dir', 'null'),
    ('mean:\n- 0.5\n- -.5\n- .5\nstd: [1]', 'mean', [.5, -.5, .5]), ('lr:', 'lr', None), ('blr: null', 'blr', 1e-3),
    ('local-rank: -1', 'local_rank', -1), ('output_dir: on', 'output_dir', 'on'), ('addr: -x=1', 'addr', '-x=1'),
    ('', 'batch_size', 64)])
def test_a_line_equals_the_flag_on_the_command_line(parsed, line, flag, value):
    assert getattr(parsed(line), flag) == value


@pytest.mark.compat
def test_the_command_line_takes_precedence_over_the_file(parsed):
    text = 'batch_size: 8\nseed: 1\nglobal_pool: true'
    args = parsed(text, '--batch_size=4', '--cls_token', by=parse_finetune)
    assert (args.batch_size, args.seed, args.global_pool) == (4, 1, False)


@pytest.mark.compat
@pytest.mark.parametrize('text, named', [
    ('mask_ration: .5', '--mask_ration'), ('batch_size: many', '--batch_size'), ('blr: [1, 2]', '--blr'),
    ('blr: {a: 1}', 'blr'), ('mean: [1, --amp]', '--mean'), ('amp: maybe', '--amp'), ('seed: 1\n--seed: 1', 'seed'),
    ('config: x', '--config'), ('seed: !!python/object/apply:os.abort []', '--seed'), ('[' * 500, ''),
    (b'seed: \xff', ''), ('just words', ''), ('[a]: 1', ''), ('&a {b: *a}', ''), ('seed: 1\n---\nseed: 2', '')])
def test_an_error_is_one_line_with_flag_or_file(parsed, capsys, text, named):
    with pytest.raises(SystemExit) as ended:
        parsed(text)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count('\n') == 1 and (named or 'recipe.yaml') in error, error


def test_an_unreadable_file_and_missing_pyyaml_are_user_errors(monkeypatch):
    for path, module in (('/', sys.modules['yaml']), ('x', None)):
        monkeypatch.setitem(sys.modules, 'yaml', module)
        with pytest.raises(UserError, match='^--config {}: '.format(path)):
            parser.read_config(path)


@pytest.mark.compat
def test_a_tilde_is_the_home_folder_on_the_command_line_and_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'x.yaml').write_text('data_path: ~\nlog_dir: ~/log\n')
    (tmp_path / 'c.pth').write_bytes(b'')
    args = parse_finetune(['--config=~/x.yaml', '--data_path=~/', '--output_dir=~/out', '--finetune=~/c.pth',
                           '--resume=~/c.pth'])
    expected = {'config': 'x.yaml', 'data_path': '', 'output_dir': 'out', 'finetune': 'c.pth', 'resume': 'c.pth',
                'log_dir': 'log'}
    assert {name: getattr(args, name) for name in expected} == {
        name: '{}/{}'.format(tmp_path, path) for name, path in expected.items()}
    assert parser.value_of('--log_dir', ['--config=~/x.yaml']) == '~/log'
    found = predict_parser().parse_args(['--resume=~/c.pth', '--output=~/o', '--class_names=~/n', '~/i'])
    assert [found.resume, found.output, found.class_names, *found.images] == [
        '{}/{}'.format(tmp_path, name) for name in ('c.pth', 'o', 'n', 'i')]


# config.yaml

def test_config_yaml_restores_all_flags_of_a_run(tmp_path):
    odd = 'a "b" \\ \n\t#: \x7f\u2028\udc80é\U0001f600'
    args = parse_finetune(['--data_path', str(tmp_path), '--output_dir', str(tmp_path), '--addr', odd, '--blr', '1e-6',
                           '--log_dir', 'null', '--cls_token', '--no_pin_mem', '--cutmix_minmax', '.2', '.4',
                           '--freeze', '3', '--aa', 'none', '--finetune', ''])
    assert output_dir.save_flags(args, 1) == []
    again = parse_finetune(['--config', str(tmp_path / 'config.yaml')])
    assert vars(again) == {**vars(args), 'config': str(tmp_path / 'config.yaml')}


def saved(folder, *flags):
    args = parse_pretrain(['--data_path', str(folder), '--output_dir', str(folder), *map(str, flags)])
    return output_dir.save_flags(args, 4), (folder / 'config.yaml').read_text()


def test_a_file_with_other_flags_is_renamed_and_an_equal_one_is_not(tmp_path):
    assert saved(tmp_path)[0] == [] and saved(tmp_path, '--resume', 'auto')[0] == []
    asides, text = saved(tmp_path, '--seed', 2)
    assert len(asides) == 1 and 'seed: 0' in Path(asides[0]).read_text() and 'seed: 2' in text


def test_resuming_in_the_same_folder_is_not_recorded_as_a_flag(tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    for path in (tmp_path / 'checkpoint-3.pth', tmp_path / 'elsewhere' / 'x.pth'):
        path.write_bytes(b'')
    text = saved(tmp_path, '--resume', tmp_path / 'checkpoint-3.pth', '--start_epoch', 4)[1]
    assert 'resume: ""' in text and 'start_epoch: null' in text and '# Resumed by --resume ' in text
    assert 'resume: "{}"'.format(path) in saved(tmp_path, '--resume', path)[1]


def test_the_batch_size_of_an_absolute_lr_is_recorded(tmp_path):
    assert 'base_batch_size: null' in saved(tmp_path)[1]
    assert 'base_batch_size: 512' in saved(tmp_path, '--lr', 1, '--batch_size', 64, '--accum_iter', 2)[1]
    assert 'base_batch_size: 99' in saved(tmp_path, '--lr', 1, '--base_batch_size', 99)[1]


# Launchers

def test_the_file_overrides_the_launchers_recipe_and_flags_override_the_file(images, tmp_path):
    recipe = tmp_path / 'my recipe.yaml'
    recipe.write_text('blr: 1e-2\namp: false\nepochs: 3\nglobal_pool: true\n')
    run = launcher('linprobe_full_8p', '--data_path', images, '--finetune_pth', __file__, '--epochs=7', '--config',
                   recipe, DRY_RUN='1')
    words = run.output.split()
    assert run.status == 0 and not {'--blr', '--amp', '--epochs'} & set(words) and words[-1] == '--epochs=7'
    args = check_printed(run.output)[1]
    assert (args.blr, args.epochs, args.global_pool) == (1e-2, 7, True)
