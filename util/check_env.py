"""What this host has for training, and what to fix: python -m util.check_env

Ends with status 0 where training can start on what is there, 1 where something half-installed needs mending.
"""
import glob
import importlib.util
import os
import platform
import re
import subprocess
import sys
import warnings

from util.errors import first_line, run
from util.features import accepts
from util.parser import Parser

CANN_FOLDERS = ('ascend-toolkit', 'nnae', 'cann')       # the last since CANN 8.5
CANN_VERSION_FILES = ('latest/*-linux/ascend_*_install.info', 'latest/ascend_*_install.info',
                      '*-linux/ascend_*_install.info', 'latest/version.cfg')
MAY_BE_MISSING = ('simplejpeg', 'tensorboard', 'yaml')      # then JPEG files take longer; no curves; no --config


def row(what, how):
    """Print one line of the table."""
    print('{:<14} {}'.format(what, how))


def loaded(name):
    """(module, None), or (None, why it does not load): whatever a broken package does, this goes on."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return importlib.import_module(name), None
    except (Exception, SystemExit) as error:
        return None, first_line(error)


def location(name):
    """The folder of an installed package, None where there is none; nothing is imported."""
    found = importlib.util.find_spec(name)
    return os.path.dirname(found.origin) if found and found.has_location else None


def version_of(name):
    """The version of an installed package that does not load, by the folder of metadata beside it; '' if unknown."""
    for folder in glob.glob(os.path.join(os.path.dirname(location(name)), '*-info')):
        match = re.match(r'(.+?)-(\d[^-]*)(-py\S+)?\.(dist|egg)-info$', os.path.basename(folder))
        if match and match.group(1).replace('-', '_') == name:
            return match.group(2)
    return ''


def release(version):
    """'2.1.0' of '2.1.0.post17' or '2.1.0+cpu': torch and the torch_npu that is made for it share it."""
    return '.'.join(re.findall(r'\d+', version)[:3])


def matches(path, pattern):
    """What `pattern` captures in a file; [] where it cannot be read."""
    try:
        with open(path, encoding='utf-8', errors='replace') as text:
            return re.findall(pattern, text.read(), re.MULTILINE)
    except OSError:
        return []


def check_software(to_fix):
    """The packages that training needs. Returns torch, or None."""
    row('Python', '{} ({})'.format(platform.python_version(), sys.executable))
    modules = {}
    for name in ('torch', 'torchvision', 'timm', 'PIL', 'numpy', *MAY_BE_MISSING):
        modules[name], why_not = loaded(name)
        row(name, getattr(modules[name], '__version__', '?') if modules[name] else 'does not load: ' + why_not)
        if why_not and name not in MAY_BE_MISSING:
            to_fix.append('{} does not load ({}): install what the *_requirements.txt of your PyTorch says'
                          .format(name, why_not))
    return modules['torch']


def check_apex(to_fix):
    """Whose apex is installed, if any."""
    folder = location('apex')
    if not folder:
        row('apex', 'absent; --amp uses native autocast, where PyTorch has it')
    elif os.path.isdir(os.path.join(folder, 'amp')):
        amp, why_not = loaded('apex.amp')
        ascend = hasattr(amp, 'initialize') and accepts(amp.initialize, 'combine_grad')
        row('apex', 'does not load: ' + why_not if why_not else
            "Ascend's: amp.initialize takes combine_grad" if ascend else "NVIDIA's, with amp")
        to_fix += ['apex does not load ({}): reinstall it for this PyTorch'.format(why_not)] if why_not else []
    elif os.path.isdir(os.path.join(folder, 'normalization')):
        row('apex', "NVIDIA's, of a release without amp: not used")
    else:
        row('apex', 'the unrelated package of PyPI')
        to_fix.append('apex is the unrelated package of PyPI: pip uninstall apex')


def check_chips(root):
    """Chips and their driver. Returns whether there are chips."""
    names = []
    try:
        said = subprocess.run(['npu-smi', 'info'], stdout=subprocess.PIPE, timeout=30).stdout.decode(errors='replace')
        names = re.findall(r'^\|\s*\d+\s+((?:Ascend)?\d{3}\w*)\s*\|', said, re.MULTILINE)
    except (OSError, subprocess.SubprocessError):
        pass                                            # without npu-smi the device files still tell
    files = glob.glob(os.path.join(root, 'dev/davinci[0-9]*'))
    counts = ['{} x {}'.format(names.count(name), name) for name in sorted(set(names))]
    row('chips', ', '.join(counts) or ('{} (/dev/davinci*)'.format(len(files)) if files else 'no NPU'))
    driver = matches(os.path.join(root, 'usr/local/Ascend/driver/version.info'), r'^Version=(\S+)')
    row('driver', driver[0] if driver else 'absent')
    return bool(names or files)


def check_cann(to_fix, root):
    """CANN's installation. Returns (its set_env.sh or None, whether it has been sourced)."""
    path = (matches(os.path.join(root, 'etc/Ascend/ascend_cann_install.info'), r'^Install_Path=(\S+)')
            or ['/usr/local/Ascend'])[0]
    base = os.path.join(root, path.lstrip('/'))
    script = next(filter(os.path.isfile, [os.path.join(base, kind, 'set_env.sh') for kind in CANN_FOLDERS]), None)
    home = os.environ.get('ASCEND_TOOLKIT_HOME') or os.environ.get('ASCEND_HOME_PATH')
    sourced = bool(home or (script and os.path.dirname(script) in os.environ.get('LD_LIBRARY_PATH', '')))
    if not (script or home):
        row('CANN', 'absent (looked in {})'.format(base))
        return None, False
    folders = [home, os.path.dirname(home)] if home else [os.path.dirname(script)]
    versions = [''.join(found) for folder in folders for name in CANN_VERSION_FILES
                for file in glob.glob(os.path.join(folder, name))
                for found in matches(file, r'^version=(\S+)|:([^\]:]+)\]$')]
    row('CANN', '{} in {}, {}'.format((versions + ['unknown version'])[0], folders[0],
                                      'sourced' if sourced else 'not sourced'))
    if home and not os.path.isdir(home):
        to_fix.append('the environment names {}, which does not exist: source set_env.sh of the CANN that is there'
                      .format(home))
    elif not sourced:
        to_fix.append('CANN is installed but not sourced: source ' + script)
    return script, sourced


