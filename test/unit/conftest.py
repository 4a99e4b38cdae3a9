"""What the tests share: the repository on the path, a small drawn dataset, and running the program as a user does."""
import importlib
import io
import logging
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import namedtuple
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from functools import partial
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'test' / 'lib')]
sys.path += sorted({str(test.parent) for test in Path(__file__).parent.glob('[!n]*/test_*.py')})     # helpers in them
os.environ['OMP_NUM_THREADS'] = '1'     # of tests and of what they run: small work, and much of it side by side
os.environ['TORCHINDUCTOR_COMPILE_THREADS'] = '1'      # else it starts processes, which stay
os.environ['MAE_ABORTS_TORCH_NPU'] = '0'        # else each emulated run tries this in a child process first
os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))

import util  # noqa: F401, I001  (before torch: it keeps `import torch` from loading a broken torch_npu)
import torch
from torch import distributed

import models_mae
import models_vit
from util.errors import status_of
from util.log import logger
import synthetic_dataset
from util.tools.launch import free_port
from util.training import session

Run = namedtuple('Run', 'status output')
TIMEOUT = 600               # seconds
BY_OTHERS = 'PYTEST_CURRENT_TEST', 'TORCHINDUCTOR_', '_TORCHINDUCTOR_'    # variables that pytest and torch set

NANO = ['--input_size', '32', '--patch_size', '8', '--num_workers', '0', '--device', 'cpu']
PRETRAIN = ['--model', 'mae_vit_nano_patch16', '--batch_size', '8', '--warmup_epochs', '1', *NANO]
FINETUNE = ['--model', 'vit_nano_patch16', '--batch_size', '8', '--warmup_epochs', '1', *NANO]


def children():
    """Pids of the running child processes."""
    pids = ' '.join(path.read_text() for path in Path('/proc/self/task').glob('*/children')).split()
    return {pid for pid in pids if not Path('/proc', pid, 'stat').read_text().rpartition(')')[2].startswith(' Z')}


def process_state():
    """What tests must leave as it was."""
    sender = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(sender)
    return {'signal handlers': {(number, signal.getsignal(number)) for number in range(1, signal.NSIG)},
            'blocked signals': signal.pthread_sigmask(signal.SIG_BLOCK, []), 'wake-up descriptor': sender,
            'threads': {thread.name for thread in threading.enumerate()},
            'children': children(),
            'cores': hasattr(os, 'sched_getaffinity') and os.sched_getaffinity(0),
            'environment': {item for item in os.environ.items() if not item[0].startswith(BY_OTHERS)},
            'logger': (logger.handlers[:], logger.propagate, logger.level), 'folder': os.getcwd(),
            'process group': distributed.is_available() and distributed.is_initialized(),
            'torch': (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads())}


