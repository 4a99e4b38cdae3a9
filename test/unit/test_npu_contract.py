"""Every name and keyword of torch.npu and torch_npu that the program uses exists in the real packages.

    python -m pytest test/unit/test_npu_contract.py

No NPU is needed: the wheels are downloaded once (70 MB, into the cache folder) and their sources are read.
"""
import ast
import functools

import pytest
from conftest import ROOT
from npu_used_names import Program, describe
from torch_npu_wheel import RELEASES, Missing, Wheel, fetched

USES = Program([path.read_text(encoding='utf-8')
                for path in sorted([*ROOT.glob('*.py'), *ROOT.glob('util/*.py')])]).uses()


@functools.lru_cache(maxsize=None)
def wheel(release):
    opened = Wheel(fetched(release))
    try:
        opened.find('torch.npu.is_available')
    except SyntaxError as error:
        pytest.skip('this Python cannot parse the sources of torch_npu {}: {}'.format(release, error))
    return opened


def check(release, use):
    """Raise Missing unless the release has it."""
    wheel(release).find(use.name)
    if use.call:
        wheel(release).check_call(use.name, *use.call)


@pytest.mark.parametrize('use', [use for use in USES if not use.optional], ids=describe)
@pytest.mark.parametrize('release', RELEASES)
def test_what_the_program_relies_on_is_there(release, use):
    check(release, use)


@pytest.mark.parametrize('use', [use for use in USES if use.optional], ids=describe)
def test_what_the_program_asks_for_first_is_there_in_some_release(use):
    missing = []
    for release in RELEASES:
        try:
            check(release, use)
        except Missing as error:
            missing.append(str(error))
    assert len(missing) < len(RELEASES), missing


def test_the_list_comes_from_the_program():
    assert {'torch.npu.set_device', 'torch.npu.amp.GradScaler', 'torch.npu.amp.GradScaler().unscale_',
            'torch_npu.optim.NpuFusedAdamW'} <= {use.name for use in USES}


@pytest.mark.parametrize('source, expected', [
    ('import torch\ntorch.npu.a(1, b=2)', {'torch.npu.a(_, b=)'}),
    ('import torch\ndef f():\n    m = torch.npu\n    n = m.amp\n    return n.G(1)\ndef g():\n    f().step()',
     {'torch.npu.amp.G(_)', 'torch.npu.amp.G().step()'}),
    ('def f(accelerator):\n    x = getattr(accelerator.module, "name", None)\n    return x() if x else 0',
     {'torch.npu.name() asked'}),
    ('import importlib\nimportlib.import_module("torch_npu.profiler").profile(path=1)',
     {'torch_npu.profiler.profile(path=)'}),
    ('import torch\ndef f(model):\n    torch.cuda.a(model.module)', set()),
    ('import torch\nif hasattr(torch.npu, "late"):\n    torch.npu.late()', {'torch.npu.late() asked'}),
    ('import torch\ndef f(**more):\n    torch.npu.a(**more)\nf(b=1)', {'torch.npu.a(b=)'}),
    ('import torch\ndef f(c):\n    o = {} if c else {"b": c}\n    torch.npu.a(**o)', {'torch.npu.a(b=)'}),
], ids=range(8))
def test_how_names_are_followed_through_the_source(source, expected):
    assert {describe(use) + (' asked' if use.optional else '') for use in Program([source]).uses()} == expected


@pytest.mark.parametrize('release', RELEASES)
@pytest.mark.parametrize('name, call, problem', [
    ('torch.npu.made_up', None, 'torch_npu.npu has no made_up'),
    ('torch_npu.made_up.Name', None, 'torch_npu has no made_up'),
    ('torch.npu.amp.GradScaler().made_up', None, 'GradScaler has no made_up'),
    ('torch.npu.amp.GradScaler', (0, {'made_up'}), 'does not take made_up'),
    ('torch.npu.set_device', (2, set()), 'takes 1 arguments, not 2'),
    ('torch.npu.set_device', (0, set()), 'also needs device'),
    ('torch_npu.optim.NpuFusedAdamW', (1, {'fused'}), 'does not take fused'),
    ('torch.npu.is_available().made_up', None, 'is no class'),
])
def test_what_is_made_up_is_missed(release, name, call, problem):
    with pytest.raises(Missing, match=problem):
        wheel(release).find(name)
        wheel(release).check_call(name, *call)


@pytest.mark.parametrize('release', RELEASES)
@pytest.mark.parametrize('name', ['torch_npu.npu_fusion_attention', 'torch_npu.profiler.profile', 'torch_npu.npu',
                                  'torch.npu.amp.autocast', 'torch.npu.get_rng_state_all', 'torch.npu.config'])
def test_what_the_packages_are_known_for_is_found(release, name):
    wheel(release).find(name)


@pytest.mark.parametrize('release', RELEASES)
def test_the_emulated_npu_has_no_name_that_the_real_one_lacks(release):
    path = ROOT / 'test' / 'unit' / 'npu' / 'torch_npu' / 'npu' / '__init__.py'
    names = [node.name for node in ast.parse(path.read_text(encoding='utf-8')).body
             if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_')]
    assert len(names) > 15
    for name in names:
        wheel(release).find('torch.npu.' + name)
