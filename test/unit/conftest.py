"""What the tests share: the repository on the path, a small drawn dataset, and running the program as a user does."""
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import pytest
import warm_python

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path += sorted({str(test.parent) for test in Path(__file__).parent.glob('[!n]*/test_*.py')})     # helpers in them
os.environ['OMP_NUM_THREADS'] = '1'     # of tests and of what they run: small work, and much of it side by side
os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))

import util  # noqa: F401  (before torch: it keeps `import torch` from loading a broken torch_npu)
from util.log import logger
from util.tools import synthetic_dataset

Run = namedtuple('Run', 'status output')
TIMEOUT = 600               # seconds

NANO = ['--input_size', '32', '--patch_size', '8', '--num_workers', '0', '--device', 'cpu']
PRETRAIN = ['--model', 'mae_vit_nano_patch16', '--batch_size', '8', '--warmup_epochs', '1', *NANO]
FINETUNE = ['--model', 'vit_nano_patch16', '--batch_size', '8', '--warmup_epochs', '1', *NANO]


def environment(**changes):
    """That of commands that tests run."""
    environ = {**os.environ, **changes}
    environ.pop('PYTEST_CURRENT_TEST', None)
    return environ


@lru_cache(maxsize=None)
def _python():
    folder = tempfile.TemporaryDirectory(prefix='warm')
    modules = ['main_pretrain', 'main_finetune', 'main_linprobe', 'torch.utils.tensorboard']
    return folder, warm_python.start(folder.name, modules)


def python(**changes):
    """An interpreter that has imported PyTorch already."""
    return _python()[1]


def execute(command, **environ):
    """Run a command to its end; standard output and error come in one text. This interpreter is run warm."""
    words = [python() if word == sys.executable else str(word) for word in command]
    with tempfile.TemporaryFile() as output:        # a pipe would end later, with the loader processes of a killed one
        status = subprocess.run(words, stdout=output, stderr=subprocess.STDOUT, timeout=TIMEOUT,
                                env=environment(**environ)).returncode
        output.seek(0)
        return Run(status, output.read().decode(errors='replace'))


def shown_on(terminal):
    """All bytes that a terminal was sent, by its descriptor, which is closed: until nobody writes to it any more."""
    shown = b''
    with os.fdopen(terminal, 'rb', buffering=0) as file, suppress(OSError):         # its end, on Linux
        for piece in iter(lambda: file.read(1 << 16), b''):
            shown += piece
    return shown


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


def pretrain(*flags, **environ):
    """python main_pretrain.py with a nano model on the CPU."""
    return execute([sys.executable, ROOT / 'main_pretrain.py', *PRETRAIN, *flags], **environ)


def finetune(*flags, **environ):
    """python main_finetune.py with a nano model on the CPU."""
    return execute([sys.executable, ROOT / 'main_finetune.py', *FINETUNE, *flags], **environ)


def linprobe(*flags, **environ):
    """python main_linprobe.py with a nano model on the CPU."""
    return execute([sys.executable, ROOT / 'main_linprobe.py', *FINETUNE, *flags], **environ)


def two_processes(script, *flags, **environ):
    """A script in two processes, which share the CPU."""
    return execute([sys.executable, ROOT / 'util' / 'tools' / 'launch.py', '--nproc', 2, script, *flags], **environ)


def launcher(name, *flags, **environ):
    """bash test/<name>.sh with this interpreter."""
    return execute(['bash', ROOT / 'test' / (name + '.sh'), *flags], PYTHON=python(**environ), **environ)


@pytest.fixture(autouse=True)
def quiet_logger():
    """The logger as it is before a run sets it up, which commands that a test calls have done."""
    logger.handlers[:], logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


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
    run = pretrain('--data_path', images, '--output_dir', folder, '--epochs', 1)
    assert run.status == 0, run.output
    return folder
