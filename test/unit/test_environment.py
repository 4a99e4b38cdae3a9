"""Which interpreter the commands take, and that an installed PyTorch is never replaced."""
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT


def bash(command, folder, **environ):
    """Run bash with an empty cache, and no Python beside the system's and those in `folder`."""
    settings = {'PATH': '{}:/usr/bin:/bin'.format(folder), 'MAE_CACHE': str(folder / 'cache'), 'PYTHON': '',
                'PYENV_ROOT': str(folder / 'pyenv')}
    run = subprocess.run(['bash', *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         env={**os.environ, **settings, **environ})
    return run.returncode, run.stdout.decode()


def shell(code, folder, **environ):
    """Run bash code with test/lib/python.sh."""
    return bash(['-c', 'set -euo pipefail; source "$0"; ' + code, str(ROOT / 'test/lib/python.sh')], folder, **environ)


def script(path, text):
    """Write a program in sh, in which {} is this interpreter."""
    path.write_text('#!/bin/sh\n' + text.replace('{}', sys.executable))
    path.chmod(0o755)


def with_torch(folder, version):
    """A python3 in `folder` that finds a torch of this version, which nobody may import, and nothing else."""
    (folder / 'torch').mkdir()
    (folder / 'torch' / '__init__.py').write_text('raise SystemExit')
    (folder / 'torch' / 'version.py').write_text('__version__ = {!r}\n'.format(version))
    script(folder / 'python3', 'PYTHONPATH="$(dirname "$0")" exec "{}" -S "$@"')


def test_an_interpreter_that_has_everything_is_used_as_it_is(tmp_path):
    script(tmp_path / 'python3', 'exec "{}" "$@"')
    code = 'make_environment "" "torch timm"; echo "$PYTHON"'
    assert shell(code, tmp_path) == (0, '{}\n'.format(tmp_path / 'python3'))
    assert not (tmp_path / 'cache').exists()


def test_the_newest_environment_that_is_complete_is_found(tmp_path):
    for name in ('python3', 'python'):
        script(tmp_path / name, 'exec "{}" -S -I "$@"')     # has no PyTorch
    made = [tmp_path / 'cache' / name for name in ('env-1.8-a', 'env-2.x-a', 'env-2.x-b')]
    for path in made:
        path.mkdir(parents=True)
    status, output = shell('find_python', tmp_path)         # none is complete
    assert (status, output.count('\n')) == (2, 1) and 'test/demo.sh' in output
    for path, age in zip(made, (0, 100, 50)):
        (path / 'complete').write_text('')
        os.utime(str(path / 'complete'), (1e9 - age, 1e9 - age))
    assert shell('find_python; echo "$PYTHON"', tmp_path) == (0, '{}/bin/python\n'.format(made[2]))


@pytest.mark.parametrize('version, generation', [
    ('1.5.0+ascend.post5', '1.5'), ('1.11.0a0+gitbc2c6ed', '1.11'), ('2.1.0+cpu', '2.x'), ('1.12.1', '1.12')])
def test_the_generation_of_an_installed_pytorch_is_known_without_importing_it(tmp_path, version, generation):
    with_torch(tmp_path, version)
    assert shell('generation_of python3', tmp_path) == (0, generation + '\n')
    assert shell('python_with_torch 1.8', tmp_path) == (1, '')      # it is of another generation


def test_beside_a_pytorch_without_a_requirement_file_nothing_is_installed(tmp_path):
    with_torch(tmp_path, '1.12.1')
    assert shell('make_environment "" "torch timm"', tmp_path)[0] == 2 and not (tmp_path / 'cache').exists()


def test_a_pytorch_in_a_virtual_environment_is_seen_and_pinned_by_the_environment_beside_it(tmp_path):
    """What a venv made from a venv shows are the packages of the system, not those of the first."""
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(tmp_path / 'first')], check=True)
    packages = next((tmp_path / 'first').glob('lib/python*/site-packages'))
    for name, text in (('torch/__init__.py', 'from .version import __version__'),
                       ('torch/version.py', '__version__ = "2.1.0"'),
                       ('torch-2.1.0.dist-info/METADATA', 'Metadata-Version: 2.1\nName: torch\nVersion: 2.1.0\n')):
        (packages / name).parent.mkdir(exist_ok=True)
        (packages / name).write_text(text)
    code = ('install_packages() { keep_torch "$1"; }; make_environment "" "torch not_a_module"; '
            '"$PYTHON" -c "import torch; print(torch.__version__)"; cat "${PYTHON%bin/python}constraints.txt"')
    status, output = shell(code, tmp_path, PYTHON=str(tmp_path / 'first' / 'bin' / 'python'))
    assert status == 0 and output.splitlines()[-3:] == ['2.1.0', 'torch==2.1.0', 'numpy<2'], output


@pytest.fixture
def lonely(tmp_path):
    """A folder by which no Python is found."""
    for version in ('', '3', '3.7', '3.10', '3.11', '3.12', '3.13'):
        script(tmp_path / ('python' + version), 'exit 1')
    return tmp_path


def test_a_python_that_cannot_make_environments_is_passed_over(lonely):
    """Debian's has no ensurepip before python3-venv is installed."""
    script(lonely / 'python3', 'case "$*" in *ensurepip*) exit 1 ;; *) echo 3.11 ;; esac')
    script(lonely / 'python3.7', 'echo 3.7')
    assert shell('python_for 1.11', lonely) == (0, '{}\n'.format(lonely / 'python3.7'))
    assert shell('generation_for_here', lonely) == (0, '1.11\n')


def test_the_requirement_files_name_no_torch_so_that_none_replaces_it():
    lines = [line for path in ROOT.glob('*_requirements.txt') for line in path.read_text().splitlines()]
    assert 'timm' in ''.join(lines) and not [line for line in lines if re.match(r'torch\b', line)]
