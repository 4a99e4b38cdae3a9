"""python -m util.tools.check_env on complete and half-installed hosts."""
import importlib
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, environment, execute, write_file

from util.tools import check_env


def cann(base, kind='ascend-toolkit', version='8.0.RC2'):
    """Install a fake CANN below `base`; returns its folder."""
    write_file(base / kind / 'set_env.sh')
    write_file(base / kind / 'latest' / 'x86_64-linux' / 'ascend_toolkit_install.info',
               'package_name=Ascend-cann-toolkit\nversion={}\narch=x86_64\n'.format(version))
    return base / kind


def read(status, output):
    """(status, table, list of what to fix) of the output."""
    assert 'Traceback' not in output and '\nto fix:\n' in output, output
    rows, to_fix = output.split('\nto fix:\n')
    return (status, {row[:14].strip(): row[15:] for row in rows.strip().split('\n')},
            [line.strip() for line in to_fix.strip().split('\n')])


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder of packages at the head of sys.path."""
    monkeypatch.syspath_prepend(str(tmp_path / 'packages'))
    return tmp_path / 'packages'


@pytest.fixture
def check(tmp_path, packages, monkeypatch, capsys):
    """Runs the program with VARIABLE=value, ... and tmp_path for /, on a host without GPU and Ascend's software."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    for where, name in ((sys.modules, 'torch_npu'), (sys.modules, 'apex'), (sys.modules, 'apex.amp'),
                        (vars(torch), 'npu')):
        monkeypatch.setitem(where, name, None)      # restored afterwards
        del where[name]
    for name in list(os.environ):
        if name.startswith(('ASCEND_', 'HCCL_', 'TASK_QUEUE_', 'COMBINED_')):
            monkeypatch.delenv(name)

    def run(**environ):
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        importlib.invalidate_caches()
        with pytest.raises(SystemExit) as end:
            check_env.main(['--root', str(tmp_path)])
        return read(end.value.code, capsys.readouterr().out)
    return run


def test_a_machine_without_npus_is_ready_for_the_cpu(check):
    status, table, to_fix = check()
    assert (status, to_fix) == (0, ['nothing'])
    assert (table['torch'], table['chips'], table['driver']) == (torch.__version__, 'no NPU', 'absent')
    assert table['--device auto'].startswith('CPU (no NPU') and table['--amp'] in ('fp32', 'native bf16')


def test_cann_is_found_by_its_installation_record_until_it_is_sourced(tmp_path, check):
    write_file(tmp_path / 'etc/Ascend/ascend_cann_install.info', 'version=1.0\nInstall_Path=/opt/huawei\n')
    folder = cann(tmp_path / 'opt/huawei', 'nnae', '7.0.0')
    cann(tmp_path / 'usr/local/Ascend')
    for home in ('', '/gone/latest'):
        status, table, to_fix = check(ASCEND_TOOLKIT_HOME=home)
        assert status == 1 and len(to_fix) == 1 and '{}/set_env.sh'.format(folder) in to_fix[0]
        assert home or table['CANN'] == '7.0.0 in {}/latest, not sourced'.format(folder)
    status, table, to_fix = check(ASCEND_TOOLKIT_HOME=str(folder / 'latest'), HCCL_CONNECT_TIMEOUT='1200')
    assert table['CANN'] == '7.0.0 in {}/latest, sourced'.format(folder)
    assert (status, to_fix, table['variable']) == (0, ['nothing'], 'HCCL_CONNECT_TIMEOUT=1200')     # of two the last


@pytest.mark.parametrize('text, reason', [
    ('raise ImportError("libhccl.so: cannot open")', 'libhccl.so'),
    ('import torch, types\ntorch.npu = types.SimpleNamespace(is_available=lambda: int("aclInit failed"))\n',
     'aclInit failed')])
