"""Which interpreter the commands take, and that an installed PyTorch is never replaced."""
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT


def bash(command, folder, python='', **environ):
    """Run bash with an empty cache, and no Python beside the user's choice, the system's and those in `folder`."""
    settings = {'PATH': '{}:/usr/bin:/bin'.format(folder), 'MAE_CACHE': str(folder / 'cache'), 'PYTHON': python,
                'PYENV_ROOT': str(folder / 'pyenv')}
    run = subprocess.run(['bash', *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         env={**os.environ, **settings, **environ})
    return run.returncode, run.stdout.decode()


def shell(code, folder, python=''):
    """Run bash code with test/lib/python.sh."""
    return bash(['-c', 'set -euo pipefail; source "$0"; ' + code, str(ROOT / 'test/lib/python.sh')], folder, python)


@pytest.fixture
def folder(tmp_path):
    """A folder whose python3 is this one."""
    (tmp_path / 'python3').write_text('#!/bin/sh\nexec "{}" "$@"\n'.format(sys.executable))
    (tmp_path / 'python3').chmod(0o755)
    return tmp_path


@pytest.fixture
def bare(tmp_path):
    """A folder whose python3 and python have no PyTorch."""
    for name in ('python3', 'python'):
        (tmp_path / name).write_text('#!/bin/sh\nexec "{}" -S -I "$@"\n'.format(sys.executable))
        (tmp_path / name).chmod(0o755)
    return tmp_path


def with_torch(folder, version):
    """A python3 in `folder` that finds a torch of this version, and nothing else."""
    (folder / 'torch').mkdir()
    (folder / 'torch' / '__init__.py').write_text('raise SystemExit("nobody asked to import it")')
    (folder / 'torch' / 'version.py').write_text('__version__ = {!r}\n'.format(version))
    (folder / 'python3').write_text('#!/bin/sh\nPYTHONPATH="{}" exec "{}" -S "$@"\n'.format(folder, sys.executable))
    (folder / 'python3').chmod(0o755)


def test_an_interpreter_that_has_everything_is_used_as_it_is(folder):
    status, output = shell('make_environment "" "torch timm"; echo "$PYTHON"', folder)
    assert (status, output.strip()) == (0, str(folder / 'python3'))
    assert not (folder / 'cache').exists()


def test_the_users_choice_of_interpreter_wins(folder):
    assert shell('find_python; echo "$PYTHON"', folder, python='/my/python') == (0, '/my/python\n')


def test_without_pytorch_the_launchers_say_what_to_do(bare):
    status, output = shell('find_python', bare)
    assert status == 2 and output.startswith("error: no Python with PyTorch found: run 'bash test/demo.sh'")


def test_an_environment_that_was_made_before_is_found(bare):
    cache = bare / 'cache'
    for name in ('env-1.8-a', 'env-2.x-a', 'env-2.x-b'):
        (cache / name).mkdir(parents=True)
    assert shell('find_python', bare)[0] == 2       # their installations never ended
    (cache / 'env-1.8-a' / 'complete').write_text('')
    assert shell('find_python; echo "$PYTHON"', bare) == (0, '{}\n'.format(cache / 'env-1.8-a' / 'bin' / 'python'))
    for name, age in (('env-2.x-a', 100), ('env-2.x-b', 0)):
        (cache / name / 'complete').write_text('')
        os.utime(str(cache / name / 'complete'), (1e9 - age, 1e9 - age))
    assert shell('find_python; echo "$PYTHON"', bare) == (0, '{}\n'.format(cache / 'env-2.x-b' / 'bin' / 'python'))


@pytest.mark.parametrize('version, generation', [
    ('1.5.0+ascend.post5', '1.5'), ('1.8.1', '1.8'), ('1.11.0a0+gitbc2c6ed', '1.11'), ('2.1.0+cpu', '2.x'),
    ('2.13.0', '2.x'), ('1.12.1', '1.12')])
def test_the_generation_of_an_installed_pytorch_is_known_without_importing_it(tmp_path, version, generation):
    with_torch(tmp_path, version)
    assert shell('generation_of python3', tmp_path) == (0, generation + '\n')


def test_a_pytorch_of_another_generation_is_left_alone(tmp_path):
    with_torch(tmp_path, '2.1.0')
    assert shell('python_with_torch 2.x', tmp_path) == (0, '{}\n'.format(tmp_path / 'python3'))
    assert shell('PYTHON=python3; python_with_torch 1.11', tmp_path) == (1, '')


def test_beside_a_pytorch_without_a_requirement_file_nothing_is_installed(tmp_path):
    with_torch(tmp_path, '1.12.1')
    status, output = shell('make_environment "" "torch timm"', tmp_path)
    assert status == 2 and 'python3 has PyTorch 1.12, for which there is no requirement file' in output
    assert not (tmp_path / 'cache').exists()


def test_a_pytorch_in_a_virtual_environment_is_seen_and_pinned_by_the_environment_beside_it(tmp_path):
    """What a venv made from a venv shows are the packages of the system, not those of the first."""
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(tmp_path / 'first')], check=True)
    packages = next((tmp_path / 'first').glob('lib/python*/site-packages'))
    for name in ('torch', 'torch-2.1.0.dist-info'):
        (packages / name).mkdir()
    (packages / 'torch' / '__init__.py').write_text('from .version import __version__\n')
    (packages / 'torch' / 'version.py').write_text('__version__ = "2.1.0"\n')
    (packages / 'torch-2.1.0.dist-info' / 'METADATA').write_text('Metadata-Version: 2.1\nName: torch\nVersion: 2.1.0\n')
    code = ('install_packages() { keep_torch "$1"; }; make_environment "" "torch not_a_module"; '
            '"$PYTHON" -c "import torch; print(torch.__version__)"; cat "${PYTHON%bin/python}constraints.txt"')
    status, output = shell(code, tmp_path, python=str(tmp_path / 'first' / 'bin' / 'python'))
    assert status == 0 and output.splitlines()[-3:] == ['2.1.0', 'torch==2.1.0', 'numpy<2'], output


