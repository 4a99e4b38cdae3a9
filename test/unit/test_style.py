"""Lint, and what holds for every file of the repository."""
import ast
import os
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, execute


def tool(name):
    """A program of this interpreter's environment or of the machine."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']]))
    if not found:
        if os.environ.get('CI') == 'true':
            pytest.fail(name + ' is missing, and CI skips nothing')
        pytest.skip(name + ' is not installed')
    return found


PYTHON_FILES = [p for p in ROOT.rglob('*.py') if not any(part.startswith(('.', 'output', 'demo_output'))
                                                           for part in p.relative_to(ROOT).parts)]
PROGRAM = [p for p in PYTHON_FILES if p.relative_to(ROOT).parts[0] != 'test']


def test_ruff_finds_nothing():
    run = execute([tool('ruff'), 'check', '--no-cache', ROOT])
    assert run.status == 0, run.output


def test_shellcheck_finds_nothing():
    scripts = [*ROOT.glob('test/**/*.sh'), ROOT / 'test' / 'slurm.sbatch', ROOT / '.ci' / 'run']
    assert len(scripts) > 12
    run = execute([tool('shellcheck'), '-x', '-P', 'SCRIPTDIR', *scripts])
    assert run.status == 0, run.output


@pytest.mark.parametrize('path', PYTHON_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_is_python_3_7_and_short_enough_to_read(path):
    text = path.read_text(encoding='utf-8')
    options = {'feature_version': (3, 7)} if sys.version_info >= (3, 8) else {}
    tree = ast.parse(text, **options)
    if path.parent.name != 'unit':
        assert text.count('\n') <= 350
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.body[-1].lineno - node.lineno <= 60, node.name


def test_every_public_function_and_class_says_what_it_is_for():
    missing = []
    for path in PROGRAM:
        tree = ast.parse(path.read_text(encoding='utf-8'))
        documented = [tree] + [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        missing += ['{}: {}'.format(path.name, getattr(node, 'name', 'module')) for node in documented
                    if not getattr(node, 'name', '').startswith('_') and getattr(node, 'name', '') != 'main'
                    and not ast.get_docstring(node)]
    assert not missing


def nodes_of(kind):
    """(module, node) of every node of a kind in the program."""
    return [(path.relative_to(ROOT).as_posix(), node) for path in PROGRAM
            for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))) if isinstance(node, kind)]


def test_versions_are_never_compared():
    names = {'__version__', 'version_info', 'hexversion', 'LooseVersion', 'Version'}
    assert not [(module, node.lineno) for module, node in nodes_of(ast.Compare)
                if names & {getattr(part, 'attr', getattr(part, 'id', '')) for part in ast.walk(node)}]


def test_what_may_be_missing_is_imported_in_one_place_each():
    guarded = {module for module, node in nodes_of(ast.ExceptHandler)
               if {'ImportError', 'Exception'} & {getattr(part, 'id', '') for part in ast.walk(node.type or node)}}
    assert guarded == {'util/device.py',            # torch_npu
                       'util/check_env.py',         # anything: it says what does not load
                       'util/precision.py',         # apex
                       'util/timm_compat.py',       # what moved within timm
                       'util/compiling.py',         # torch.compile's compilers
                       'util/config.py',            # PyYAML
                       'util/launch.py',            # torch.distributed.run
                       'util/logbook.py',           # tensorboard
                       'util/export.py',            # onnx
                       'util/export_hf.py',         # transformers
                       'util/export_onnx.py',       # onnxruntime
                       'util/pictures.py',          # simplejpeg
                       'util/images.py'}            # whatever a damaged file makes Pillow raise
    imports = nodes_of((ast.Import, ast.ImportFrom))
    using_timm = {module for module, node in imports
                  if 'timm' in {name.split('.')[0] for name in
                                [getattr(node, 'module', None) or '', *(alias.name for alias in node.names)]}}
    # One prints its version, one hands models over to it.
    assert using_timm == {'util/timm_compat.py', 'util/runtime.py', 'util/export_timm.py'}


def test_help_answers_without_loading_torch():
    for script, flag in (('main_pretrain.py', '--data_path'), ('main_finetune.py', '--data_path'),
                         ('main_linprobe.py', '--data_path'), ('main_predict.py', '--class_names')):
        run = execute([sys.executable, '-X', 'importtime', ROOT / script, '--help'])
        assert run.status == 0 and flag in run.output
        assert '| torch' not in run.output.replace('|   ', '| ').replace('|  ', '| ')
