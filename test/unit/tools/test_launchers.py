"""Launchers: commands, output folders, exit statuses, signals, restarts."""
import os
import re
import signal
import subprocess
import sys
import time
from itertools import count
from types import SimpleNamespace

import pytest
from conftest import PRETRAIN, ROOT, TIMEOUT, environment, execute, launcher, signal_when_trapped, slow_kill, succeeded
from test_baseline import RECORD

from util.tools import launch

# {launcher: name of its log}
LOGS = {path.stem: log for path in ROOT.glob('test/*.sh')
        for log in re.findall(r'^output +\S+/(\S+)$', path.read_text(), re.M)}


def dry_run(name, images, *flags):
    return succeeded(launcher(name, '--data_path=' + str(images), *flags, DRY_RUN='1')).strip()


def test_each_launcher_has_a_recorded_command_and_an_output_folder(images):
    """test_baseline.py compares the commands with the records."""
    assert set(LOGS) == set(RECORD['dry run']) - {'cifar10_1p'}
    folder = ROOT / 'output_pretrain_full_8p'
    assert ' --output_dir {} '.format(folder) in dry_run('pretrain_full_8p', images)


def test_values_may_follow_a_space_and_other_flags_come_last_so_that_they_win(images):
    command = dry_run('pretrain_performance_1p', images, '--batch_size=64', '--output_dir', '/tmp/x y', '--epochs', 3)
    assert r' --output_dir /tmp/x\ y ' in command and command.endswith(' --epochs 1 --batch_size=64 --epochs 3')


def test_nproc_overrides_the_number_of_devices(images):
    assert 'util/tools/launch.py --nproc 2 ' in dry_run('pretrain_performance_8p', images, '--nproc=2')
    assert 'util/tools/launch.py' not in dry_run('pretrain_performance_8p', images, '--nproc=1')
    assert 'util/tools/launch.py --nproc 4 ' in dry_run('pretrain_performance_1p', images, '--nproc', 4)
    assert 'util/tools/launch.py --devices 1 --max_restarts 3 --stop_timeout 60 ' \
        in dry_run('pretrain_performance_1p', images, '--max_restarts=3', '--stop_timeout', 60)


@pytest.mark.parametrize('name, flags, named', [
    ('pretrain_performance_1p', [], '--data_path'),
    ('pretrain_performance_1p', ['--data_path=/no/where'], '--data_path: /no/where'),
    ('pretrain_performance_1p', ['--data_path=/', '--output_dir=/dev/null/o'], '--output_dir'),
    ('pretrain_performance_1p', ['--data_path=/', '--max_restarts=-1'], '--max_restarts: -1'),
    ('pretrain_performance_1p', ['--data_path=/', '--nproc=18446744073709551617'], '--nproc: '),     # 2 ** 64 + 1
    ('finetune_full_large_16p', ['--data_path=/', '--finetune_pth=' + __file__], '--node_rank=0 .* --master_addr'),
    *(('pretrain_full_8p', ['--data_path=/', '--nnodes=2', '--master_addr=n', '--node_rank=' + rank], '--node_rank')
      for rank in ('-1', '2')),
    ('pretrain_full_8p', ['--data_path=/', '--master_port=x'], '--master_port: x'),
    ('finetune_full_8p', ['--data_path=/', '--finetune_pth=/no.pth'], '--finetune_pth: /no.pth'),
    ('pretrain_full_8p', ['--data_path=/', '--finetune_pth=x'], '--finetune_pth'),
    ('finetune_eval_8p', ['--data_path=/'], '--resume_pth'),
    ('pretrain_performance_8p', ['--data_path=' + str(ROOT), '--device=cpu'], '--nproc')])
def test_a_wrong_parameter_is_one_line_that_names_it(tmp_path, name, flags, named):
    run = launcher(name, '--output_dir', tmp_path, *flags)
    assert (run.status, run.output.count('\n')) == (2, 1) and re.search(named, run.output), run.output


@pytest.mark.slow
@pytest.mark.compat
def test_a_mistake_of_all_processes_is_reported_once(images, tmp_path):
    run = launcher('pretrain_performance_8p', '--nproc=2', '--data_path', images, '--output_dir', tmp_path, *PRETRAIN,
                   '--batch_size=30')
    error, = [line for line in run.output.splitlines() if 'error' in line.lower()]
    assert run.status == 2 and '--batch_size' in error


def test_a_tilde_is_the_home_folder(images, tmp_path):
    os.symlink(str(images), str(tmp_path / 'data'))
    run = launcher('pretrain_full_8p', '--data_path=~/data', '--output_dir=~/o', DRY_RUN='1', HOME=str(tmp_path))
    assert ' --data_path {0}/data --output_dir {0}/o '.format(tmp_path) in run.output, run.output


