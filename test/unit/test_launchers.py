"""The bash launchers: the exact command of each, their outputs, their status, and what happens on a signal."""
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import FINETUNE, PRETRAIN, ROOT, execute, launcher

PRETRAIN_BASE = 'main_pretrain.py --data_path {data} --output_dir {out} --model mae_vit_base_patch16 ' \
                '--batch_size 256 --blr 3e-4 --norm_pix_loss --amp'
FINETUNE_BASE = 'main_finetune.py --data_path {data} --output_dir {out} --model vit_base_patch16 --batch_size 256 ' \
                '--blr 10e-4 --layer_decay 0.65 --mixup 0.8 --cutmix 1.0 --dist_eval --amp'
FINETUNE_LARGE = 'main_finetune.py --data_path {data} --output_dir {out} --model vit_large_patch16 --batch_size 128 ' \
                 '--blr 1e-3 --layer_decay 0.65 --drop_path 0.2 --mixup 0.8 --cutmix 1.0 --dist_eval --amp ' \
                 '--loss_scale 2048'
EIGHT = 'util/launch.py --devices 8 {root}'

LAUNCHERS = {
    'pretrain_performance_1p': ('output_pretrain_1p', [], PRETRAIN_BASE + ' --epochs 1'),
    'pretrain_performance_8p': ('output_pretrain_8p', [], EIGHT + PRETRAIN_BASE + ' --epochs 1'),
    'pretrain_full_8p': ('output_pretrain_full_8p', [], EIGHT + PRETRAIN_BASE + ' --epochs 400'),
    'finetune_performance_1p': ('output_finetune_1p', ['--finetune_pth={pth}'],
                                FINETUNE_BASE + ' --blr 5e-4 --epochs 1 --finetune {pth}'),
    'finetune_performance_8p': ('output_finetune_8p', ['--finetune_pth={pth}'],
                                EIGHT + FINETUNE_BASE + ' --epochs 1 --finetune {pth}'),
    'finetune_full_8p': ('output_finetune_full_8p', ['--finetune_pth={pth}'],
                         EIGHT + FINETUNE_BASE + ' --epochs 100 --finetune {pth}'),
    'finetune_performance_large_8p': ('output_finetune_large_8p', ['--finetune_pth={pth}'],
                                      EIGHT + FINETUNE_LARGE + ' --epochs 1 --finetune {pth}'),
    'finetune_full_large_8p': ('output_finetune_full_large_8p', ['--finetune_pth={pth}'],
                               EIGHT + FINETUNE_LARGE + ' --epochs 50 --finetune {pth}'),
    'finetune_full_large_16p': ('output_finetune_full_large_16p',
                                ['--finetune_pth={pth}', '--node_rank=1', '--master_addr=10.0.0.1'],
                                'util/launch.py --devices 8 --nnodes 2 --node_rank 1 --master_addr 10.0.0.1 {root}'
                                + FINETUNE_LARGE + ' --epochs 50 --finetune {pth}'),
    'finetune_eval_8p': ('output_finetune_eval_8p', ['--resume_pth={pth}'],
                         EIGHT + 'main_finetune.py --data_path {data} --output_dir {out} --eval '
                         '--model vit_base_patch16 --batch_size 256 --dist_eval --amp --resume {pth}'),
}
LOGS = {
    'pretrain_performance_1p': '910A_1p_pretrain.log', 'pretrain_performance_8p': '910A_8p_pretrain.log',
    'pretrain_full_8p': '910A_8p_pretrain_full.log', 'finetune_performance_1p': '910A_1p_finetune.log',
    'finetune_performance_8p': '910A_8p_finetune.log', 'finetune_full_8p': '910A_8p_finetune_full.log',
    'finetune_performance_large_8p': '910B_8p_finetune_large.log',
    'finetune_full_large_8p': '910B_8p_finetune_full_large.log',
    'finetune_full_large_16p': '910B_16p_finetune_full_large.log', 'finetune_eval_8p': '910A_8p_finetune_eval.log'}


@pytest.fixture
def pth(tmp_path):
    path = tmp_path / 'weights.pth'
    path.write_bytes(b'')
    return path


def dry_run(name, images, *flags, **environ):
    run = launcher(name, '--data_path=' + str(images), *flags, DRY_RUN='1', **environ)
    assert run.status == 0, run.output
    return run.output.strip()


@pytest.mark.parametrize('name', LAUNCHERS)
def test_a_launcher_runs_exactly_its_documented_command(images, pth, name):
    folder, flags, command = LAUNCHERS[name]
    places = {'data': images, 'out': ROOT / folder, 'pth': pth, 'root': str(ROOT) + '/'}
    expected = '{} {}/{}'.format(sys.executable, ROOT, command).format(**places)
    assert dry_run(name, images, *[flag.format(**places) for flag in flags]) == expected
    text = (ROOT / 'test' / (name + '.sh')).read_text()
    assert re.search(r'^output +{}/{}$'.format(folder, LOGS[name]), text, re.M)


