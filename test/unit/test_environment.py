"""test/lib/python.sh and env_npu.sh: which interpreter the commands take, that an installed PyTorch is never replaced,
and that CANN is found and sourced on machines that are folders."""
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, execute, write_file


def shell(code, folder, **environ):
    """Run bash code with test/lib/python.sh: an empty cache, no Python but the system's and those in `folder`."""
    settings = {'PATH': '{}:/usr/bin:/bin'.format(folder), 'MAE_CACHE': str(folder / 'cache'), 'PYTHON': '',
                'PYENV_ROOT': str(folder / 'pyenv')}
    return execute(['bash', '-c', 'set -euo pipefail; source "$0"; ' + code, ROOT / 'test/lib/python.sh'],
                   **{**settings, **environ})


def script(path, text):
    """Write a program in sh, in which {} is this interpreter."""
    path.write_text('#!/bin/sh\n' + text.replace('{}', sys.executable))
    path.chmod(0o755)


def with_torch(folder, version):
    """A python3 in `folder` that finds a torch of this version, which nobody may import, and nothing else."""
    write_file(folder / 'torch' / '__init__.py', 'raise SystemExit')
    write_file(folder / 'torch' / 'version.py', '__version__ = {!r}\n'.format(version))
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


@pytest.mark.parametrize('version, generation', [('1.11.0a0+gitbc2c6ed', '1.11'), ('2.1.0+cpu', '2.x')])
def test_the_generation_of_an_installed_pytorch_is_known_without_importing_it(tmp_path, version, generation):
    with_torch(tmp_path, version)
    assert shell('generation_of python3; python_with_torch 2.1', tmp_path) == (1, generation + '\n')


def test_beside_a_pytorch_without_a_requirement_file_nothing_is_installed(tmp_path):
    with_torch(tmp_path, '1.12.1')
    assert shell('make_environment "" "torch timm"', tmp_path)[0] == 2 and not (tmp_path / 'cache').exists()


def test_the_environment_beside_a_pytorch_imports_and_pins_it(tmp_path):
    """Also where that is in a virtual environment: what one made from it would show are the packages of the system."""
    packages = tmp_path / 'site-packages'
    for name, text in (('torch/__init__.py', 'from .version import __version__'),
                       ('torch/version.py', '__version__ = "2.1.0"'),
                       ('torch-2.1.0.dist-info/METADATA', 'Metadata-Version: 2.1\nName: torch\nVersion: 2.1.0\n')):
        write_file(packages / name, text)
    script(tmp_path / 'first', 'case "$*" in *"-m venv"*) set -- "$@" --without-pip ;; esac\n'
           'PYTHONPATH="{}" exec "{{}}" -S "$@"'.format(packages))
    code = ('install_packages() { keep_torch "$1"; }; make_environment "" "torch not_a_module"; '
            '"$PYTHON" -c "import torch; print(torch.__version__)"; cat "${PYTHON%bin/python}constraints.txt"')
    status, output = shell(code, tmp_path, PYTHON=str(tmp_path / 'first'), PYTHONPATH='')
    assert status == 0 and output.splitlines()[-3:] == ['2.1.0', 'torch==2.1.0', 'numpy<2'], output


def test_a_python_that_cannot_make_environments_is_passed_over(tmp_path):
    """Debian's has no ensurepip before python3-venv is installed."""
    for version in ('', '3.10', '3.11', '3.12', '3.13'):
        script(tmp_path / ('python' + version), 'exit 1')
    script(tmp_path / 'python3', 'case "$*" in *ensurepip*) exit 1 ;; *) echo 3.11 ;; esac')
    script(tmp_path / 'python3.7', 'echo 3.7')
    assert shell('python_for 1.11', tmp_path) == (0, '{}\n'.format(tmp_path / 'python3.7'))
    assert shell('generation_for_here', tmp_path) == (0, '1.11\n')


def test_the_requirement_files_name_no_torch_so_that_none_replaces_it():
    lines = [line for path in ROOT.glob('*_requirements.txt') for line in path.read_text().splitlines()]
    assert 'timm' in ''.join(lines) and not [line for line in lines if re.match(r'torch\b', line)]


SETTINGS = ('HCCL_WHITELIST_DISABLE', 'HCCL_CONNECT_TIMEOUT', 'COMBINED_ENABLE', 'ASCEND_GLOBAL_LOG_LEVEL',
            'ASCEND_SLOG_PRINT_TO_STDOUT', 'MAE_BIND_CORES')
ASCEND = 'usr/local/Ascend'


def install_cann(folder, said='cann'):
    """A set_env.sh that reads an unset variable and ends with a failing command, as real ones may."""
    write_file(folder / 'set_env.sh', 'export ASCEND_TOOLKIT_HOME={}$UNSET_BY_ANYONE\nfalse\n'.format(said))


def source(root, **environ):
    """(what was said, {variable: value} afterwards)."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(('ASCEND', 'HCCL', *SETTINGS))}
    code = 'set -euo pipefail; source "$0"; source_npu_environment "$1"; env'
    run = subprocess.run(['bash', '-c', code, str(ROOT / 'test/lib/env_npu.sh'), str(root)], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, env={**clean, **environ})
    assert run.returncode == 0, run.stderr
    return run.stderr.decode(), dict(line.split('=', 1) for line in run.stdout.decode().splitlines() if '=' in line)


def test_cann_is_sourced_where_there_are_npus_from_where_its_installer_says_else_kinds_are_tried_in_order(tmp_path):
    install_cann(tmp_path / ASCEND / 'cann')
    said, variables = source(tmp_path)
    assert said == '' and not {'ASCEND_TOOLKIT_HOME', *SETTINGS} & set(variables)
    write_file(tmp_path / 'dev' / 'davinci0')
    for kind in ('nnae', 'ascend-toolkit'):
        install_cann(tmp_path / ASCEND / kind, kind)
        assert source(tmp_path)[1]['ASCEND_TOOLKIT_HOME'] == kind
    install_cann(tmp_path / 'opt/Ascend/cann', 'elsewhere')
    write_file(tmp_path / 'etc/Ascend/ascend_cann_install.info', 'version=8.0\nInstall_Path=/opt/Ascend\n')
    said, variables = source(tmp_path)
    assert (said, variables['ASCEND_TOOLKIT_HOME']) == ('', 'elsewhere')


def test_npus_without_cann_are_one_clear_line_and_what_the_user_has_set_stays(tmp_path):
    write_file(tmp_path / 'dev' / 'davinci0')
    said, defaults = source(tmp_path)
    assert said.count('\n') == 1 and '/usr/local/Ascend/ascend-toolkit/set_env.sh' in said
    assert defaults['HCCL_CONNECT_TIMEOUT'] == '1200' and defaults['MAE_BIND_CORES'] == '1'
    mine = dict.fromkeys(SETTINGS, '77')
    said, variables = source(tmp_path, ASCEND_TOOLKIT_HOME='/sourced/already', **mine)
    assert said == '' and {name: variables[name] for name in SETTINGS} == mine
