"""test/lib/env_npu.sh on machines that are folders: CANN is found and sourced, and what the user has set stays."""
import os
import subprocess

import pytest
from conftest import ROOT

SETTINGS = ('HCCL_WHITELIST_DISABLE', 'HCCL_CONNECT_TIMEOUT', 'TASK_QUEUE_ENABLE', 'COMBINED_ENABLE',
            'ASCEND_GLOBAL_LOG_LEVEL', 'ASCEND_SLOG_PRINT_TO_STDOUT', 'MAE_BIND_CORES')


@pytest.fixture
def machine(tmp_path):
    """A root folder with the device file of an NPU."""
    (tmp_path / 'dev').mkdir()
    (tmp_path / 'dev' / 'davinci0').write_text('')
    return tmp_path


def install_cann(root, install='/usr/local/Ascend', kind='ascend-toolkit', said='cann'):
    """A set_env.sh that reads an unset variable and ends with a failing command, as real ones may."""
    folder = root / install.strip('/') / kind
    folder.mkdir(parents=True)
    (folder / 'set_env.sh').write_text('export ASCEND_TOOLKIT_HOME={}$UNSET_BY_ANYONE\nfalse\n'.format(said))


def source(root, **environ):
    """(what was said, {variable: value} afterwards)."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(('ASCEND', 'HCCL', *SETTINGS))}
    code = 'set -euo pipefail; source "$0"; source_npu_environment "$1"; env'
    run = subprocess.run(['bash', '-c', code, str(ROOT / 'test/lib/env_npu.sh'), str(root)], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, env={**clean, **environ})
    assert run.returncode == 0, run.stderr
    return run.stderr.decode(), dict(line.split('=', 1) for line in run.stdout.decode().splitlines() if '=' in line)


def test_a_machine_without_npus_stays_as_it_is(tmp_path):
    install_cann(tmp_path)
    said, variables = source(tmp_path)
    assert said == '' and not {'ASCEND_TOOLKIT_HOME', *SETTINGS} & set(variables)


def test_cann_is_sourced_from_where_its_installer_says_else_kinds_of_installation_are_tried_in_order(machine):
    for kind in ('cann', 'nnae', 'ascend-toolkit'):
        install_cann(machine, kind=kind, said=kind)
        assert source(machine)[1]['ASCEND_TOOLKIT_HOME'] == kind
    install_cann(machine, install='/opt/Ascend', said='elsewhere')
    (machine / 'etc' / 'Ascend').mkdir(parents=True)
    (machine / 'etc' / 'Ascend' / 'ascend_cann_install.info').write_text('version=8.0\nInstall_Path=/opt/Ascend\n')
    said, variables = source(machine)
    assert (said, variables['ASCEND_TOOLKIT_HOME']) == ('', 'elsewhere')


def test_npus_without_cann_are_one_clear_line(machine):
    said = source(machine)[0]
    assert said.count('\n') == 1 and '/usr/local/Ascend/ascend-toolkit/set_env.sh' in said
    assert source(machine, ASCEND_TOOLKIT_HOME='/sourced/already')[0] == ''


def test_what_the_user_has_set_stays(machine):
    install_cann(machine)
    mine = dict.fromkeys(SETTINGS, '77')
    variables = source(machine, **mine)[1]
    assert {name: variables[name] for name in SETTINGS} == mine
    defaults = source(machine)[1]
    assert defaults['HCCL_CONNECT_TIMEOUT'] == '1200' and defaults['MAE_BIND_CORES'] == '1'