def test_there_are_ten_launchers_and_each_is_pinned():
    scripts = {path.stem for path in ROOT.glob('test/*.sh')} - {'demo', 'check'}
    assert scripts == set(LAUNCHERS) == set(LOGS) and len(scripts) == 10


def test_values_may_follow_a_space_and_other_flags_come_last_so_that_they_win(images):
    command = dry_run('pretrain_performance_1p', images, '--batch_size=64', '--output_dir', '/tmp/x y', '--epochs', 3)
    assert command.endswith(r'--output_dir /tmp/x\ y --model mae_vit_base_patch16 --batch_size 256 --blr 3e-4 '
                            '--norm_pix_loss --amp --epochs 1 --batch_size=64 --epochs 3')


def test_nproc_overrides_the_number_of_devices(images):
    assert 'util/launch.py --nproc 2 ' in dry_run('pretrain_performance_8p', images, '--nproc=2')
    assert 'util/launch.py' not in dry_run('pretrain_performance_8p', images, '--nproc=1')
    assert 'util/launch.py --nproc 4 ' in dry_run('pretrain_performance_1p', images, '--nproc', 4)


def test_nodes_come_from_the_environment_too(images, pth):
    command = dry_run('finetune_full_large_16p', images, '--finetune_pth', pth, NODE_RANK='0', MASTER_ADDR='n1',
                      MASTER_PORT='1234')
    assert '--devices 8 --nnodes 2 --node_rank 0 --master_addr n1 --master_port 1234 ' in command


def one_line(run, words):
    assert (run.status, run.output.count('\n')) == (2, 1) and re.search(words, run.output), run.output


def test_two_nodes_without_their_names_are_asked_for(images, pth):
    one_line(launcher('finetune_full_large_16p', '--data_path', images, '--finetune_pth', pth, MASTER_ADDR=''),
             '2 nodes: give --node_rank=0 .* --master_addr=ADDRESS')


@pytest.mark.parametrize('name, flags, words', [
    ('pretrain_performance_1p', [], '--data_path=... is required'),
    ('pretrain_performance_1p', ['--data_path=/no/where'], '--data_path: /no/where is not a folder'),
    ('pretrain_performance_1p', ['--data_path'], '--data_path: give a value'),
    ('pretrain_performance_1p', ['--data_path=/', '--nproc=two'], '--nproc: two is not a positive number'),
    ('finetune_full_8p', ['--data_path=/'], '--finetune_pth=... is required'),
    ('finetune_full_8p', ['--data_path=/', '--finetune_pth=/no.pth'], '--finetune_pth: /no.pth is not a file'),
    ('pretrain_full_8p', ['--data_path=/', '--finetune_pth=x'], '--finetune_pth: pre-training takes none'),
    ('finetune_eval_8p', ['--data_path=/'], '--resume_pth=... is required')])
def test_a_wrong_parameter_is_one_line_that_names_it(name, flags, words):
    one_line(launcher(name, *flags), words)


@pytest.mark.slow
def test_fewer_devices_than_asked_is_one_line_that_names_nproc(images, tmp_path):
    run = launcher('pretrain_performance_8p', '--data_path', images, '--output_dir', tmp_path / 'o', '--device=cpu')
    one_line(run, r'8 devices asked, but this runs on the CPU .* pass --nproc=N')
    assert (tmp_path / 'o' / LOGS['pretrain_performance_8p']).read_text() == run.output


@pytest.mark.slow
def test_a_mistake_that_all_processes_make_is_said_once(images, tmp_path):
    run = launcher('pretrain_performance_8p', '--nproc=2', '--data_path', images, '--output_dir', tmp_path, *PRETRAIN,
                   '--batch_size=30')
    errors = [line for line in run.output.splitlines() if 'error' in line.lower()]
    assert run.status == 2 and len(errors) == 1, run.output
    assert errors[0].startswith('error: --batch_size 30: the training set has 32 images for 2 processes')


def test_help_tells_what_the_launcher_is_and_takes():
    run = launcher('finetune_full_8p', '--help')
    assert run.status == 0 and run.output.startswith('ViT-B/16 fine-tuning on 8 devices, 100 epochs')
    assert '--finetune_pth=FILE' in run.output and '--node_rank' in run.output


