"""The real torch_npu: its wheels, fetched once into the cache, and a look-up of names in their sources.

A wheel is opened as a zip and read with ast, never imported: that would need CANN.
"""
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

# The oldest and the newest PyTorch 2.x: version of torch_npu, of Python, and the wheel's platform.
RELEASES = {'2.1': ('2.1.0.post17', '3.10', 'manylinux2014_x86_64'),
            '2.11': ('2.11.0.post3', '3.11', 'manylinux_2_28_x86_64')}

_unreachable = {}       # folder: why pip could not fill it; asked once a run, since waiting for a network takes a while


def cached(name, *pip):
    """A folder of the cache that `pip ... FOLDER` fills, once, whole or not at all.

    Without network the test is skipped, in CI it fails.
    """
    cache = os.environ.get('MAE_CACHE') or os.path.join(
        os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'mae-pytorch')
    folder = Path(cache) / name
    if not folder.is_dir() and folder not in _unreachable:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = tempfile.mkdtemp(prefix=name + '.part-', dir=str(folder.parent))
        try:
            pip = subprocess.run([sys.executable, '-m', 'pip', '--disable-pip-version-check', *pip, part],
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900)
            if pip.returncode:
                _unreachable[folder] = 'pip could not fetch {}: {}'.format(
                    name, pip.stdout.decode(errors='replace').strip().split('\n')[-1])
            elif not folder.is_dir():           # another run may have been quicker
                os.rename(part, str(folder))
        finally:
            shutil.rmtree(part, ignore_errors=True)
    if folder in _unreachable:
        (pytest.fail if os.environ.get('CI') == 'true' else pytest.skip)(_unreachable[folder])
    return folder


def fetched(release):
    """The path of a wheel in RELEASES."""
    version, python, platform = RELEASES[release]
    folder = cached('torch_npu-{}-cp{}-{}'.format(version, python.replace('.', ''), platform),
                    'download', '--no-deps', '--only-binary=:all:', '--python-version', python, '--platform', platform,
                    'torch_npu==' + version, '--dest')
    return next(folder.glob('*.whl'))


def installed(release):
    """A folder with the release's torch_npu installed for this interpreter, to put on PYTHONPATH."""
    version = RELEASES[release][0]
    return cached('torch_npu-{}-installed-{}'.format(version, sys.implementation.cache_tag), 'install', '--no-deps',
                  '--only-binary=:all:', '--no-compile', 'torch_npu==' + version, '--target')


class Missing(Exception):
    """A name, or a parameter, that the wheel does not have."""


# kind: module, class, instance, function, op (in C++, of any signature). where: the module that defines it.
Found = namedtuple('Found', 'kind where node')