def check_torch_npu(to_fix, torch, chips, script, sourced):
    """torch_npu: whether it loads, and is made for this torch. `script` and `sourced` are from check_cann."""
    found = torch.__version__
    if not location('torch_npu'):
        row('torch_npu', 'built into torch' if hasattr(torch, 'npu') else 'absent')     # Ascend's own torch 1.5
        if chips and not hasattr(torch, 'npu'):
            to_fix.append('there are NPUs but no torch_npu: install one of ' + release(found))
        return
    module, why_not = loaded('torch_npu')
    version = getattr(module, '__version__', '') or version_of('torch_npu')
    row('torch_npu', '{}, {}'.format(version or '?', 'loads' if module else 'does not load: ' + why_not))
    if version and release(version) != release(found):
        to_fix.append('torch_npu {} is for torch {}, found {}'.format(version, release(version), found))
    elif not module and sourced:
        to_fix.append('torch_npu does not load although CANN is sourced: ' + why_not)
    elif not module and not script:
        to_fix.append('torch_npu does not load ({}): install CANN, then source its set_env.sh, by default '
                      '/usr/local/Ascend/ascend-toolkit/set_env.sh'.format(why_not))
    elif module and not (hasattr(torch, 'npu') and torch.npu.is_available()):
        to_fix.append('torch_npu loads but finds no NPU: see npu-smi info and ASCEND_RT_VISIBLE_DEVICES')


def check_devices():
    """What PyTorch sees, and what training would choose."""
    device, precision = (importlib.import_module('util.' + name) for name in ('device', 'precision'))   # need torch
    for kind in ('npu', 'cuda'):
        found, _ = device.probe(kind)
        row(kind.upper(), '{} x {}'.format(found.count(), found.name) if found else 'none')
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    row('CPU', '{} cores, {:.0f} GiB of memory'.format(
        cores, os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2 ** 30))
    chosen = device.select('auto')
    amp = precision.choose(chosen, amp=True).name
    row('--device auto', '{} ({})'.format(chosen.name, chosen.reason))
    row('--amp', '{} ({})'.format(amp, 'half precision makes this CPU slower' if not chosen.gains_by_half() else
                                  'apex is installed' if 'apex' in amp else 'the device has bf16' if 'bf16' in amp else
                                  'the device has no bf16' if 'fp16' in amp else 'neither autocast nor apex for it'))


def main(argv):
    parser = Parser(prog='check_env', description='What this host has for training, and what to fix.')
    parser.add_argument('--root', default='/', help='folder that holds /etc/Ascend, /usr/local/Ascend and /dev')
    root = parser.parse_args(argv).root
    to_fix = []
    torch = check_software(to_fix)
    check_apex(to_fix)
    chips, cann = check_chips(root), check_cann(to_fix, root)
    for name in filter(re.compile('HCCL_|ASCEND_|TASK_QUEUE_ENABLE$|COMBINED_ENABLE$').match, sorted(os.environ)):
        row('variable', '{}={}'.format(name, os.environ[name]))
    if torch:
        try:
            check_torch_npu(to_fix, torch, chips, *cann)
            check_devices()
        except Exception as error:                      # a driver that fails halfway is what this program is for
            to_fix.append('PyTorch cannot use this host: ' + first_line(error))
    print('\nto fix:', *(to_fix or ['nothing']), sep='\n  ')
    sys.exit(1 if to_fix else 0)


if __name__ == '__main__':
    run(main, sys.argv[1:])
