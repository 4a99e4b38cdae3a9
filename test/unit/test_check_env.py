"""python -m util.check_env: what it says of a host, whole or half-installed."""
import importlib
import os
import re
import sys

import pytest
import torch
from conftest import ROOT, execute

from util import check_env

BROKEN = 'raise ImportError("libhccl.so: cannot open shared object file")'
SMI = """\
| npu-smi 23.0.3                   Version: 23.0.3                                               |
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| 0     910B3               | OK            | 96.1        38                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3159 / 65536         |
| 1     910B3               | OK            | 88.6        39                0    / 0             |
| 0                         | 0000:C2:00.0  | 0           0    / 0          3159 / 65536         |
| 0       0                 | 692318        | python3            | 12417                           |
"""


class Host:
    """A folder that stands for / and one of packages, which are found before all others."""

    def __init__(self, folder):
        self.root, self.packages = folder / 'root', folder / 'packages'
        self.root.mkdir()
        self.packages.mkdir()

    def write(self, path, text=''):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def package(self, name, text='', version=None):
        self.write(self.packages / name / '__init__.py', text)
        if version:
            self.write(self.packages / '{}-{}.dist-info'.format(name, version) / 'METADATA')

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
    assert table['torch'] == torch.__version__
    assert (table['torch_npu'], table['apex'].split(';')[0], table['chips'], table['driver']) == (
        'absent', 'absent', 'no NPU', 'absent')
    assert table['--device auto'].startswith('CPU (no NPU (torch_npu is not installed)')
    assert table['--amp'].startswith(('fp32', 'native bf16')) and re.match(r'\d+ cores, \d+ GiB', table['CPU'])


def test_cann_that_is_not_sourced_is_found_with_its_version(host):
    folder = host.cann()
    host.package('torch_npu', BROKEN)
    status, table, to_fix = host.check()
    assert table['CANN'] == '8.0.RC2 in {}, not sourced'.format(folder)
    assert table['torch_npu'] == '?, does not load: libhccl.so: cannot open shared object file'
    assert (status, to_fix) == (1, ['CANN is installed but not sourced: source {}/set_env.sh'.format(folder)])


def test_cann_is_found_where_its_installer_says(host):
    host.write(host.root / 'etc/Ascend/ascend_cann_install.info', 'version=1.0\nInstall_Path=/opt/huawei\n')
    folder = host.cann('opt/huawei', 'nnae', '7.0.0')
    host.cann()
    assert host.check()[1]['CANN'] == '7.0.0 in {}, not sourced'.format(folder)


def test_sourced_cann_needs_nothing_and_its_variables_are_shown(host):
    home = host.cann() / 'latest'
    status, table, to_fix = host.check(ASCEND_TOOLKIT_HOME=str(home), HCCL_CONNECT_TIMEOUT='1200')
    assert table['CANN'] == '8.0.RC2 in {}, sourced'.format(home)
    assert (status, to_fix) == (0, ['nothing'])
    assert table['variable'] == 'HCCL_CONNECT_TIMEOUT=1200'         # of two rows the last


def test_torch_npu_that_fails_with_cann_sourced_is_quoted(host):
    host.package('torch_npu', BROKEN)
    _, _, to_fix = host.check(ASCEND_TOOLKIT_HOME=str(host.cann() / 'latest'))
    assert to_fix == ['torch_npu does not load although CANN is sourced: libhccl.so: cannot open shared object file']


def test_variables_that_name_a_cann_that_is_gone_are_noticed(host):
    status, _, to_fix = host.check(ASCEND_HOME_PATH='/gone/latest')
    assert status == 1 and to_fix[0].startswith('the environment names /gone/latest, which does not exist')


@pytest.mark.parametrize('leave', [BROKEN, 'import sys\nsys.exit()', 'raise AttributeError("no _C")'])
def test_torch_npu_for_another_torch_is_named(host, leave):
    host.package('torch_npu', leave, version='2.0.1.post4')
    status, table, to_fix = host.check()
    assert table['torch_npu'].startswith('2.0.1.post4, does not load: ')
    assert (status, to_fix) == (1, ['torch_npu 2.0.1.post4 is for torch 2.0.1, found ' + torch.__version__])


