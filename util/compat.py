"""Feature detection on installed libraries, instead of version comparisons, and a line where one is missing."""
import glob
import inspect
import os
import sys
import traceback
from importlib.util import find_spec
from typing import Any, Callable, Dict

from util.text import first_line

REQUIRED = ('torch', 'torchvision', 'timm', 'PIL', 'numpy', 'tqdm', 'filelock', 'safetensors')


def accepts(function: Callable, keyword: str) -> bool:
    """Whether a function, or a class's constructor, has the named keyword."""
    return keyword in inspect.signature(function).parameters


def supported(function: Callable, **options: Any) -> Dict[str, Any]:
    """The `options` that `function` accepts, for keywords that only make it faster or tidier."""
    return {name: value for name, value in options.items() if accepts(function, name)}


def torchvision_fault(error: BaseException) -> str:
    """What to install if `error` comes from importing torchvision beside another release or build of torch, else ''."""
    torch, frames = sys.modules.get('torch'), traceback.walk_tb(error.__traceback__)
    if not torch or not any(frame.f_code.co_name == '<module>' and frame.f_globals['__name__'].startswith('torchvision')
                            for frame, _ in frames):
        return ''
    release, _, build = torch.__version__.partition('+')
    major, minor = map(int, release.split('.')[:2])
    return ('torchvision does not load beside torch {} ({}); install the pair: pip install torch=={} '
            'torchvision==0.{}.* --index-url https://download.pytorch.org/whl/{}'.format(
                torch.__version__, first_line(error), release, minor + (15 if major > 1 else 1),
                build if build.startswith('cu') else 'cpu'))


def report_import_error(kind: type, error: BaseException, trace: Any) -> None:
    """sys.excepthook: one line and status 2 if required packages are missing or torchvision does not match torch."""
    missing = [name for name in REQUIRED if find_spec(name) is None] if kind is ModuleNotFoundError else []
    fault = '' if missing else torchvision_fault(error)
    if not missing and not fault:
        sys.__excepthook__(kind, error, trace)
        return
    # Environments that the launchers have made, see test/lib/python.sh.
    cache = os.environ.get('MAE_CACHE') or os.path.join(
        os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'mae-pytorch')
    made = glob.glob(os.path.join(glob.escape(cache), 'env-*', 'complete'))
    newest = max(made, key=lambda path: ('env-2' in path, os.path.getmtime(path)), default='')
    print('error: ' + (fault or '{} has no {}; {}'.format(
        sys.executable, ', '.join(missing), 'use ' + newest.replace('complete', 'bin/python') if newest else
        'install the *_requirements.txt for your PyTorch, or run bash test/demo.sh, which makes an environment')),
        file=sys.stderr, flush=True)
    os._exit(2)