def test_paths_with_spaces_quotes_and_dollars_arrive_whole(images, tmp_path):
    strange = tmp_path / 'it\'s "a" $(touch ran) folder'
    os.symlink(str(images), str(strange))
    out = tmp_path / 'out put'
    run = launcher('pretrain_performance_1p', '--data_path=' + str(strange), '--output_dir=' + str(out), *PRETRAIN)
    assert run.status == 0, run.output
    assert (out / LOGS['pretrain_performance_1p']).read_text() == run.output
    assert not (tmp_path / 'ran').exists() and not (ROOT / 'ran').exists()


def test_a_relative_data_path_counts_from_where_the_user_stands(images, tmp_path):
    run = subprocess.run(['bash', str(ROOT / 'test' / 'pretrain_performance_1p.sh'), '--data_path=' + images.name,
                          '--output_dir=here', *PRETRAIN], cwd=str(images.parent), stdout=subprocess.PIPE,
                         env={**os.environ, 'PYTHON': sys.executable})
    assert run.returncode == 0 and (images.parent / 'here' / 'log.txt').exists()


def test_a_failing_run_is_the_launchers_status(images, tmp_path):
    one_line(launcher('finetune_performance_1p', '--data_path', images, '--finetune_pth', images / 'val', *FINETUNE),
             'is not a file')
    broken = tmp_path / 'broken.pth'
    broken.write_bytes(b'nothing')
    run = launcher('finetune_performance_1p', '--data_path', images, '--finetune_pth', broken, '--output_dir',
                   tmp_path / 'o', *FINETUNE)
    assert run.status == 2 and run.output.splitlines()[-1].startswith('error: {}: not a readable'.format(broken))


def test_a_second_run_sets_the_first_aside_and_mixes_nothing(images, tmp_path):
    out = tmp_path / 'o'
    for _ in range(2):
        assert launcher('pretrain_performance_1p', '--data_path', images, '--output_dir', out, *PRETRAIN).status == 0
    folders = [out] + [path for path in tmp_path.iterdir() if path.name.startswith('o.')]
    assert len(folders) == 2
    for folder in folders:
        assert (folder / 'log.txt').read_text().count('\n') == 1
        assert (folder / LOGS['pretrain_performance_1p']).read_text().count('Final result') == 1
        assert (folder / 'checkpoint-0.pth').exists()


def processes_with(text):
    """Command lines of all living processes of this machine that hold `text`."""
    found = []
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            found.append(path.read_bytes().replace(b'\0', b' ').decode(errors='replace'))
        except OSError:
            pass        # it ended meanwhile
    return [line for line in found if text in line]


@pytest.mark.slow
@pytest.mark.parametrize('nproc', [1, 2])
@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launcher_ends_every_process(images, tmp_path, nproc, signum):
    command = ['bash', str(ROOT / 'test' / 'pretrain_performance_8p.sh'), '--nproc={}'.format(nproc), '--data_path',
               str(images), '--output_dir', str(tmp_path / 'signalled'), *PRETRAIN, '--epochs', '100000']
    # Whoever started the tests may ignore SIGINT, which a shell could then not trap; on a terminal nobody does.
    running = subprocess.Popen(command, env={**os.environ, 'PYTHON': sys.executable}, stdout=subprocess.DEVNULL,
                               start_new_session=True, preexec_fn=lambda: signal.signal(signum, signal.SIG_DFL))
    log = tmp_path / 'signalled' / 'log.txt'
    deadline = time.time() + 120
    while not log.exists() and time.time() < deadline:
        time.sleep(.2)
    assert log.exists()
    running.send_signal(signum)
    assert running.wait(timeout=60) != 0
    deadline = time.time() + 20
    while processes_with(str(tmp_path / 'signalled')) and time.time() < deadline:
        time.sleep(.2)
    assert not processes_with(str(tmp_path / 'signalled'))


FAILING = '''
import os, sys, time
if os.environ['RANK'] == '1':
    sys.exit(7)
time.sleep(60)
'''


@pytest.mark.slow
@pytest.mark.parametrize('supervisor', ['torch.distributed.run', 'ours'])
def test_one_failing_process_ends_the_others_and_names_itself(tmp_path, supervisor):
    script = tmp_path / 'failing.py'
    script.write_text(FAILING)
    if supervisor == 'ours':        # what older PyTorch generations get
        code = 'import sys; from util.launch import supervise; '
        command = [sys.executable, '-c', code + 'sys.exit(supervise(sys.argv[1:], 3, 1, 0, "127.0.0.1", 1))', script]
    else:
        pytest.importorskip('torch.distributed.run', reason='this torch has no torch.distributed.run')
        command = [sys.executable, ROOT / 'util' / 'launch.py', '--nproc', 3, script]
    begun = time.time()
    run = execute(command)
    assert run.status == 7 and time.time() - begun < 50
    assert run.output.splitlines()[-1] == 'error: process 1 ended with status 7; the others were stopped'
    assert 'Traceback' not in run.output
    assert not processes_with(str(script))
