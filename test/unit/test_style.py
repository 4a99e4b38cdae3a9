"""Lint, size limits and import order; every file is parsed as Python 3.7."""
import ast
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, execute, succeeded


def tool(name):
    """Path of a program in this interpreter's environment or in PATH."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']]))
    if not found:
        if os.environ.get('CI') == 'true':
            pytest.fail(name + ' is missing, and CI skips nothing')
        pytest.skip(name + ' is not installed')
    return found


PYTHON_3_7 = {'feature_version': (3, 7)} if sys.version_info >= (3, 8) else {}
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding='utf-8'), str(path), **PYTHON_3_7)
         for path in ROOT.rglob('*.py') if not any(part.startswith(('.', 'output', 'demo_output'))
                                                   for part in path.relative_to(ROOT).parts)}
PROGRAM = {name: tree for name, tree in TREES.items() if not name.startswith('test/')}


def test_ruff():
    """The public functions and classes of the program, but for `main`, also have docstrings and type annotations."""
    documented = ['--select', 'D100,D101,D103,ANN201,ANN206', '--per-file-ignores', 'main_*:D103,util/tools/*:D103']
    for words in ([ROOT], [*documented, ROOT / 'util', *ROOT.glob('*.py')]):
        succeeded(execute([tool('ruff'), 'check', '--no-cache', *words]))


def test_shellcheck():
    """What a launcher sources is checked only by itself, which is four times as quick."""
    scripts = [*ROOT.glob('test/**/*.sh'), ROOT / 'test' / 'slurm.sbatch', ROOT / '.ci' / 'run']
    launchers = [path for path in scripts if re.search('^launch ', path.read_text(), re.M)]
    assert len(launchers) == 13
    for words in (['-e', 'SC1091', *launchers], ['-x', '-P', 'SCRIPTDIR', *sorted({*scripts} - {*launchers})]):
        succeeded(execute([tool('shellcheck'), *words]))


def test_files_have_at_most_350_lines_and_functions_60():
    long = [name for name in TREES if not name.startswith('test/unit') and (ROOT / name).read_text().count('\n') > 350]
    long += ['{}: {}'.format(name, node.name) for name, tree in TREES.items() if not name.startswith('test/unit')
             for node in ast.walk(tree)
             if isinstance(node, ast.FunctionDef) and node.body[-1].lineno - node.lineno > 60]
    assert not long


LAYERS = ('', 'config', 'devices', 'distributed', 'models', 'data', 'checkpoints', 'reporting', 'training', 'tools')


def layer_of(module):
    """Index in LAYERS of the package of a dotted module name."""
    package = (module.split('.') + [''])[1]
    return LAYERS.index(package if package in LAYERS else '')


def imports_of(tree):
    """Dotted names of imported modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ['util.' + alias.name for alias in node.names] if node.module == 'util' else [node.module]
        elif isinstance(node, ast.Import):
            yield from [alias.name for alias in node.names]


def test_packages_import_only_earlier_packages():
    """Only util/models/build.py imports models_mae and models_vit."""
    modules = {name[:-len('.py')].replace('/', '.'): tree for name, tree in PROGRAM.items() if name.startswith('util/')}
    assert not [(module, other) for module, tree in modules.items() for other in imports_of(tree)
                if other.startswith('util.') and layer_of(other) > layer_of(module)
                or other.startswith(('models_', 'main_', 'engine_')) and module != 'util.models.build']


def test_folders_have_at_most_15_modules():
    folders = [os.path.dirname(name) for name in TREES if name.startswith(('util/', 'test/unit/'))]
    assert max(map(folders.count, folders)) <= 15


def test_no_version_is_compared():
    names = {'__version__', 'version_info', 'hexversion', 'LooseVersion', 'Version'}
    assert not [(name, node.lineno) for name, tree in PROGRAM.items() for node in ast.walk(tree)
                if isinstance(node, ast.Compare)
                and names & {getattr(part, 'attr', getattr(part, 'id', '')) for part in ast.walk(node)}]


@pytest.mark.parametrize('script, flag', [('main_pretrain.py', '--data_path'), ('main_finetune.py', '--data_path'),
                                          ('main_linprobe.py', '--data_path'), ('main_predict.py', '--class_names')])
def test_help_does_not_import_torch(script, flag):
    run = execute([sys.executable, '-X', 'importtime', ROOT / script, '--help'])
    assert run.status == 0 and flag in run.output
    assert '| torch' not in run.output.replace('|   ', '| ').replace('|  ', '| ')
