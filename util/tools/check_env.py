"""What this host has for training, and what to fix: python -m util.tools.check_env

Ends with status 0 where training can start on what is there, 1 where something half-installed needs mending.
"""
import glob
import importlib.util
import os
import platform
import re
import sys
import warnings

from util.config.parser import Parser
from util.errors import run
from util.text import first_line

NEEDED = ('torch', 'torchvision', 'timm', 'PIL', 'numpy')
OPTIONAL = ('simplejpeg', 'tensorboard', 'yaml', 'torch_npu', 'apex.amp')


def row(what, how):
    """Print one line of the table."""
    print('{:<14} {}'.format(what, how))


def first_match(path, pattern, default):
    """What `pattern` captures first in the files of a glob pattern, or `default`."""
    for name in glob.glob(path):
        with open(name, encoding='utf-8', errors='replace') as text:
            found = re.search(pattern, text.read(), re.MULTILINE)
        if found:
            return found.group(1)
    return default


def check_software(to_fix):
    """The packages that training needs; returns whether there is torch."""
    row('Python', '{} ({})'.format(platform.python_version(), sys.executable))
    for name in NEEDED + OPTIONAL:
        try:
            row(name, getattr(importlib.import_module(name), '__version__', 'there'))
        except (Exception, SystemExit) as error:        # whatever a broken package does
            how = 'does not load: ' + first_line(error)
            row(name, how)
            if name in NEEDED:
                to_fix.append('{} {}; install what the *_requirements.txt of your PyTorch says'.format(name, how))
    return 'torch' in sys.modules


def check_host(to_fix, root):
    """Chips, driver, CANN and variables; returns whether there are chips."""
    chips = len(glob.glob(os.path.join(root, 'dev/davinci[0-9]*')))
    row('chips', chips or 'no NPU')
    row('driver', first_match(os.path.join(root, 'usr/local/Ascend/driver/version.info'), r'^Version=(\S+)', 'absent'))
    base = os.path.join(root, first_match(os.path.join(root, 'etc/Ascend/ascend_cann_install.info'),
                                          r'^Install_Path=(\S+)', '/usr/local/Ascend').lstrip('/'))
    scripts = list(filter(os.path.isfile, (os.path.join(base, kind, 'set_env.sh')
                                           for kind in ('ascend-toolkit', 'nnae', 'cann'))))
    home = os.environ.get('ASCEND_TOOLKIT_HOME') or os.environ.get('ASCEND_HOME_PATH')
    folder = home or (os.path.join(os.path.dirname(scripts[0]), 'latest') if scripts else base)
    version = first_match(os.path.join(folder, '*-linux/ascend_*_install.info'), r'^version=(\S+)', '?')
    row('CANN', '{} in {}, {}sourced'.format(version, folder, '' if home else 'not ') if home or scripts
        else 'absent (looked in {})'.format(base))
    if (scripts or home) and not os.path.isdir(home or ''):
        to_fix.append('CANN is not sourced: source ' + (scripts or ['set_env.sh of the one that is there'])[0])
    for name in filter(re.compile('HCCL_|ASCEND_|TASK_QUEUE_ENABLE$|COMBINED_ENABLE$').match, sorted(os.environ)):
        row('variable', '{}={}'.format(name, os.environ[name]))
    return chips > 0


def check_devices(to_fix, chips):
    """What PyTorch sees, and what training would choose."""
    # Imported here: they need torch.
    device, precision = map(importlib.import_module, ('util.devices.accelerator', 'util.devices.precision'))
    for kind in ('npu', 'cuda'):
        found, why_not = device.probe(kind)
        row(kind.upper(), '{} x {}'.format(found.count(), found.name) if found else why_not)
        if kind == 'npu' and not found and (chips or importlib.util.find_spec('torch_npu')):
            to_fix.append(why_not)
    row('CPU', '{} cores, {:.0f} GiB of memory'.format(
        len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2 ** 30))
    chosen = device.select('auto')
    row('--device auto', '{} ({})'.format(chosen.name, chosen.reason))
    row('--amp', precision.choose_precision(chosen, amp=True).name)


def main(argv):
    parser = Parser(prog='check_env', description='What this host has for training, and what to fix.')
    parser.add_argument('--root', default='/', help='folder that holds /etc/Ascend, /usr/local/Ascend and /dev')
    root, to_fix = parser.parse_args(argv).root, []
    warnings.simplefilter('ignore')
    torch = check_software(to_fix)
    chips = check_host(to_fix, root)
    try:
        if torch:
            check_devices(to_fix, chips)
    except Exception as error:                  # a driver that fails halfway is what this program is for
        to_fix.append('PyTorch cannot use this host: ' + first_line(error))
    print('\nto fix:', *(to_fix or ['nothing']), sep='\n  ')
    sys.exit(1 if to_fix else 0)


if __name__ == '__main__':
    run(main, sys.argv[1:])
