"""Which interpreter the commands take, and that an installed PyTorch is never replaced."""
import os
import subprocess
import sys

import pytest
from conftest import ROOT


def shell(code, folder, python=''):
    """Run bash code with test/lib/python.sh, an empty cache and `folder` first on the path."""
    start = 'set -euo pipefail; die() { echo "error: $*" >&2; exit 2; }; source "$0"; '
    settings = {'PATH': '{}:/usr/bin:/bin'.format(folder), 'MAE_CACHE': str(folder / 'cache'), 'PYTHON': python}
    run = subprocess.run(['bash', '-c', start + code, str(ROOT / 'test/lib/python.sh')], stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, env={**os.environ, **settings})
    return run.returncode, run.stdout.decode()


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


def test_an_interpreter_that_has_everything_is_used_as_it_is(folder):
    requirements = folder / 'r.txt'
    requirements.write_text('')
    status, output = shell('make_environment "torch timm" "{}"; echo "$PYTHON"'.format(requirements), folder)
    assert (status, output.strip()) == (0, str(folder / 'python3'))
    assert not (folder / 'cache').exists()


def test_the_users_choice_of_interpreter_wins(folder):
    assert shell('find_python; echo "$PYTHON"', folder, python='/my/python') == (0, '/my/python\n')


def test_without_pytorch_the_launchers_say_what_to_do(bare):
    status, output = shell('find_python', bare)
    assert status == 2 and output.startswith("error: no Python with PyTorch found: run 'bash test/demo.sh'")


def test_an_environment_that_was_made_before_is_found(bare):
    made = bare / 'cache' / 'env-1' / 'bin' / 'python'
    made.parent.mkdir(parents=True)
    made.write_text('')
    assert shell('find_python', bare)[0] == 2       # its installation never ended
    (bare / 'cache' / 'env-1' / 'complete').write_text('')
    assert shell('find_python; echo "$PYTHON"', bare) == (0, '{}\n'.format(made))


def test_an_installed_pytorch_is_pinned_while_the_rest_is_installed(folder):
    import torch
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