@pytest.mark.parametrize('name', ['pretrain_full_8p', 'cifar10_1p', 'demo', 'check'])
def test_a_shell_that_is_not_bash_is_one_line_and_sh_may_be_bash(name):
    script = str(ROOT / 'test' / (name + '.sh'))
    if not subprocess.run(['sh', '-c', 'test -n "$BASH_VERSION"']).returncode:
        pytest.skip('sh is bash')
    run = execute(['sh', script, '--help'])
    assert (run.status, run.output.count('\n')) == (2, 1) and 'bash ' + script in run.output
    assert execute(['bash', '--posix', script, '--help']).status == 0


@pytest.mark.parametrize('entry', ['main_pretrain', 'util.tools.export'])
def test_an_interpreter_without_torch_is_one_line_that_names_one_with_it(tmp_path, entry):
    (tmp_path / 'env-2.x-0').mkdir()
    (tmp_path / 'env-2.x-0' / 'complete').write_text('')
    code = 'import runpy, sys; sys.modules["torch"] = None; runpy.run_module("{}", None, "__main__")'.format(entry)
    run = execute([sys.executable, '-c', code, '--data_path', tmp_path], MAE_CACHE=str(tmp_path))
    assert (run.status, run.output.count('\n')) == (2, 1), run.output
    assert 'torch' in run.output and str(tmp_path / 'env-2.x-0/bin/python') in run.output


@pytest.mark.parametrize('words, named', [
    (['--nproc', '2'], 'script'), (['--node_rank', '2', '--nnodes', '2', 'x.py'], '--node_rank 2'),
    (['--master_port', '65536', 'x.py'], '--master_port'), (['--master_port', 'x', 'x.py'], '--master_port')])
def test_wrong_flags_of_the_python_launcher_are_refused(capsys, words, named):
    with pytest.raises(SystemExit) as ended:
        launch.parse(words)
    assert ended.value.code == 2 and named in capsys.readouterr().err


def all_exited(text):
    """Whether all processes with `text` in their command lines exit in two minutes; loader processes take seconds."""
    for _ in range(600):
        if subprocess.run('grep -qasFf - /proc/[0-9]*/cmdline', shell=True, input=text.encode()).returncode:
            return True
        time.sleep(.2)
    return False


def wait_for(path, process):
    """Wait for a file written by a running process."""
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(.05)


@pytest.mark.slow
@pytest.mark.compat
@pytest.mark.parametrize('end, nproc, status', [
    (lambda pid: os.killpg(pid, signal.SIGINT), 2, 75),         # Ctrl-C, as a terminal or a batch system sends it
    *((lambda pid: os.kill(pid, signal.SIGKILL), nproc, -signal.SIGKILL) for nproc in (1, 2))])
