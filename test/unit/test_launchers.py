"""The bash launchers: the exact command of each, their outputs, their status, and what happens on a signal."""
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PRETRAIN, ROOT, environment, execute, launcher, python, signal_when_trapped, slow_kill

from util.launch import free_port

PRETRAIN_BASE = 'main_pretrain.py --data_path {data} --output_dir {out} --model mae_vit_base_patch16 ' \
                '--batch_size 256 --blr 3e-4 --norm_pix_loss --amp'
FINETUNE_BASE = 'main_finetune.py --data_path {data} --output_dir {out} --model vit_base_patch16 --batch_size 256 ' \
                '--blr 10e-4 --layer_decay 0.65 --mixup 0.8 --cutmix 1.0 --dist_eval --amp'
FINETUNE_LARGE = 'main_finetune.py --data_path {data} --output_dir {out} --model vit_large_patch16 --batch_size 128 ' \
                 '--blr 1e-3 --layer_decay 0.65 --drop_path 0.2 --mixup 0.8 --cutmix 1.0 --dist_eval --amp ' \
                 '--loss_scale 2048'
LINPROBE_BASE = 'main_linprobe.py --data_path {data} --output_dir {out} --model vit_base_patch16 ' \
                '--batch_size 512 --accum_iter 4 --blr 0.1 --weight_decay 0 --dist_eval --amp'
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
    'linprobe_full_8p': ('output_linprobe_full_8p', ['--finetune_pth={pth}'],
                         EIGHT + LINPROBE_BASE + ' --epochs 90 --finetune {pth}'),
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
    'finetune_full_large_16p': '910B_16p_finetune_full_large.log', 'finetune_eval_8p': '910A_8p_finetune_eval.log',
    'linprobe_full_8p': '910A_8p_linprobe_full.log'}


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
    expected = '{} {}/{}'.format(python(), ROOT, command).format(**places)
    assert dry_run(name, images, *[flag.format(**places) for flag in flags]) == expected
    text = (ROOT / 'test' / (name + '.sh')).read_text()
    assert re.search(r'^output +{}/{}$'.format(folder, LOGS[name]), text, re.M)


def test_each_launcher_is_pinned():
    assert {path.stem for path in ROOT.glob('test/*.sh')} - {'demo', 'check', 'cifar10_1p'} == set(LAUNCHERS)


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


@pytest.mark.parametrize('name, flags, named', [
    ('pretrain_performance_1p', [], '--data_path'),
    ('pretrain_performance_1p', ['--data_path=/no/where'], '--data_path: /no/where'),
    ('pretrain_performance_1p', ['--data_path'], '--data_path'),
    ('pretrain_performance_1p', ['--data_path=/', '--nproc=two'], '--nproc: two'),
    ('pretrain_performance_1p', ['--data_path=/', '--max_restarts=-1'], '--max_restarts: -1'),
    ('finetune_full_large_16p', ['--data_path=/', '--finetune_pth=' + __file__], '--node_rank=0 .* --master_addr'),
    ('finetune_full_8p', ['--data_path=/', '--finetune_pth=/no.pth'], '--finetune_pth: /no.pth'),
    ('pretrain_full_8p', ['--data_path=/', '--finetune_pth=x'], '--finetune_pth'),
    ('finetune_eval_8p', ['--data_path=/'], '--resume_pth'),
    ('pretrain_performance_8p', ['--data_path=' + str(ROOT), '--output_dir={tmp}', '--device=cpu'], '--nproc')])
def test_a_wrong_parameter_is_one_line_that_names_it(tmp_path, name, flags, named):
    run = launcher(name, *[flag.format(tmp=tmp_path) for flag in flags])
    assert (run.status, run.output.count('\n')) == (2, 1) and re.search(named, run.output), run.output


@pytest.mark.slow
@pytest.mark.compat
@pytest.mark.parametrize('flag', ['--batch_size=30', '--epochs=0'])     # found after the signals are taken, and before
def test_a_mistake_that_all_processes_make_is_said_once(images, tmp_path, flag):
    run = launcher('pretrain_performance_8p', '--nproc=2', '--data_path', images, '--output_dir', tmp_path, *PRETRAIN,
                   flag)
    error, = [line for line in run.output.splitlines() if 'error' in line.lower()]
    assert run.status == 2 and flag.split('=')[0] in error


def test_help_tells_what_the_launcher_takes():
    run = launcher('finetune_full_8p', '--help')
    assert run.status == 0 and '--finetune_pth=FILE' in run.output


