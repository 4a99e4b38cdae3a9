"""Which names and keywords of torch.npu and torch_npu the program uses, read from its source; no list is kept by hand.

What an expression stands for is followed through local variables, attributes of self, getattr with a literal name,
functions of the program and what they return. `accelerator.module` and the `self.module` of util.device.Accelerator are
torch.npu. What cannot be followed, as a module handed to a function under another name, is not found.
"""
import ast
from collections import namedtuple

# name: dotted, `()` after a class stands for its instance. call: None, or (number of positional arguments, keywords).
# optional: the program asks whether it is there before it uses it.
Use = namedtuple('Use', 'name call optional')

ROOTS = ('torch.npu', 'torch_npu')


def describe(use):
    """'torch.npu.amp.GradScaler(init_scale=)': a use as one reads it."""
    if use.call is None:
        return use.name
    positional, keywords = use.call
    return '{}({})'.format(use.name, ', '.join(['_'] * positional + [word + '=' for word in sorted(keywords)]))


def _literal(node):
    return getattr(node, 'value', None) if isinstance(node, ast.Constant) else getattr(node, 's', None)


def _is_call_of(node, *names):
    return isinstance(node, ast.Call) and getattr(node.func, 'attr', getattr(node.func, 'id', None)) in names


class Program:
    """The sources of a program, `texts`, and what it uses of torch.npu and torch_npu."""

    def __init__(self, texts):
        self.nodes = []
        for text in texts:
            tree = ast.parse(text)
            for node in ast.walk(tree):
                self.nodes.append(node)
                for child in ast.iter_child_nodes(node):
                    child.parent = node
        self.functions, self.classes, self.calls = {}, {}, {}
        for node in self.nodes:
            if isinstance(node, ast.FunctionDef):
                self.functions.setdefault(node.name, []).append(node)
            elif isinstance(node, ast.ClassDef):
                self.classes[node.name] = node
            elif isinstance(node, ast.Call):
                self.calls.setdefault(getattr(node.func, 'attr', getattr(node.func, 'id', None)), []).append(node)
        self._open = set()

    def uses(self):
        """All of them, sorted, each once."""
        plain, calls, asked, asked_keywords = {}, {}, set(), set()
        for node in self.nodes:
            if _is_call_of(node, 'hasattr') and _literal(node.args[1]):
                asked.update(self._members(node.args[0], _literal(node.args[1])))
            elif _is_call_of(node, 'accepts', 'supported') and node.args:
                words = [_literal(word) for word in node.args[1:]] + [word.arg for word in node.keywords]
                asked_keywords.update((name, word) for name, _ in self.stands_for(node.args[0]) for word in words)
            elif isinstance(node, ast.Call):
                for name, guarded in self.stands_for(node.func):
                    calls.setdefault((name, self._arguments(node)), []).append(guarded)
            if isinstance(node, (ast.Attribute, ast.Call)):
                for name, guarded in self.stands_for(node):
                    if not name.endswith('()'):
                        plain.setdefault(name, []).append(guarded)
        asked = {name for name, _ in asked}
        found = {Use(name, None, name in asked or all(guards)) for name, guards in plain.items()
                 if not any(other.startswith((name + '.', name + '(')) for other in plain)
                 and name not in {called for called, _ in calls}}
        for (name, (positional, keywords)), guards in calls.items():
            mere = frozenset(word for word in keywords if (name, word) in asked_keywords)
            found.add(Use(name, (positional, keywords - mere), name in asked or all(guards)))
            found.update(Use(name, (0, frozenset([word])), True) for word in mere)
        return sorted((use for use in found if use.name.startswith(tuple(root + '.' for root in ROOTS))), key=describe)

    def stands_for(self, node):
        """{(dotted name, whether the program asked for it first)} that an expression may be."""
        if id(node) in self._open:                      # as in module = module.amp
            return set()
        self._open.add(id(node))
        found = self._stands_for(node)
        self._open.discard(id(node))
        return {(name, guarded) for name, guarded in found if name.split('.')[0] in ('torch', 'torch_npu')}

    def _stands_for(self, node):
        if isinstance(node, ast.Name):
            found = self._union(self._assigned(node, lambda target: getattr(target, 'id', None) == node.id,
                                               (ast.FunctionDef, ast.Module)))
            return found or ({(node.id, False)} if node.id in ('torch', 'torch_npu') else set())
        if isinstance(node, ast.Attribute):
            return self._members(node.value, node.attr)
        if isinstance(node, ast.BoolOp):
            return self._union(node.values)
        if isinstance(node, ast.IfExp):
            return self._union([node.body, node.orelse])
        if not isinstance(node, ast.Call):
            return set()
        first = _literal(node.args[0]) if node.args else None
        if _is_call_of(node, 'getattr'):
            return {(name, True) for name, _ in self._members(node.args[0], _literal(node.args[1]))}
        if _is_call_of(node, 'import_module') or (_is_call_of(node, 'get') and isinstance(first, str)):
            return {(first, False)} if isinstance(first, str) else set()
        if isinstance(node.func, ast.Name) and node.func.id in self.functions:
            return self._union(part.value for function in self.functions[node.func.id]
                               for part in ast.walk(function) if isinstance(part, ast.Return) and part.value)
        return {(name + '()', guarded) for name, guarded in self.stands_for(node.func)
                if name.split('.')[-1][:1].isupper()}       # an instance of a class; what functions return is not known

    def _members(self, owner, attribute):
        if attribute == 'module' and self._is_accelerator(owner):
            return {('torch.npu', False)}
        found = {('{}.{}'.format(name, attribute), guarded) for name, guarded in self.stands_for(owner)}
        if isinstance(owner, ast.Name) and owner.id == 'self':
            found |= self._union(self._assigned(owner, lambda target: isinstance(target, ast.Attribute)
                                                and target.attr == attribute
                                                and getattr(target.value, 'id', None) == 'self', (ast.ClassDef,)))
        return found

    def _union(self, nodes):
        return set().union(*[self.stands_for(node) for node in nodes])

    def _around(self, node, kinds):
        while hasattr(node, 'parent'):
            node = node.parent
            if isinstance(node, kinds):
                yield node

    def _assigned(self, node, matches, kinds):
        """The values that are assigned to what matches, anywhere within the nodes of these kinds around `node`."""
        for scope in self._around(node, kinds):
            parts = scope.body if isinstance(scope, ast.Module) else ast.walk(scope)
            values = [part.value for part in parts if isinstance(part, ast.Assign) and any(map(matches, part.targets))]
            if values:
                return values
        return []

    def _is_accelerator(self, node):
        name = getattr(node, 'attr', getattr(node, 'id', None))
        if name != 'self':
            return name == 'accelerator'
        around = next(self._around(node, (ast.ClassDef,)), None)
        lineage = []
        while around is not None and around not in lineage:
            lineage.append(around)
            around = next((self.classes[base.id] for base in around.bases
                           if isinstance(base, ast.Name) and base.id in self.classes), None)
        names = [cls.name for cls in lineage]
        return 'Accelerator' in names and 'Cuda' not in names

    def _arguments(self, call):
        """(positional arguments, keywords) of a call."""
        keywords = set()
        for keyword in call.keywords:
            keywords |= {keyword.arg} if keyword.arg else self._unpacked(keyword.value)
        return sum(not isinstance(arg, ast.Starred) for arg in call.args), frozenset(keywords)

    def _unpacked(self, node):
        """The keywords in **node: of a literal dict, or of a function's own **options as its callers fill them."""
        if isinstance(node, ast.Dict):
            return {_literal(key) for key in node.keys}
        if isinstance(node, ast.IfExp):
            return self._unpacked(node.body) | self._unpacked(node.orelse)
        if not isinstance(node, ast.Name):
            return set()
        for function in self._around(node, (ast.FunctionDef,)):
            if function.args.kwarg and function.args.kwarg.arg == node.id:
                named = {arg.arg for arg in function.args.args + function.args.kwonlyargs}
                return {word.arg for call in self.calls.get(function.name, []) for word in call.keywords
                        if word.arg} - named
        return set().union(*[self._unpacked(value) for value in self._assigned(
            node, lambda target: getattr(target, 'id', None) == node.id, (ast.FunctionDef,))])