def test_the_processes_of_a_stopped_or_killed_launcher_save_and_exit(images, tmp_path, end, nproc, status):
    folder = tmp_path / 'out'
    process = subprocess.Popen(         # if the test process ignores SIGINT, a shell cannot trap it
        ['bash', str(ROOT / 'test' / 'pretrain_performance_8p.sh'), '--nproc={}'.format(nproc), '--data_path',
         str(images), '--output_dir', str(folder), *PRETRAIN, '--epochs', '100000', '--num_workers', '1'],
        env=environment(PYTHON=sys.executable), stdout=subprocess.DEVNULL, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        wait_for(folder / 'log.txt', process)
        end(process.pid)
        assert process.wait(timeout=TIMEOUT) == status and all_exited(str(folder))
    finally:
        process.kill()
        process.wait()
    log = (folder / LOGS['pretrain_performance_8p']).read_text()
    saved = re.findall(r'(checkpoint-\S+) is saved', log)
    assert 'Traceback' not in log and saved and (folder / saved[-1]).exists(), log


def test_a_run_that_exits_before_the_signalling_shell_waits_keeps_its_status(tmp_path):
    script = 'trap "exit 75" RTMIN+10; echo at work; for ((i = 0; i < 600; i++)); do sleep .1; done'
    running = subprocess.Popen(
        ['bash', '-c', 'source "$0"; COMMAND=(bash -c "$1"); run_logged "$2"', str(ROOT / 'test' / 'lib' / 'launch.sh'),
         script, str(tmp_path / 'log')], env={**os.environ, **slow_kill(.5)}, stdout=subprocess.PIPE)
    assert running.stdout.readline() == b'at work\n'
    signal_when_trapped(running, signal.SIGUSR1)
    assert running.wait(timeout=TIMEOUT) == 75 and (tmp_path / 'log').read_text() == 'at work\n'


def supervised(*words):
    """util/tools/launch.py."""
    return [sys.executable, ROOT / 'util' / 'tools' / 'launch.py', *words]


FAILING = """
import os, signal, sys, time
exec(sys.argv[1 + int(os.environ['RANK'])])
"""


@pytest.mark.slow
@pytest.mark.compat
def test_a_failed_rank_is_named_and_ends_the_others(tmp_path):
    script = tmp_path / 'failing.py'
    script.write_text(FAILING)
    run = execute(supervised('--nproc', 2, script, 'signal.sigwait([signal.SIGTERM])', 'os.kill(os.getpid(), 9)'))
    assert run.status == 137 and run.output.count('\n') == 1 and 'rank 1 ' in run.output, run.output
    assert all_exited(str(script))


@pytest.mark.compat
def test_processes_that_ignore_the_signal_to_end_are_killed(tmp_path, monkeypatch):
    script, clock = tmp_path / 'failing.py', count(0, 100)          # the time to end passes at once
    script.write_text(FAILING)
    monkeypatch.setattr(launch, 'time', SimpleNamespace(monotonic=clock.__next__, sleep=time.sleep))
    waits, fails = 'signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)', 'sys.exit(7)'
    flags, _ = launch.parse(['--nproc', '2', str(script)])
    no_signals = SimpleNamespace(received=False, forward=lambda workers: None)
    assert launch.run_once(flags, [str(script), waits, fails], 2, launch.DEFAULT_PORT, no_signals) == 7
    assert all_exited(str(script))


# test_resume.py restarts a run of two nodes.
@pytest.mark.compat
@pytest.mark.parametrize('status, restarts', [(70, 3), (1, 3), (0, 0), (2, 0), (74, 0), (75, 0)])
def test_only_failures_that_may_not_recur_are_restarted(monkeypatch, status, restarts):
    attempts = []
    monkeypatch.setattr(launch, 'run_once', lambda *_: attempts.append(1) or status)
    monkeypatch.setattr(launch, 'SignalForwarder', lambda _: SimpleNamespace(received=False))
    monkeypatch.setattr(launch, 'time', SimpleNamespace(monotonic=count(0, 100).__next__, sleep=time.sleep))
    for name in ('MAE_ENTERED', 'MAE_RESTART'):
        monkeypatch.setenv(name, '')
    with pytest.raises(SystemExit) as ended:
        launch.main(['--nproc', '1', '--max_restarts', '3', 'x.py'])
    assert ended.value.code == status and len(attempts) == 1 + restarts


@pytest.mark.parametrize('node', [0, 1])
def test_other_nodes_log_their_start_and_end(monkeypatch, capsys, node):
    monkeypatch.setattr(launch, '_attempts', lambda *_: 70)
    monkeypatch.setenv('MAE_ENTERED', '')
    with pytest.raises(SystemExit):
        launch.main(['--nproc', '8', '--nnodes', '2', '--node_rank', str(node), '--master_addr', 'n0', 'x.py'])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * node
    if node:
        assert re.match('node 1 of 2: .*ranks 8 to 15', lines[0]) and lines[1] == 'node 1 of 2: ended with status 70'


def test_no_folder_for_temporary_files_is_one_line(monkeypatch):
    monkeypatch.setenv('MAE_ENTERED', '')
    monkeypatch.setattr(launch.tempfile, 'tempdir', '/no/where')
    with pytest.raises(launch.UserError, match='TMPDIR: .*no/where'):
        launch.main(['--nproc', '1', 'x.py'])


STUBBORN = """
import signal, sys, time
open(sys.argv[1], 'w').close()
signal.sigwait([signal.SIGRTMIN + signal.SIGUSR1])
open(sys.argv[1] + '-signalled', 'w').close()
time.sleep(100)
"""


@pytest.mark.slow
@pytest.mark.compat
def test_processes_that_take_longer_than_the_stop_timeout_are_killed(tmp_path):
    script, ready = tmp_path / 'stubborn.py', tmp_path / 'ready'
    script.write_text(STUBBORN)
    command = supervised('--nproc', 1, '--stop_timeout', 1, '--max_restarts', 2, script, ready)
    running = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for(ready, running)
    running.send_signal(signal.SIGUSR1)
    output = running.communicate(timeout=TIMEOUT)[0].decode()
    assert running.returncode == 137 and '--stop_timeout' in output and output.count('\n') == 1, output
    assert (tmp_path / 'ready-signalled').exists() and all_exited(str(script))
