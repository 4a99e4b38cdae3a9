"""python -m util.check_env: what it says of a host, whole or half-installed."""
import importlib
import os
import sys

import pytest
import torch
from conftest import ROOT, execute

from util import check_env


class Host:
    """A folder that stands for / and one of packages, which are found before all others."""

    def __init__(self, folder):
        self.root, self.packages = folder / 'root', folder / 'packages'
        self.root.mkdir()
        self.packages.mkdir()

    def write(self, path, text=''):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def cann(self, base='usr/local/Ascend', kind='ascend-toolkit', version='8.0.RC2'):
        folder = self.root / base / kind
        self.write(folder / 'set_env.sh')
        self.write(folder / 'latest' / 'x86_64-linux' / 'ascend_toolkit_install.info',
                   'package_name=Ascend-cann-toolkit\nversion={}\narch=x86_64\n'.format(version))
        return folder


def read(output):
    """(table, list of what to fix) of what the program printed."""
    assert 'Traceback' not in output and '\nto fix:\n' in output, output
    rows, to_fix = output.split('\nto fix:\n')
    return ({row[:14].strip(): row[15:] for row in rows.strip().split('\n')},
            [line.strip() for line in to_fix.strip().split('\n')])


def forget(*names):
    """Undo the import of packages, and what the imitated torch_npu does to torch."""
    for name in [name for name in sys.modules if name.split('.')[0] in names]:
        del sys.modules[name]
    importlib.invalidate_caches()
    if hasattr(torch, 'npu'):
        del torch.npu


@pytest.fixture
def host(tmp_path, monkeypatch, capsys):
    """A Host whose check(VARIABLE=value, ...) tells (status, table, list of what to fix)."""
    def check(**environ):
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        forget('torch_npu', 'apex')
        with pytest.raises(SystemExit) as end:
            check_env.main(['--root', str(made.root)])
        return (end.value.code, *read(capsys.readouterr().out))

    made = Host(tmp_path)
    made.check = check
    monkeypatch.syspath_prepend(str(made.packages))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.delattr(torch, 'npu', raising=False)        # the host's own, which comes back afterwards
    for name in [name for name in sys.modules if name.split('.')[0] in ('torch_npu', 'apex')]:
        monkeypatch.delitem(sys.modules, name)
    for name in list(os.environ):
        if name.startswith(('ASCEND_', 'HCCL_', 'TASK_QUEUE_', 'COMBINED_', 'LD_LIBRARY_PATH')):
            monkeypatch.delenv(name)
    yield made
    forget('torch_npu', 'apex')


def run(host):
    """The same by the command itself, in a process of its own."""
    done = execute([sys.executable, '-m', 'util.check_env', '--root', host.root], CUDA_VISIBLE_DEVICES='',
                   PYTHONPATH=os.pathsep.join([str(ROOT), str(host.packages)]))
    return (done.status, *read(done.output))


def test_a_machine_without_npus_is_ready_for_the_cpu(host):
    status, table, to_fix = run(host)
    assert (status, to_fix) == (0, ['nothing'])
    assert (table['torch'], table['chips'], table['driver']) == (torch.__version__, 'no NPU', 'absent')
    assert table['--device auto'].startswith('CPU (no NPU') and table['--amp'] in ('fp32', 'native bf16')


def test_cann_that_is_not_sourced_is_found_where_its_installer_says(host):
    host.write(host.root / 'etc/Ascend/ascend_cann_install.info', 'version=1.0\nInstall_Path=/opt/huawei\n')
    folder = host.cann('opt/huawei', 'nnae', '7.0.0')
    host.cann()
    status, table, to_fix = host.check()
    assert table['CANN'] == '7.0.0 in {}/latest, not sourced'.format(folder)
    assert status == 1 and len(to_fix) == 1 and '{}/set_env.sh'.format(folder) in to_fix[0]


def test_sourced_cann_needs_nothing_and_its_variables_are_shown_unless_it_is_gone(host):
    home = host.cann() / 'latest'
    status, table, to_fix = host.check(ASCEND_TOOLKIT_HOME=str(home), HCCL_CONNECT_TIMEOUT='1200')
    assert table['CANN'] == '8.0.RC2 in {}, sourced'.format(home)
    assert (status, to_fix, table['variable']) == (0, ['nothing'], 'HCCL_CONNECT_TIMEOUT=1200')     # of two the last
    status, _, to_fix = host.check(ASCEND_TOOLKIT_HOME='/gone/latest')
    assert status == 1 and 'CANN is not sourced' in to_fix[0]


@pytest.mark.parametrize('text, said', [
    ('raise ImportError("libhccl.so: cannot open shared object file")', 'libhccl.so'), ('', 'torch.npu'),
    ('import torch, types\ntorch.npu = types.SimpleNamespace(is_available=lambda: int("aclInit failed"))\n',
     'aclInit failed')])
def test_a_torch_npu_that_is_of_no_use_is_one_line_to_fix(host, text, said):
    host.write(host.packages / 'torch_npu' / '__init__.py', text)
    status, _, to_fix = host.check(ASCEND_TOOLKIT_HOME=str(host.cann() / 'latest'))
    assert status == 1 and len(to_fix) == 1 and said in to_fix[0]


def test_chips_without_torch_npu_are_something_to_fix(host):
    for name in ('dev/davinci0', 'dev/davinci1', 'dev/davinci_manager'):
        host.write(host.root / name)
    host.write(host.root / 'usr/local/Ascend/driver/version.info', 'Version=23.0.3\nascendhal_version=7.35.19\n')
    status, table, to_fix = host.check()
    assert (table['chips'], table['driver'], status) == ('2', '23.0.3', 1) and 'torch_npu' in to_fix[0]


def test_an_apex_that_does_not_load_is_said_so_and_nothing_to_fix(host):
    host.write(host.packages / 'apex' / '__init__.py', 'import pyramid')
    status, table, _ = host.check()
    assert status == 0 and 'pyramid' in table['apex.amp']


def test_a_torch_that_does_not_load_is_named_and_the_rest_is_still_listed(host):
    host.write(host.packages / 'torch' / '__init__.py', 'raise OSError("libcudart.so.9: cannot open")')
    status, table, to_fix = run(host)
    assert status == 1 and table['torch'].startswith('does not load: libcudart.so.9') and table['numpy'][0].isdigit()
    assert any(line.startswith('torch does not load') for line in to_fix)