@pytest.fixture
def lonely(folder):
    """A folder whose python3 has PyTorch, but cannot make environments for other generations."""
    (folder / 'python3').write_text('#!/bin/sh\ncase "$*" in *version_info*) echo 9.9 ;; *) exec "{}" "$@" ;; esac\n'
                                    .format(sys.executable))
    for name in ('python', 'python3.7', 'python3.10', 'python3.11', 'python3.12', 'python3.13'):
        (folder / name).write_text('#!/bin/sh\nexit 1\n')
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize('ci, expected', [('', 0), ('true', 1)])
def test_a_generation_that_no_python_can_run_is_reported_and_in_ci_a_failure(lonely, ci, expected):
    command = [str(ROOT / 'test/check.sh'), '--torch=all', '--collect-only', '-q', 'test/unit/test_metrics.py']
    status, output = bash(command, lonely, CI=ci)
    assert status == expected, output
    assert output.count('not run, it needs Python 3') == 3 and output.count('passed in') == 1
    assert not (lonely / 'cache').exists()


@pytest.mark.parametrize('fails, expected', [('none', 0), ('1.5.1', 1), ('2.11.0', 1)])
def test_what_fails_under_any_generation_fails_the_whole_check_and_is_named(lonely, fails, expected):
    for name, version in (('python3', '2.11.0'), ('python', '1.5.1')):
        (lonely / name).write_text('#!/bin/sh\ncase "$*" in *runpy*) echo {0} ;; *find_spec*) ;; '
                                   '*pytest*) echo tests of {0}; test {0} != {1} ;; *) exit 1 ;; esac\n'
                                   .format(version, fails))
    status, output = bash([str(ROOT / 'test/check.sh'), '--torch=all'], lonely, CI='')
    assert status == expected, output
    for generation, version in (('1.5', '1.5.1'), ('2.x', '2.11.0')):
        assert '=== PyTorch {}\ntests of {}\n'.format(generation, version) in output
        assert 'PyTorch {}: {} in 0 min'.format(generation, 'FAILED' if version == fails else 'passed') in output


def test_checking_under_a_generation_that_no_python_can_run_says_what_is_needed(lonely):
    other = '1.5' if torch.__version__.startswith('1.8') else '1.8'
    status, output = bash([str(ROOT / 'test/check.sh'), '--torch', other], lonely)
    assert status == 2
    assert output.startswith('error: PyTorch {} needs Python 3.7 with its venv module'.format(other))
    assert output.endswith('which is not found: install one, or set PYTHON=/path/to/python\n')


@pytest.mark.parametrize('version, generation', [('3.7', '1.11'), ('3.12', '2.x'), ('3.4', '2.x')])
def test_the_newest_generation_that_a_python_at_hand_can_run_is_taken(lonely, version, generation):
    (lonely / 'python3').write_text('#!/bin/sh\necho {}\n'.format(version))
    assert shell('generation_for_here', lonely) == (0, generation + '\n')


def test_a_python_that_cannot_make_environments_is_passed_over(lonely):
    """Debian's has no ensurepip before python3-venv is installed."""
    (lonely / 'python3').write_text('#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; *) echo 3.11 ;; esac\n')
    (lonely / 'python3.12').write_text('#!/bin/sh\necho 3.12\n')
    assert shell('python_for 2.x', lonely) == (0, '{}\n'.format(lonely / 'python3.12'))


@pytest.mark.parametrize('flags, problem', [
    (['--torch=1.7'], 'error: --torch 1.7: give one of 2.x 1.11 1.8 1.5, or all\n'),
    (['--torch'], 'error: --torch: give a generation, or all\n')])
def test_a_wrong_generation_is_one_line(folder, flags, problem):
    assert bash([str(ROOT / 'test/check.sh'), *flags], folder) == (2, problem)


def test_an_installed_pytorch_is_pinned_while_the_rest_is_installed(folder):
    (folder / 'env' / 'bin').mkdir(parents=True)
    (folder / 'env' / 'bin' / 'python').symlink_to(folder / 'python3')
    assert shell('keep_torch "{}"'.format(folder / 'env'), folder)[0] == 0
    assert 'torch=={}\n'.format(torch.__version__.split('+')[0]) in (folder / 'env' / 'constraints.txt').read_text()


def test_the_requirement_files_name_no_torch_so_that_none_replaces_it():
    files = sorted(ROOT.glob('*_requirements.txt'))
    assert [path.name for path in files] == ['1.11_requirements.txt', '1.5_requirements.txt', '1.8_requirements.txt',
                                             '2.x_requirements.txt']
    for path in files:
        names = [line.split('#')[0].strip() for line in path.read_text().splitlines()]
        assert names and not [name for name in names if name == 'torch' or name.startswith('torch=')]