@pytest.mark.compat
def test_relative_paths_with_spaces_quotes_and_dollars_arrive_whole(images, tmp_path):
    strange = 'it\'s "a" $(touch ran) folder'
    os.symlink(str(images), str(tmp_path / strange))
    run = subprocess.run(['bash', str(ROOT / 'test' / 'pretrain_performance_1p.sh'), '--data_path=' + strange,
                          '--output_dir=out put', *PRETRAIN], cwd=str(tmp_path), stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, env=environment(PYTHON=python()))
    assert run.returncode == 0, run.stdout
    assert (tmp_path / 'out put' / LOGS['pretrain_performance_1p']).read_bytes() == run.stdout
    assert not (tmp_path / 'ran').exists() and not (ROOT / 'ran').exists()


def test_a_failing_run_is_the_launchers_status(images, tmp_path):
    broken = tmp_path / 'broken.pth'
    broken.write_bytes(b'nothing')
    run = launcher('finetune_performance_1p', '--data_path', images, '--finetune_pth', broken, '--output_dir',
                   tmp_path / 'o', *PRETRAIN[2:], '--model', 'vit_nano_patch16')
    assert run.status == 2 and str(broken) in run.output.splitlines()[-1]


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


def all_gone(text):
    """Whether no process with `text` is left within 20 s; loader processes notice the end of theirs within seconds."""
    deadline = time.monotonic() + 20
    while processes_with(text) and time.monotonic() < deadline:
        time.sleep(.2)
    return not processes_with(text)


def wait_for(path, process):
    """Wait for a file of a process that lives."""
    while not path.exists():
        assert process.poll() is None
        time.sleep(.1)


@pytest.fixture
def long_run(images, tmp_path):
    """Starts a launcher of bash that trains almost for ever; gives its process and output folder once it trains."""
    started = []

    def start(nproc, **options):
        folder = tmp_path / 'out'
        started.append(subprocess.Popen(
            ['bash', str(ROOT / 'test' / 'pretrain_performance_8p.sh'), '--nproc={}'.format(nproc), '--data_path',
             str(images), '--output_dir', str(folder), *PRETRAIN, '--epochs', '100000', '--num_workers', '1'],
            env={**os.environ, 'PYTHON': sys.executable}, stdout=subprocess.DEVNULL, **options))
        wait_for(folder / 'log.txt', started[0])
        return started[0], folder
    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.compat
@pytest.mark.parametrize('nproc, signum, whole_group', [
    (2, signal.SIGINT, True), (2, signal.SIGTERM, False), (1, signal.SIGUSR1, False)])
def test_a_signal_to_the_launcher_stops_all_processes_saved(long_run, nproc, signum, whole_group):
    # Whoever started the tests may ignore SIGINT, which a shell could then not trap; on a terminal nobody does.
    process, folder = long_run(nproc, start_new_session=True,
                               preexec_fn=lambda: signal.signal(signum, signal.SIG_DFL))
    if whole_group:                                                 # as Ctrl-C on a terminal, or a batch system
        os.killpg(process.pid, signum)
    else:
        process.send_signal(signum)
    status, log = process.wait(timeout=60), (folder / LOGS['pretrain_performance_8p']).read_text()
    assert status == 75 and 'Traceback' not in log, log
    assert (folder / re.findall(r'(checkpoint-\S+) is saved', log)[-1]).exists() and all_gone(str(folder))


@pytest.mark.slow
@pytest.mark.compat
@pytest.mark.parametrize('nproc', [1, 2])
def test_a_launcher_that_is_killed_leaves_nobody_running_and_nothing_unsaved(long_run, nproc):
    process, folder = long_run(nproc)
    process.kill()
    process.wait()
    assert all_gone(str(folder))
    log = (folder / LOGS['pretrain_performance_8p']).read_text()
    assert 'Traceback' not in log and (folder / re.findall(r'(checkpoint-\S+) is saved', log)[-1]).exists()


@pytest.mark.parametrize('pause', [0, .5], ids=['at_work', 'ended_before_the_shell_looks'])
def test_a_run_that_ends_at_a_signal_keeps_its_status(tmp_path, pause):
    script = 'trap "exit 75" USR1; echo at work; for ((i = 0; i < 600; i++)); do sleep .1; done'
    running = subprocess.Popen(
        ['bash', '-c', 'source "$0"; COMMAND=(bash -c "$1"); run_logged "$2"', str(ROOT / 'test' / 'lib' / 'launch.sh'),
         script, str(tmp_path / 'log')], env={**os.environ, **slow_kill(pause)}, stdout=subprocess.PIPE)
    assert running.stdout.readline() == b'at work\n'
    signal_when_trapped(running, signal.SIGUSR1)
    assert running.wait(timeout=60) == 75 and (tmp_path / 'log').read_text() == 'at work\n'


def by(supervisor, *words):
    """util/launch.py with torchrun, or with the supervisor that older generations get."""
    if supervisor == 'torchrun':
        pytest.importorskip('torch.distributed.run', reason='this torch has no torch.distributed.run')
        return [sys.executable, ROOT / 'util' / 'launch.py', *words]
    code = "import sys; sys.modules['torch.distributed.run'] = None; from util import launch; launch.main(sys.argv[1:])"
    return [sys.executable, '-c', code, *words]


