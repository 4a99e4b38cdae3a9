"""The commands of the documents name files and flags that exist.

A command is a line of a ```bash block; it is parsed. test_end_to_end.py runs test/demo.sh, the first of them.
"""
import os
import re
import shlex
import sys
from functools import lru_cache

import pytest
from conftest import ROOT, execute
from test_baseline import help_of

from util.config import train_flags
from util.tools import launch

PAIRS = [('README.md', 'README.en.md'), ('RECIPES.md', 'RECIPES.en.md'), ('CONTRIBUTING.md', 'CONTRIBUTING.en.md')]
DOCUMENTS = [name for pair in PAIRS for name in pair]
PARSERS = {'main_pretrain.py': train_flags.parse_pretrain, 'main_finetune.py': train_flags.parse_finetune,
           'main_linprobe.py': train_flags.parse_linprobe}


def check_printed(command, root=ROOT):
    """Parse what a launcher of `root` prints under DRY_RUN=1, as the processes which it starts would.

    Returns:
        (flags of util/tools/launch.py, or None where one process is started without it; flags of the script).
    """
    interpreter, script, *flags = shlex.split(command)
    assert os.access(interpreter, os.X_OK), command
    started, script = None, os.path.relpath(script, str(root))
    if script == os.path.join('util', 'tools', 'launch.py'):
        started, (script, *flags) = launch.parse(flags)
    return started, PARSERS[os.path.relpath(script, str(root))](flags)


def commands_of(name):
    """The commands of a document's bash blocks, each on one line, without comments."""
    text, found = (ROOT / name).read_text(encoding='utf-8'), []
    for block in re.findall(r'^```bash\n(.*?)^```', text, re.S | re.M):
        lines = block.replace('\\\n', ' ').splitlines()
        found += [' '.join(re.sub(r'(^|\s)#.*', '', line).split()) for line in lines]
    return [command for command in found if command]


COMMANDS = list(dict.fromkeys(command for name, _ in PAIRS for command in commands_of(name)))


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A folder like the repository's root, with the folders and files that commands name; the current one."""
    for path in ROOT.iterdir():
        if not path.name.startswith(('.', 'output', 'demo_output', '__pycache__')):
            (tmp_path / path.name).symlink_to(path)
    for name in ('imagenet', 'cifar-10-batches-py', 'mine', 'bands'):
        (tmp_path / 'data' / name).mkdir(parents=True)
    for name in ('photos', 'mine', 'cifar', 'drawn', 'output_pretrain'):
        (tmp_path / name).mkdir()
    text = (ROOT / 'README.en.md').read_text(encoding='utf-8')
    recipe = re.search(r'^```yaml\n# recipe.yaml\n(.*?)^```', text, re.S | re.M).group(1).replace('/data/', 'data/')
    for name in ('recipe.yaml', 'output_pretrain/config.yaml'):
        (tmp_path / name).write_text(recipe)
    monkeypatch.chdir(str(tmp_path))
    return tmp_path


flags_of = lru_cache()(help_of)


def parse(words):
    """Hold a command, from its script's name on, against that script's parser."""
    script, *flags = words
    if script == 'util/tools/launch.py':
        _, (script, *flags) = launch.parse(flags)
    if script in PARSERS:
        PARSERS[script](flags)
    else:
        given = {word.split('=')[0] for word in flags if word.startswith('--')}
        assert given <= set(flags_of(script + ' --help')), script


def check_launcher(words, folder):
    """Print what a launcher would start, and parse it."""
    run = execute(['bash', *words], PYTHON=sys.executable, DRY_RUN='1', NODE_RANK='0', MASTER_ADDR='first')
    assert run.status == 0, run.output
    if 'cifar10' not in words[0]:       # whose later stages take checkpoints of the earlier ones
        started, _ = check_printed(run.output, folder)
        devices = int(re.search(r'_(\d+)p\.sh', words[0]).group(1))
        assert (started.devices * started.nnodes if started else 1) == devices


@pytest.mark.parametrize('command', COMMANDS, ids=[command[:70] for command in COMMANDS])
def test_a_command_names_scripts_and_flags_that_exist(command, workspace):
    command = re.sub(r'(?<!\w)/data/', 'data/', command)
    command = re.sub(r'\$\(grep .*?\)', '--mean .1 .2 .3 .4 .5 --std 1 1 1 1 1', command)
    words = shlex.split(re.split(r' \| | -c <', command)[0])
    for name in re.findall(r'[\w./-]+\.pth', command):
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_bytes(b'')
    for word in words:
        if word.startswith(('test/', 'docker/', 'util/')) or word.endswith('_requirements.txt'):
            assert (ROOT / word).is_file(), word
    launchers = [i for i, word in enumerate(words) if re.match(r'test/\w+_\d+p\.sh$', word)]
    scripts = [i for i, word in enumerate(words) if word.endswith('.py') and words[0] != 'bash']
    if launchers:
        check_launcher(words[launchers[0]:], workspace)
    elif scripts:
        parse(words[scripts[0]:])
    elif words[:2] == ['python', '-m']:
        parse([' '.join(words[1:3]), *words[3:]])
    else:
        assert words[0] in ('bash', 'source', 'pip', 'docker', 'kubectl')


@pytest.mark.parametrize('chinese, english', PAIRS, ids=[chinese for chinese, _ in PAIRS])
def test_both_languages_have_the_same_commands(chinese, english):
    assert commands_of(chinese) == commands_of(english)


def anchors_of(text):
    """The names by which GitHub links to the headings of a document."""
    headings = re.findall(r'^#+ (.*)$', re.sub(r'^```.*?^```', '', text, flags=re.S | re.M), re.M)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).strip().replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('name', [*DOCUMENTS, 'CHANGELOG.md', 'CHANGELOG.en.md'])
def test_links_between_documents_lead_somewhere(name):
    for target in re.findall(r'\]\(([^)\s]+)\)', (ROOT / name).read_text(encoding='utf-8')):
        path, _, anchor = target.partition('#')
        if not path.startswith('http'):
            assert (ROOT / (path or name)).exists(), target
            assert not anchor or anchor in anchors_of((ROOT / (path or name)).read_text(encoding='utf-8')), target