def test_a_broken_torch_npu_is_one_line_to_fix(tmp_path, packages, check, text, reason):
    write_file(packages / 'torch_npu' / '__init__.py', text)
    status, _, to_fix = check(ASCEND_TOOLKIT_HOME=str(cann(tmp_path / 'usr/local/Ascend') / 'latest'))
    assert status == 1 and len(to_fix) == 1 and reason in to_fix[0]


def test_chips_without_torch_npu_are_to_fix_but_apex_is_optional(tmp_path, packages, check):
    write_file(packages / 'apex' / '__init__.py', 'import pyramid')
    for name in ('dev/davinci0', 'dev/davinci1', 'dev/davinci_manager'):
        write_file(tmp_path / name)
    write_file(tmp_path / 'usr/local/Ascend/driver/version.info', 'Version=23.0.3\nascendhal_version=7.35.19\n')
    status, table, to_fix = check()
    assert (table['chips'], table['driver'], status) == ('2', '23.0.3', 1) and 'pyramid' in table['apex.amp']
    assert len(to_fix) == 1 and 'torch_npu' in to_fix[0]


def test_a_torch_that_does_not_load_is_to_fix_and_the_rest_is_still_listed(tmp_path, packages):
    write_file(packages / 'torch' / '__init__.py', 'raise OSError("libcudart.so.9: cannot open")')
    run = subprocess.run([sys.executable, '-m', 'util.tools.check_env', '--root', tmp_path], stdout=subprocess.PIPE,
                         env=environment(PYTHONPATH=os.pathsep.join([str(ROOT), str(packages)])))
    status, table, to_fix = read(run.returncode, run.stdout.decode())
    assert status == 1 and table['torch'].startswith('does not load: libcudart.so.9') and table['numpy'][0].isdigit()
    assert any(line.startswith('torch does not load') for line in to_fix)


def test_a_torchvision_for_another_torch_is_one_line_that_names_the_pair(tmp_path, packages, check, monkeypatch):
    write_file(packages / 'torchvision' / '__init__.py',
               'raise RuntimeError("operator torchvision::nms does not exist")')
    environ = {'PYTHONPATH': os.pathsep.join([str(packages), str(ROOT)])}
    run = execute([sys.executable, ROOT / 'main_pretrain.py', '--data_path', tmp_path], **environ)
    pair = 'pip install torch=={} torchvision==0.'.format(torch.__version__.split('+')[0])
    assert (run.status, run.output.count('\n')) == (2, 1) and pair in run.output, run.output
    for name in [name for name in sys.modules if name.split('.')[0] in ('torchvision', 'timm')]:
        monkeypatch.delitem(sys.modules, name)
    status, _, to_fix = check()
    assert status == 1 and len(to_fix) == 1 and pair in to_fix[0]


def test_a_torch_npu_that_aborts_beside_a_cuda_build_is_named_and_tried_once(packages, check, monkeypatch):
    write_file(packages / 'torch_npu' / '__init__.py', 'import os; open({!r}, "a").write("x"); os.abort()'.format(
        str(packages / 'tries')))
    monkeypatch.setattr(torch.version, 'cuda', '12.8')
    status, table, to_fix = check(MAE_ABORTS_TORCH_NPU='')
    assert status == 1 and len(to_fix) == 1 and 'https://download.pytorch.org/whl/cpu' in to_fix[0]
    assert table['torch_npu'] == 'does not load: aborts Python' and (packages / 'tries').read_text() == 'x'


def test_a_tensorboard_that_does_not_load_is_named(packages, check, monkeypatch):
    for name in [name for name in sys.modules if name.split('.')[0] == 'tensorboard' or 'utils.tensorboard' in name]:
        monkeypatch.delitem(sys.modules, name)
    write_file(packages / 'tensorboard' / '__init__.py', 'raise TypeError("Descriptors cannot be created directly")')
    status, table, _ = check()
    assert status == 0 and table['tensorboard'] == 'does not load: Descriptors cannot be created directly'