def assert_unchanged(before):
    """The state of this process is `before`; threads and children that are about to end may take a few seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process_state() != before:
        time.sleep(.02)
    after = process_state()
    changed = [name for name in before if before[name] != after[name]]
    assert not {name: before[name] ^ after[name] if isinstance(before[name], set) else (before[name], after[name])
                for name in changed}


@contextmanager
def process_state_restored():
    """Undo what a run changes in its process."""
    with ExitStack() as undo:
        undo.enter_context(torch.random.fork_rng(devices=[]))
        undo.callback(random.setstate, random.getstate())
        undo.callback(np.random.set_state, np.random.get_state())
        undo.callback(vars(logger).update, handlers=logger.handlers[:], propagate=logger.propagate)
        undo.callback(logger.setLevel, logger.level)
        undo.callback(getattr(torch, 'use_deterministic_algorithms', bool), False)
        if hasattr(os, 'sched_setaffinity'):
            undo.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        undo.callback(os.environ.update, dict(os.environ))
        undo.callback(os.environ.clear)
        yield


def call(name, *words):
    """What `python NAME.py WORDS...` does, in this process; standard output and error come in one text.

    Without stop signals and hang detection, which end a process: here that would be the one of the tests.
    """
    before, module = process_state(), importlib.import_module(name)
    parse = getattr(module, 'parse_' + re.split('[._]', name)[-1], None)
    parse = module.predict_parser().parse_args if name == 'main_predict' else parse
    arguments = [parse] if parse else [lambda: sys.argv[1:]] if signature(module.main).parameters else []
    output = io.TextIOWrapper(io.BytesIO(), 'utf-8', 'backslashreplace', write_through=True)
    with mock.patch.object(sys, 'argv', [name.replace('.', '/') + '.py', *map(str, words)]), \
            mock.patch.object(session, 'SignalHandler', lambda: nullcontext(SimpleNamespace(requested=''))), \
            mock.patch.object(session.hang_detector, 'start'), redirect_stdout(output), redirect_stderr(output), \
            process_state_restored():
        try:
            status = status_of(lambda: module.main(*[argument() for argument in arguments]))
        except SystemExit as ended:             # of the parser
            status = ended.code or 0
    assert_unchanged(before)
    return Run(status, output.buffer.getvalue().decode(errors='replace'))


def environment(**changes):
    """That of commands that tests run."""
    environ = {**os.environ, **changes}
    environ.pop('PYTEST_CURRENT_TEST', None)
    return environ


def execute(command, **environ):
    """Run a command to its end; standard output and error come in one text."""
    with tempfile.TemporaryFile() as output:        # a pipe would end later, with the loader processes of a killed one
        status = subprocess.run(list(map(str, command)), stdout=output, stderr=subprocess.STDOUT, timeout=TIMEOUT,
                                env=environment(**environ)).returncode
        output.seek(0)
        return Run(status, output.read().decode(errors='replace'))


def slow_kill(pause):
    """Environment in which bash goes on only `pause` seconds after it sent a signal: until then the other may end."""
    return {'BASH_FUNC_kill%%': '() {{ local ended=0\n builtin kill "$@" || ended=$?\n sleep {}\n return $ended\n}}'
            .format(pause)}


def signal_when_trapped(process, signum):
    """Send a bash script a signal as soon as its trap for it is set."""
    deadline = time.time() + 60
    while time.time() < deadline:
        caught = re.search(r'^SigCgt:\t(\w+)$', Path('/proc/{}/status'.format(process.pid)).read_text(), re.M).group(1)
        if int(caught, 16) >> (signum - 1) & 1:
            break
        time.sleep(.01)
    process.send_signal(signum)


def succeeded(run):
    """The output of a run, whose status must be 0."""
    assert run.status == 0, run.output
    return run.output


def run_script(name, base, *flags, process=False, **environ):
    """A script with a nano model on the CPU: in this process, or in one of its own if asked to or with `environ`."""
    if process or environ:
        return execute([sys.executable, ROOT / (name + '.py'), *base, *flags], **environ)
    return call(name, *base, *flags)


pretrain = partial(run_script, 'main_pretrain', PRETRAIN)
finetune = partial(run_script, 'main_finetune', FINETUNE)
linprobe = partial(run_script, 'main_linprobe', FINETUNE)


def two_processes(script, *flags, **environ):
    """A script in two processes, which share the CPU."""
    return execute([sys.executable, ROOT / 'util' / 'tools' / 'launch.py', '--nproc', 2, script, *flags], **environ)


def together(commands, **environ):
    """Runs of commands(port), which start side by side; with another port if somebody has taken that meanwhile."""
    for _ in range(3):
        running = [subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                    env=environment(PYTHON=sys.executable, **environ))
                   for words in commands(free_port())]
        outputs = [process.communicate(timeout=TIMEOUT)[0].decode() for process in running]
        if not any('in use' in output for output in outputs):
            break
    return [Run(process.returncode, output) for process, output in zip(running, outputs)]


def launcher(name, *flags, **environ):
    """bash test/<name>.sh with this interpreter."""
    return execute(['bash', ROOT / 'test' / (name + '.sh'), *flags], PYTHON=sys.executable, **environ)


def write_file(path, content=''):
    """Write text or bytes to a file, whose folder need not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def nano_vit(**options):
    """A classifier for images of 32 x 32 pixels."""
    torch.manual_seed(0)
    return models_vit.vit_nano_patch16(**{'img_size': 32, 'patch_size': 8, 'num_classes': 8, **options})


def nano_mae(**options):
    """An autoencoder for images of 32 x 32 pixels."""
    torch.manual_seed(0)
    return models_mae.mae_vit_nano_patch16(**{'img_size': 32, 'patch_size': 8, **options})


@pytest.fixture
def apex(monkeypatch):
    """The emulated apex, unloaded after the test."""
    monkeypatch.syspath_prepend(str(ROOT / 'test' / 'unit' / 'npu'))
    yield importlib.import_module('apex')
    for name in [name for name in sys.modules if name.split('.')[0] == 'apex']:
        del sys.modules[name]


@pytest.fixture
def caplog(caplog):
    """pytest's, from INFO on."""
    caplog.set_level('INFO', 'mae')
    return caplog


@pytest.fixture(autouse=True)
def process_unchanged():
    """A test leaves the process as it was; the logger is restored here, since commands that tests call set it up."""
    before = process_state()
    yield
    logger.handlers[:], logger.propagate = [], True
    logger.setLevel(logging.NOTSET)
    assert_unchanged(before)


@pytest.fixture(scope='session', autouse=True)
def caches(tmp_path_factory):
    """Caches of these tests alone, which are empty at first, but for environments and wheels."""
    kept = os.path.join(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'mae-pytorch')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MAE_CACHE', os.environ.get('MAE_CACHE') or kept)
        for name in ('XDG_CACHE_HOME', 'TORCHINDUCTOR_CACHE_DIR'):
            patch.setenv(name, str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture(scope='session')
def images(tmp_path_factory):
    """A folder with 32 training and 19 validation images of 8 classes."""
    folder = tmp_path_factory.mktemp('images')
    synthetic_dataset.write(str(folder), train=32, val=19, seed=0)
    return folder


@pytest.fixture(scope='session')
def pretrained(images, tmp_path_factory):
    """The output folder of a pre-training of one epoch."""
    folder = tmp_path_factory.mktemp('pretrained')
    succeeded(pretrain('--data_path', images, '--output_dir', folder, '--epochs', 1))
    return folder


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    """Escape undecodable bytes of file names in reports, which pytest-xdist cannot send."""
    outcome = yield
    report = outcome.get_result()
    report.sections = [(name, text.encode(errors='backslashreplace').decode()) for name, text in report.sections]
    if report.failed:
        report.longrepr = str(report.longrepr).encode(errors='backslashreplace').decode()