def test_torch_npu_for_this_torch_without_cann_asks_for_it(host):
    host.package('torch_npu', BROKEN, version='{}.post1'.format(torch.__version__.split('+')[0]))
    status, _, to_fix = host.check()
    assert status == 1 and len(to_fix) == 1 and 'install CANN, then source its set_env.sh' in to_fix[0]


def test_torch_npu_that_finds_no_device_names_the_tool_to_look_with(host):
    host.package('torch_npu', 'import torch, types\n__version__ = torch.__version__\n'
                              'torch.npu = types.SimpleNamespace(is_available=lambda: False)\n')
    status, table, to_fix = host.check()
    assert table['torch_npu'] == torch.__version__ + ', loads'
    assert (status, to_fix) == (1, ['torch_npu loads but finds no NPU: see npu-smi info and ASCEND_RT_VISIBLE_DEVICES'])


def test_a_driver_that_fails_halfway_is_a_line_too(host):
    host.package('torch_npu', 'import torch, types\n__version__ = torch.__version__\ndef fail():\n'
                              '    raise RuntimeError("aclInit failed")\n'
                              'torch.npu = types.SimpleNamespace(is_available=fail)\n')
    assert host.check()[2] == ['PyTorch cannot use this host: aclInit failed']


def test_chips_without_torch_npu(host):
    host.write(host.root / 'dev/davinci0')
    host.write(host.root / 'dev/davinci_manager')
    host.write(host.root / 'usr/local/Ascend/driver/version.info', 'Version=23.0.3\nascendhal_version=7.35.19\n')
    status, table, to_fix = host.check(PATH='/usr/bin:/bin')
    assert (table['chips'], table['driver']) == ('1 (/dev/davinci*)', '23.0.3')
    release = torch.__version__.split('+')[0]
    assert (status, to_fix) == (1, ['there are NPUs but no torch_npu: install one of ' + release])


def test_chips_are_named_by_npu_smi(host):
    host.write(host.root / 'npu-smi', '#!/bin/sh\ncat <<EOF\n{}EOF\n'.format(SMI)).chmod(0o755)
    assert host.check(PATH='{}:/usr/bin:/bin'.format(host.root))[1]['chips'] == '2 x 910B3'


@pytest.mark.parametrize('files, said, status', [
    ({'__init__.py': '', 'amp/__init__.py': 'def initialize(model, combine_grad=None): pass'}, "Ascend's", 0),
    ({'__init__.py': '', 'amp/__init__.py': 'def initialize(model): pass'}, "NVIDIA's, with amp", 0),
    ({'__init__.py': '', 'normalization/__init__.py': ''}, 'of a release without amp', 0),
    ({'__init__.py': 'import pyramid'}, 'the unrelated package of PyPI', 1),
    ({'__init__.py': '', 'amp/__init__.py': 'import amp_C'}, "does not load: No module named 'amp_C'", 1),
    ({'README.md': ''}, 'absent', 0),           # a folder of this name is no package
], ids=['Ascend', 'NVIDIA', 'NVIDIA without amp', 'PyPI', 'broken', 'a folder'])
def test_whose_apex_it_is(host, files, said, status):
    for name, text in files.items():
        host.write(host.packages / 'apex' / name, text)
    found = host.check()
    assert said in found[1]['apex'] and found[0] == status, found


@pytest.mark.parametrize('name', ['torch', pytest.param('timm', marks=pytest.mark.slow)])
def test_a_package_that_does_not_load_is_named_and_the_rest_is_still_told(host, name):
    host.package(name, 'raise OSError("libcudart.so.9: cannot open shared object file")')
    status, table, to_fix = run(host)
    assert status == 1 and table[name].startswith('does not load: libcudart.so.9') and table['numpy'][0].isdigit()
    assert any(line.startswith(name + ' does not load') for line in to_fix)
