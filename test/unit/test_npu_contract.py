"""The emulated NPU offers no name and no parameter that the real torch_npu lacks.

So a name that the program uses on the emulator exists on every NPU. No NPU is needed: the wheels are downloaded once
(70 MB, into the cache folder) and their sources read, never imported, which would need CANN.
"""
import ast
import functools
import os
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, execute

# The oldest and the newest PyTorch 2.x: version of torch_npu, of Python, and the wheel's platform.
RELEASES = {'2.1': ('2.1.0.post17', '3.10', 'manylinux2014_x86_64'),
            '2.11': ('2.11.0.post3', '3.11', 'manylinux_2_28_x86_64')}
EMULATED = ROOT / 'test' / 'unit' / 'npu' / 'torch_npu'
PACKAGES = {'npu': 'npu/__init__.py', 'npu/utils': 'npu/utils.py', 'profiler': 'profiler.py'}
# What the program uses of classes whose emulated twins inherit it.
INHERITED = [('profiler', 'profile', 'export_chrome_trace', ())]


def emulated():
    """(package, name, method or None, parameters) of all functions and public methods of the emulator."""
    for package, path in PACKAGES.items():
        for node in ast.parse((EMULATED / path).read_text(encoding='utf-8')).body:
            for target in getattr(node, 'targets', ()):
                if isinstance(target, ast.Name) and not target.id.startswith('_'):
                    yield package, target.id, None, ()
            if isinstance(node, ast.FunctionDef) and not node.name.startswith('_'):
                yield package, node.name, None, parameters(node)
            elif isinstance(node, ast.ClassDef):
                for part in node.body:
                    if isinstance(part, ast.FunctionDef) and (part.name == '__init__' or part.name[0] != '_'):
                        yield package, node.name, part.name, parameters(part)[1:]


def parameters(function):
    return tuple(part.arg for part in function.args.args + function.args.kwonlyargs)


@functools.lru_cache(maxsize=None)
def trees(release):
    """{path within torch_npu: syntax tree}. The wheel is fetched once, whole or not at all."""
    version, python, platform = RELEASES[release]
    cache = os.environ.get('MAE_CACHE') or os.path.join(
        os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'mae-pytorch')
    folder = Path(cache) / 'torch_npu-{}-cp{}-{}'.format(version, python.replace('.', ''), platform)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=str(folder.parent)) as part:
            run = execute([sys.executable, '-m', 'pip', '--disable-pip-version-check', 'download', '--no-deps',
                           '--only-binary=:all:', '--python-version', python, '--platform', platform,
                           'torch_npu==' + version, '--dest', os.path.join(part, 'wheels')])
            if run.status:
                (pytest.fail if os.environ.get('CI') == 'true' else pytest.skip)(run.output.strip().split('\n')[-1])
            os.rename(os.path.join(part, 'wheels'), str(folder))
    try:
        with zipfile.ZipFile(str(next(folder.glob('*.whl')))) as wheel:
            return {name.split('/', 1)[1]: ast.parse(wheel.read(name)) for name in wheel.namelist()
                    if name.endswith('.py') and name.startswith(tuple('torch_npu/' + package for package in PACKAGES))
                    or name == 'torch_npu/utils/exposed_api.py'}
    except SyntaxError as error:
        pytest.skip('this Python cannot parse the sources of torch_npu {}: {}'.format(release, error))


def exported(release, package):
    """__all__ of a package or module."""
    body = trees(release).get(package + '/__init__.py', trees(release).get(package + '.py')).body
    return next(ast.literal_eval(node.value) for node in body
                if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__')


def definitions(release, package, name):
    """Functions and classes of that name in the files of a package, and methods in the classes there."""
    bodies = [tree.body for path, tree in trees(release).items() if path.startswith(package.split('/')[0])]
    bodies += [node.body for body in bodies for node in body if isinstance(node, ast.ClassDef)]
    return [node for body in bodies for node in body if getattr(node, 'name', '') == name]


def is_offered(release, package, name, method, words):
    """Whether the release exports the name, with the method and parameters if they are given."""
    found = definitions(release, package, name)
    if method == '__init__':        # of a class, unless it is a function there
        found += [part for node in found for part in node.body if getattr(part, 'name', '') in (method, '__new__')]
    elif method:
        found = definitions(release, package, method)
    takes_words = any(set(words) <= set(parameters(function)) or function.args.kwarg or function.args.vararg
                      for function in found if isinstance(function, ast.FunctionDef))
    return name in exported(release, package) and (takes_words if words else found or not method)


@pytest.mark.filterwarnings('ignore')       # of what the parser thinks of those sources
@pytest.mark.parametrize('release', RELEASES)
def test_what_the_emulator_offers_the_real_package_has(release):
    assert not [what for what in [*emulated(), *INHERITED] if not is_offered(release, *what)]
    operators = ast.dump(trees(release)['utils/exposed_api.py'])
    assert "'npu_clear_float_status'" in operators and "'npu_get_float_status'" in operators
