"""Environment report, and what to fix for training: python -m util.tools.check_env

Exits with status 0 if training can start on this host, 1 if something is half-installed.
"""
import glob
import importlib.util
import os
import platform
import re
import sys
import warnings
from typing import List, Sequence

from util.compat import REQUIRED, torchvision_fault
from util.config.parser import Parser
from util.devices.host import default_workers
from util.errors import run
from util.text import first_line

OPTIONAL = ('simplejpeg', 'torch.utils.tensorboard', 'yaml', 'torch_npu', 'apex.amp')


def _row(name, value):
    print('{:<14} {}'.format(name, value))


def _first_match(path, pattern, default):
    """First group of the first match of a regular expression in the files of a glob pattern."""
    for name in glob.glob(path):
        with open(name, encoding='utf-8', errors='replace') as text:
            found = re.search(pattern, text.read(), re.MULTILINE)
        if found:
            return found.group(1)
    return default


def check_software(to_fix: List[str]) -> bool:
    """Report the required and optional packages; returns whether torch loads."""
    _row('Python', '{} ({})'.format(platform.python_version(), sys.executable))
    for name in REQUIRED + OPTIONAL:
        label = name.replace('torch.utils.', '')        # which imports more of tensorboard than its own name
        try:
            if name == 'torch_npu' and 'torch' in sys.modules:
                from util.devices.accelerator import torch_npu_aborts  # here, since it requires torch
                if torch_npu_aborts():          # check_devices says what to do
                    raise ImportError('aborts Python')
            _row(label, getattr(importlib.import_module(name), '__version__', 'installed'))
        except (Exception, SystemExit) as error:        # of any type in a broken package
            problem = 'does not load: ' + first_line(error)
            _row(label, problem)
            fault = torchvision_fault(error)        # timm imports it, too
            if name in REQUIRED and fault not in to_fix:
                to_fix.append(fault or '{} {}; install the *_requirements.txt for your PyTorch'.format(name, problem))
    return 'torch' in sys.modules


def check_host(to_fix: List[str], root: str) -> bool:
    """Report Ascend chips, driver, CANN and environment variables; returns whether there are chips."""
    chips = len(glob.glob(os.path.join(root, 'dev/davinci[0-9]*')))
    _row('chips', chips or 'no NPU')
    driver = os.path.join(root, 'usr/local/Ascend/driver/version.info')
    _row('driver', _first_match(driver, r'^Version=(\S+)', 'absent'))
    record = os.path.join(root, 'etc/Ascend/ascend_cann_install.info')
    base = os.path.join(root, _first_match(record, r'^Install_Path=(\S+)', '/usr/local/Ascend').lstrip('/'))
    scripts = list(filter(os.path.isfile, (os.path.join(base, kind, 'set_env.sh')
                                           for kind in ('ascend-toolkit', 'nnae', 'cann'))))
    home = os.environ.get('ASCEND_TOOLKIT_HOME') or os.environ.get('ASCEND_HOME_PATH')
    folder = home or (os.path.join(os.path.dirname(scripts[0]), 'latest') if scripts else base)
    version = _first_match(os.path.join(folder, '*-linux/ascend_*_install.info'), r'^version=(\S+)', '?')
    _row('CANN', '{} in {}, {}sourced'.format(version, folder, '' if home else 'not ') if home or scripts
        else 'absent (looked in {})'.format(base))
    if (scripts or home) and not os.path.isdir(home or ''):
        to_fix.append('CANN is not sourced: source ' + (scripts or ['set_env.sh of the installed version'])[0])
    for name in filter(re.compile('HCCL_|ASCEND_|TASK_QUEUE_ENABLE$|COMBINED_ENABLE$').match, sorted(os.environ)):
        _row('variable', '{}={}'.format(name, os.environ[name]))
    return chips > 0


def check_devices(to_fix: List[str], chips: bool) -> None:
    """Report the devices that PyTorch finds, and what --device auto --amp would choose."""
    from util.devices import accelerator as devices, precision  # here, since they require torch
    for kind in ('npu', 'cuda'):
        found, why_not = devices.probe(kind)
        if found:
            found.use(0)        # raises UserError if it is busy or not permitted
        _row(kind.upper(), '{} x {}'.format(found.count(), found.name) if found else why_not)
        if kind == 'npu' and not found and (chips or importlib.util.find_spec('torch_npu')):
            to_fix.append(why_not)
    _row('CPU', '{} cores, {:.0f} GiB of memory'.format(
        default_workers(most=sys.maxsize), os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2 ** 30))
    chosen = devices.select('auto')
    _row('--device auto', '{} ({})'.format(chosen.name, chosen.reason))
    _row('--amp', precision.choose_precision(chosen, amp=True).name)


def main(argv: Sequence[str]) -> None:
    parser = Parser(prog='check_env', description='Report what this host has for training, and what to fix.')
    parser.add_argument('--root', default='/', help='root folder of /etc/Ascend, /usr/local/Ascend and /dev')
    root, to_fix = parser.parse_args(argv).root, []
    warnings.simplefilter('ignore')
    torch = check_software(to_fix)
    chips = check_host(to_fix, root)
    try:
        if torch:
            check_devices(to_fix, chips)
    except Exception as error:                  # a broken driver is to be reported, too
        to_fix.append('PyTorch cannot use this host: ' + first_line(error))
    print('\nto fix:', *(to_fix or ['nothing']), sep='\n  ')
    sys.exit(1 if to_fix else 0)


if __name__ == '__main__':
    run(main, sys.argv[1:])
