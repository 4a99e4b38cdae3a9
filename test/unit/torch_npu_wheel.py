"""The real torch_npu: its wheels, fetched once into the cache."""
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

# The oldest and the newest PyTorch 2.x: version of torch_npu, of Python, and the wheel's platform.
RELEASES = {'2.1': ('2.1.0.post17', '3.10', 'manylinux2014_x86_64'),
            '2.11': ('2.11.0.post3', '3.11', 'manylinux_2_28_x86_64')}

_unreachable = {}       # folder: why pip could not fill it; asked once a run, since waiting for a network takes a while


def cached(name, *pip):
    """A folder of the cache that `pip ... FOLDER` fills, once, whole or not at all.

    Without network the test is skipped, in CI it fails.
    """
    cache = os.environ.get('MAE_CACHE') or os.path.join(
        os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'mae-pytorch')
    folder = Path(cache) / name
    if not folder.is_dir() and folder not in _unreachable:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = tempfile.mkdtemp(prefix=name + '.part-', dir=str(folder.parent))
        try:
            pip = subprocess.run([sys.executable, '-m', 'pip', '--disable-pip-version-check', *pip, part],
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900)
            if pip.returncode:
                _unreachable[folder] = 'pip could not fetch {}: {}'.format(
                    name, pip.stdout.decode(errors='replace').strip().split('\n')[-1])
            elif not folder.is_dir():           # another run may have been quicker
                os.rename(part, str(folder))
        finally:
            shutil.rmtree(part, ignore_errors=True)
    if folder in _unreachable:
        (pytest.fail if os.environ.get('CI') == 'true' else pytest.skip)(_unreachable[folder])
    return folder


def fetched(release):
    """The path of a wheel in RELEASES."""
    version, python, platform = RELEASES[release]
    folder = cached('torch_npu-{}-cp{}-{}'.format(version, python.replace('.', ''), platform),
                    'download', '--no-deps', '--only-binary=:all:', '--python-version', python, '--platform', platform,
                    'torch_npu==' + version, '--dest')
    return next(folder.glob('*.whl'))


def installed(release):
    """A folder with the release's torch_npu installed for this interpreter, to put on PYTHONPATH."""
    version = RELEASES[release][0]
    return cached('torch_npu-{}-installed-{}'.format(version, sys.implementation.cache_tag), 'install', '--no-deps',
                  '--only-binary=:all:', '--no-compile', 'torch_npu==' + version, '--target')