both = pytest.mark.parametrize('supervisor', ['torchrun', 'ours'])

FAILING = """
import os, signal, sys, time
exec(sys.argv[1 + int(os.environ['RANK'])])
"""


@pytest.mark.slow
@pytest.mark.compat
@pytest.mark.parametrize('supervisor, waits, fails, status', [
    ('torchrun', 'signal.sigwait([signal.SIGTERM])', 'os.kill(os.getpid(), 9)', 137),
    ('ours', 'time.sleep(100)', 'sys.exit(7)', 7)])             # deaf to SIGTERM, which is blocked
def test_one_failing_process_ends_even_stubborn_others_and_is_named(tmp_path, supervisor, waits, fails, status):
    script = tmp_path / 'failing.py'
    script.write_text(FAILING)
    run = execute(by(supervisor, '--nproc', 2, script, waits, fails))
    assert run.status == status and run.output.count('\n') == 1 and 'process 1 ' in run.output, run.output
    assert not processes_with(str(script))


FLAKY = """
import os, sys, time
from pathlib import Path
folder = Path(sys.argv[sys.argv.index('--output_dir') + 1])
attempts = folder / ('attempts-' + os.environ['RANK'])
attempts.write_text((attempts.read_text() if attempts.exists() else '') + ' '.join(sys.argv[3:]) + ';')
number = attempts.read_text().count(';')
if os.environ['RANK'] == '0' and number == 2:
    (folder / 'checkpoint-0.pth').write_bytes(b'')
if number <= int(sys.argv[1]):
    time.sleep(1)
    os._exit(int(sys.argv[2]))
"""


def flaky(supervisor, folder, failures, status, *flags):
    """(run, how often it was tried, with which flags) of two processes that fail at first."""
    script = folder / 'flaky.py'
    script.write_text(FLAKY)
    run = execute(by(supervisor, '--nproc', 2, *flags, script, failures, status, '--output_dir', folder))
    return run, (folder / 'attempts-0').read_text().split(';')[:-1]


@pytest.mark.slow
@pytest.mark.compat
@both
def test_a_failed_run_is_restarted_from_its_checkpoint_as_soon_as_it_has_one(tmp_path, supervisor):
    run, attempts = flaky(supervisor, tmp_path, 2, 70, '--max_restarts', 3)
    assert run.status == 0, run.output
    assert [attempt.replace(str(tmp_path), 'o') for attempt in attempts] == [
        '--output_dir o', '--output_dir o', '--output_dir o --resume auto']


@pytest.mark.slow
@pytest.mark.compat
@pytest.mark.parametrize('supervisor, status, restarts', [
    ('torchrun', 2, 5), ('torchrun', 75, 5), ('torchrun', 74, 5), ('ours', 75, 5), ('ours', 9, 0)])
def test_what_a_restart_cannot_mend_is_not_restarted(tmp_path, supervisor, status, restarts):
    run, attempts = flaky(supervisor, tmp_path, 9, status, '--max_restarts', restarts)
    assert run.status == status and len(attempts) == 1, run.output


STUBBORN = """
import signal, sys, time
open(sys.argv[1], 'w').close()
signal.sigwait([signal.SIGUSR1])
open(sys.argv[1] + '-told', 'w').close()
time.sleep(100)
"""


@pytest.mark.slow
@pytest.mark.compat
@both
def test_processes_that_take_longer_than_the_stop_timeout_are_killed(tmp_path, supervisor):
    script, ready = tmp_path / 'stubborn.py', tmp_path / 'ready'
    script.write_text(STUBBORN)
    command = by(supervisor, '--nproc', 1, '--stop_timeout', 1, '--max_restarts', 2, script, ready)
    running = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for(ready, running)
    running.send_signal(signal.SIGUSR1)
    output = running.communicate(timeout=60)[0].decode()
    assert running.returncode == 137 and '--stop_timeout' in output and output.count('\n') == 1, output
    assert (tmp_path / 'ready-told').exists() and not processes_with(str(script))


@pytest.mark.compat
def test_a_signal_while_other_nodes_are_waited_for_ends_the_launcher_at_once():
    running = subprocess.Popen([str(word) for word in by(
        'torchrun', '--nproc', 1, '--nnodes', 2, '--master_port', free_port(), ROOT / 'main_pretrain.py')])
    time.sleep(1)
    signal_when_trapped(running, signal.SIGTERM)
    assert running.wait(timeout=60) == 75


def test_restarts_and_patience_reach_the_command(images):
    command = dry_run('pretrain_performance_1p', images, '--max_restarts=3', '--stop_timeout', 60)
    assert 'util/launch.py --devices 1 --max_restarts 3 --stop_timeout 60 ' in command