class Wheel:
    """Names and signatures in the Python sources of a wheel."""

    def __init__(self, path):
        with zipfile.ZipFile(str(path)) as opened:
            self.texts = {name: opened.read(name).decode('utf-8') for name in opened.namelist() if name.endswith('.py')}
        self._trees, self._open = {}, set()

    def find(self, name):
        """What a dotted name stands for, e.g. 'torch.npu.amp.GradScaler().step'. Raises Missing."""
        if name.startswith('torch.npu'):
            name = self.device_module() + name[len('torch.npu'):]
        first, *rest = name.split('.')
        found = Found('module', first, None)
        for part in rest:
            found = self.member(found, part[:-2] if part.endswith('()') else part)
            if part.endswith('()'):
                if found.kind != 'class':
                    raise Missing('{} is no class'.format(part))
                found = found._replace(kind='instance')
        return found

    def check_call(self, name, positional, keywords):
        """Raise Missing unless `name` may be called with that many positional arguments and these keywords."""
        found = self.find(name)
        owner = found.kind == 'class' or '().' in name
        if found.kind == 'class':
            own = {getattr(part, 'name', None) for part in found.node.body}
            found = self.member(found, '__new__' if '__new__' in own and '__init__' not in own else '__init__')
        if found.kind == 'op':
            return
        if found.kind != 'function':
            raise Missing('{} cannot be called, as far as its source tells'.format(name))
        arguments = found.node.args
        static = any(getattr(mark, 'id', '') == 'staticmethod' for mark in found.node.decorator_list)
        before = [arg.arg for arg in getattr(arguments, 'posonlyargs', [])]
        names = (before + [arg.arg for arg in arguments.args])[1 if owner and not static else 0:]
        if positional > len(names) and not arguments.vararg:
            raise Missing('{} takes {} arguments, not {}'.format(name, len(names), positional))
        known = set(names[positional:]) - set(before) | {arg.arg for arg in arguments.kwonlyargs}
        unknown = set(keywords) - known
        if unknown and not arguments.kwarg:
            raise Missing('{} does not take {}'.format(name, ', '.join(sorted(unknown))))
        without_default = names[positional:len(names) - len(arguments.defaults)]
        if set(without_default) - set(keywords):
            raise Missing('{} also needs {}'.format(name, ', '.join(without_default)))

    def device_module(self):
        """The module that becomes torch.npu."""
        for text in self.texts.values():
            registered = re.search(r'''torch\._register_device_module\(['"]npu['"], ([\w.]+)\)''', text)
            if registered:
                return registered.group(1)
        raise Missing('no module is registered as torch.npu')

    def member(self, owner, name):
        """`owner.name`."""
        if owner.kind in ('class', 'instance'):
            return self._of_class(owner, name)
        if owner.kind != 'module':
            raise Missing('{} of a {}'.format(name, owner.kind))
        found = self._of_module(owner.where, name)
        if found is None:
            raise Missing('{} has no {}'.format(owner.where, name))
        return found

    # modules

    def _file(self, module):
        base = module.replace('.', '/')
        return next((path for path in (base + '.py', base + '/__init__.py') if path in self.texts), None)

    def _body(self, module):
        """The statements that run at the module's import, those in if, try, with and for included."""
        if module not in self._trees:
            path = self._file(module)
            self._trees[module] = list(_flat(ast.parse(self.texts[path]).body)) if path else []
        return self._trees[module]

    def _absolute(self, module, statement):
        """The module that a `from ... import` of `module` names."""
        if not statement.level:
            return statement.module
        package = module.split('.')
        up = statement.level - (1 if self._file(module).endswith('__init__.py') else 0)
        return '.'.join(package[:len(package) - up] + ([statement.module] if statement.module else []))

    def _of_module(self, module, name):
        if (module, name) in self._open:                # modules that import from one another
            return None
        self._open.add((module, name))
        try:
            return self._look_up(module, name)
        finally:
            self._open.discard((module, name))

    def _look_up(self, module, name):
        for statement in reversed(self._body(module)):
            found = self._bound(module, statement, name)
            if found:
                return found
        inner = module + '.' + name
        if self._file(inner) and self._is_imported(inner):
            return Found('module', inner, None)
        if module == 'torch_npu' and name in _literal_list(self._body('torch_npu.utils.exposed_api'),
                                                           'public_npu_functions'):
            return Found('op', module, None)        # the real package copies torch.ops.npu into itself
        return None

    def _bound(self, module, statement, name):
        """What `name` is after a statement of a module, None where it does not set it."""
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            return Found('class', module, statement)
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)) and statement.name == name:
            return Found('function', module, statement)
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = getattr(statement, 'targets', None) or [statement.target]
            if any(getattr(target, 'id', None) == name for target in targets):
                return self._value(module, statement.value) or Found('value', module, statement)
        if isinstance(statement, ast.ImportFrom):
            source = self._absolute(module, statement)
            for alias in statement.names:
                if alias.name == '*' and name in self._exported(source) or (alias.asname or alias.name) == name:
                    original = name if alias.name == '*' else alias.name
                    if self._file(source + '.' + original):
                        return self._of_module(source, original) or Found('module', source + '.' + original, None)
                    return self._of_module(source, original) if self._file(source) else Found('outside', source, None)
        return None

    def _value(self, module, node):
        """What an assigned expression stands for where it merely gives another name or makes an instance."""
        if isinstance(node, ast.Name):
            return self._of_module(module, node.id)
        if isinstance(node, ast.Attribute):
            owner = self._value(module, node.value)
            return self.member(owner, node.attr) if owner and owner.kind in ('module', 'class') else None
        if isinstance(node, ast.Call):
            made = self._value(module, node.func)
            return made._replace(kind='instance') if made and made.kind == 'class' else None
        return None

    def _exported(self, module):
        """The names that `from module import *` brings."""
        body = self._body(module)
        names = _literal_list(body, '__all__')
        return names or [name for statement in body for name in _names_of(statement) if not name.startswith('_')]

    def _is_imported(self, module):
        """Some module outside of `module` imports it: a file alone is no attribute of its package."""
        package, _, name = module.rpartition('.')
        imports = re.compile(r'^\s*(import {0}\b|from {0}[\w.]* import|from {1} import .*\b{2}\b)'.format(
            re.escape(module), re.escape(package), name), re.MULTILINE)
        relative = re.compile(r'^\s*(from \.{0}[\w.]* import|from \. import .*\b{0}\b)'.format(name), re.MULTILINE)
        if relative.search(self.texts.get(package.replace('.', '/') + '/__init__.py', '')):
            return True
        inside = module.replace('.', '/')
        return any(imports.search(text) for path, text in self.texts.items()
                   if not path.startswith((inside + '/', inside + '.')))

    # classes

    def _of_class(self, owner, name):
        for statement in _flat(owner.node.body):
            if isinstance(statement, (ast.FunctionDef, ast.ClassDef)) and statement.name == name:
                return Found('class' if isinstance(statement, ast.ClassDef) else 'function', owner.where, statement)
            if name in _names_of(statement):
                return Found('value', owner.where, statement)
        outside = []
        for base in owner.node.bases:
            found = self._value(owner.where, base)
            if found is None or found.kind != 'class':
                outside.append(getattr(base, 'attr', getattr(base, 'id', '?')))
                continue
            try:
                return self._of_class(found, name)
            except Missing:
                continue
        unread = ' (not read: its base {} outside the wheel)'.format(', '.join(outside)) if outside else ''
        raise Missing('{} has no {}{}'.format(owner.node.name, name, unread))


def _flat(statements):
    """Statements, and those within if, try, with and for."""
    for statement in statements:
        yield statement
        if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            for field in ('body', 'orelse', 'finalbody'):
                for inner in _flat(getattr(statement, field, [])):
                    yield inner
            for handler in getattr(statement, 'handlers', []):
                for inner in _flat(handler.body):
                    yield inner


def _names_of(statement):
    """The names that a statement sets, star imports left out."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        targets = getattr(statement, 'targets', None) or [statement.target]
        return [target.id for target in targets if isinstance(target, ast.Name)]
    if isinstance(statement, ast.ImportFrom):
        return [alias.asname or alias.name for alias in statement.names]
    return []


def _literal_list(body, name):
    """The strings of a list that the module writes out, [] where it does not."""
    for statement in body:
        if name in _names_of(statement) and isinstance(getattr(statement, 'value', None), (ast.List, ast.Tuple)):
            return ast.literal_eval(statement.value)
    return []
