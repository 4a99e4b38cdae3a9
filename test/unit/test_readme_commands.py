"""Every command of the documents is run: as it stands, but on a small dataset, by a nano model on the CPU.

A command is a line of a ```bash block. RULES says how each is run, a line a command; a command without a rule fails
here, and so does a rule without a command. The commands run in a folder that looks like the repository's root, with
/data within it. Whatever checkpoint a command names is there. What stands in prose as `python ...` or `bash ...` is not
run, but names files and flags that exist.
"""
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest
from conftest import FINETUNE, PRETRAIN, ROOT, environment, finetune, python
from PIL import Image
from printed_commands import check_printed
from test_cifar10 import batches  # noqa: F401  (a fixture)

from util.arguments import finetune_parser, linprobe_parser, pretrain_parser

PAIRS = [('README.md', 'README.en.md'), ('RECIPES.md', 'RECIPES.en.md'), ('CONTRIBUTING.md', 'CONTRIBUTING.en.md')]
DOCUMENTS = [name for pair in PAIRS for name in pair]

Rule = namedtuple('Rule', 'start how detail')


def real(*flags, **environ):
    """Run it, with these flags behind its own, and this in the environment."""
    return 'real', (flags, environ)


def printed():
    """A launcher: DRY_RUN=1, and what it prints is parsed by the scripts that it would start."""
    return 'printed', None


def parsed():
    """Not started, but the flags of the Python script in it are parsed by that script."""
    return 'parsed', None


def covered(module, name):
    """Run by another test, as it stands."""
    return 'covered', (module, name)


def not_run(reason):
    """Cannot be run in a test."""
    return 'not run', reason


# What a command begins with, and how it is run. The first that fits counts.
RULES = [Rule(start, *rule) for start, rule in [
    ('bash test/demo.sh', covered('test_end_to_end', 'test_the_demo_runs_every_step')),
    ('bash test/check.sh', covered('test_environment',
                                   'test_what_fails_under_any_generation_fails_the_whole_check_and_is_named')),
    ('source ~/.cache/mae-pytorch', not_run('the environment that test/demo.sh makes on a machine without PyTorch')),
    ('pip install torch==', not_run('replaces the PyTorch that runs the tests')),
    ('pip install -r', not_run('fetches packages; test_environment.py runs what demo.sh and check.sh do instead')),
    ('sbatch', not_run('needs Slurm; test_clusters.py runs the job script with an srun of its own')),
    ('docker build', not_run('needs a Docker engine and a network; test_clusters.py lints the files')),
    ('kubectl apply', not_run('needs a cluster; test_clusters.py runs the command of each pod')),
    ('bash test/cifar10_1p.sh', real(DRY_RUN='1')),
    ('bash test/', printed()),
    ('python -m util.check_env', real()),
    ('python -m util.dataset_stats', real()),
    ('python -m util.pack_shards', real('--num_workers', 0)),
    ('python -m util.visualize', real('--count', 2)),
    ('python main_pretrain.py', real(*PRETRAIN, '--epochs', 2)),
    ('python main_predict.py', real('--device', 'cpu', '--num_workers', 0)),
    ('python -m util.extract_features', real('--device', 'cpu', '--num_workers', 0)),
    ('python -m util.attention', real('--device', 'cpu')),
    ('python -m util.export', real()),
    ('python main_finetune.py', real(*FINETUNE, '--epochs', 1)),
    ('python main_linprobe.py', real(*FINETUNE, '--epochs', 1)),
    ('python -m util.drawn_dataset', real('--train', 32, '--val', 16)),
    ('python -m util.knn', real('--device', 'cpu', '--num_workers', 0)),
    ('python util/launch.py', real(*PRETRAIN, '--epochs', 1)),
    ('torchrun', real(*PRETRAIN, '--epochs', 1)),
    ('srun', parsed()),
]]

# Words of a command, and what stands in their place.
SUBSTITUTES = [
    ('/data/', 'data/'),
    ('--devices 8', '--nproc 2'),
    ('--nproc_per_node=8', '--nproc_per_node=2'),
]


def commands_of(name):
    """The commands of a document's bash blocks, each on one line, without comments."""
    text = (ROOT / name).read_text(encoding='utf-8')
    found = []
    for block in re.findall(r'^```bash\n(.*?)^```', text, re.S | re.M):
        lines = block.replace('\\\n', ' ').splitlines()
        found += [' '.join(re.sub(r'(^|\s)#.*', '', line).split()) for line in lines]
    return [command for command in found if command]


def rule_of(command):
    """The first rule that fits, or None."""
    return next((rule for rule in RULES if command.startswith(rule.start)), None)


def runnable():
    """Each command of the documents that can be run, once, with its rule; those that take seconds are marked slow."""
    commands = list(dict.fromkeys(command for name, _ in PAIRS for command in commands_of(name)))
    ruled = [(command, rule_of(command)) for command in commands]
    return [pytest.param(command, rule, id=command[:70],
                         marks=[pytest.mark.slow] if rule.how == 'real' and not command.startswith('bash') else [])
            for command, rule in ruled if rule and rule.how != 'not run']


@pytest.fixture(scope='module')
def workspace(tmp_path_factory, images, batches):  # noqa: F811
    """A folder like the repository's root, with data: what the commands of the documents name."""
    folder = tmp_path_factory.mktemp('workspace')
    for path in ROOT.iterdir():
        if not path.name.startswith(('.', 'output', 'demo_output', '__pycache__')):
            (folder / path.name).symlink_to(path)
    (folder / 'data').mkdir()
    places = [('data/imagenet', images), ('data/cifar-10-batches-py', batches), ('photos', images / 'train'),
              ('mine', images), ('data/mine', images), ('cifar', images)]
    for name, target in places:
        (folder / name).symlink_to(target)
    for name in ('photo.jpg', 'cat.jpg'):
        Image.new('RGB', (40, 30), 'orange').save(str(folder / name))
    (folder / 'data' / 'bands').mkdir()
    for i in range(16):
        np.save(str(folder / 'data' / 'bands' / '{}.npy'.format(i)), np.full((40, 40, 5), i * 4000, np.uint16))
    (folder / 'stats.txt').write_text('--mean .1 .2 .3 .4 .5 --std 1 1 1 1 1\n')
    recipe = re.search(r'^```yaml\n# recipe.yaml\n(.*?)^```', (ROOT / 'README.en.md').read_text(encoding='utf-8'),
                       re.S | re.M).group(1)
    (folder / 'recipe.yaml').write_text(recipe.replace('/data/', 'data/'))
    return folder


@pytest.fixture(scope='module')
def checkpoints(images, pretrained, tmp_path_factory):
    """A checkpoint of pre-training (True) and one of fine-tuning (False)."""
    folder = tmp_path_factory.mktemp('classifier')
    run = finetune('--data_path', images, '--output_dir', folder, '--epochs', 1)
    assert run.status == 0, run.output
    return {True: pretrained / 'checkpoint-0.pth', False: folder / 'checkpoint-0.pth'}


def provide(folder, checkpoints, command):
    """Put a checkpoint where the command names one that is not there, of the kind that the folder's name tells; and
    the flags of a run, likewise."""
    for name in re.findall(r'[\w./-]+\.pth|\w+/config\.yaml', command):
        path, source = folder / name, checkpoints['pretrain' in name or 'photos' in name]
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(source if name.endswith('.pth') else source.parent / 'config.yaml'), str(path))


def run_in(folder, command, **environ):
    """Run a line of bash in a folder, with this interpreter as python."""
    folders = [os.path.dirname(path) for path in (python(), sys.executable)] + [os.environ['PATH']]
    done = subprocess.run(['bash', '-c', command], cwd=str(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          timeout=300, env=environment(PATH=os.pathsep.join(folders), PYTHON=python(), **environ))
    return done.returncode, done.stdout.decode(errors='replace')


@pytest.mark.parametrize('command, rule', runnable())
def test_a_command_of_the_documents_works(command, rule, request, monkeypatch):
    if rule.how == 'covered':
        module, name = rule.detail
        assert '\ndef {}('.format(name) in (ROOT / 'test' / 'unit' / (module + '.py')).read_text(encoding='utf-8')
        assert (ROOT / command.split()[1]).is_file()
        return
    folder = request.getfixturevalue('workspace')
    for old, new in SUBSTITUTES:
        command = command.replace(old, new)
    if command.startswith('torchrun') and not shutil.which('torchrun', path=os.path.dirname(sys.executable)):
        pytest.skip('this PyTorch has no torchrun')
    provide(folder, request.getfixturevalue('checkpoints'), command)
    monkeypatch.chdir(str(folder))
    if rule.how == 'printed':
        status, output = run_in(folder, command, DRY_RUN='1')
        assert status == 0, output
        started, _ = check_printed(output, folder)
        devices = int(re.search(r'_(\d+)p\.sh', command).group(1))
        assert (started.devices * started.nnodes if started else 1) == devices
    elif rule.how == 'parsed':
        _, _, flags = command.partition('python ')
        check_printed(' '.join([shlex.quote(sys.executable), flags]), folder)
    else:
        flags, environ = rule.detail
        command = ' '.join([command, *map(str, flags)])
        status, output = run_in(folder, command, **environ)
        assert status == 0, output


def test_every_command_has_a_rule():
    without = ['{}: {}'.format(name, command) for name in DOCUMENTS for command in commands_of(name)
               if not rule_of(command)]
    if without:
        pytest.fail('\n'.join(['add lines to RULES that say how to run'] + without), pytrace=False)


def test_every_rule_is_for_a_command_that_is_there():
    commands = [command for name in DOCUMENTS for command in commands_of(name)]
    unused = [rule.start for rule in RULES if not any(rule_of(command) is rule for command in commands)]
    assert not unused, 'no document has a command that begins so: take these rules out of RULES'


@pytest.mark.parametrize('chinese, english', PAIRS, ids=[chinese for chinese, _ in PAIRS])
def test_both_languages_have_the_same_commands(chinese, english):
    assert commands_of(chinese) == commands_of(english)


def test_commands_are_found_whole_and_without_comments(tmp_path, monkeypatch):
    (tmp_path / 'A.md').write_text('```bash\n# why\nbash a.sh --x=1 \\\n    --y  # z\n\nb#c\n```\n```text\nno\n```\n')
    monkeypatch.setattr(sys.modules[__name__], 'ROOT', tmp_path)
    assert commands_of('A.md') == ['bash a.sh --x=1 --y', 'b#c']


@pytest.mark.parametrize('name', PAIRS[1])
def test_the_recipes_have_every_launcher_with_its_epochs_and_log(name):
    text, missing = (ROOT / name).read_text(encoding='utf-8'), []
    for path in ROOT.glob('test/*.sh'):
        declared = dict(re.findall(r'^(epochs|output) +(\S+)$', path.read_text(encoding='utf-8'), re.M))
        if 'output' in declared:
            row = r'^\| `{}` \| [^|]+ \| {} \| .* \| `{}` \|$'.format(path.name, declared.get('epochs', '-'),
                                                                    declared['output'])
            missing += [] if re.search(row, text, re.M) and 'bash test/' + path.name in text else [path.name]
    assert not missing, 'their rows or commands in the recipes are missing, or say something else'


def source_of(words):
    """Text in which the flags of a command in prose stand: of its script, and of what reads flags for all."""
    module = words[words.index('python') + 2] if 'python -m' in ' '.join(words) else ''
    script = module.replace('.', '/') + '.py' if module else \
        next((word for word in words if word.endswith(('.py', '.sh'))), '')
    assert (ROOT / script).is_file(), words
    shared = ['util/arguments.py', 'test/lib/launch.sh']
    return ''.join((ROOT / name).read_text(encoding='utf-8') for name in [script, *shared])


@pytest.mark.parametrize('name', DOCUMENTS)
def test_a_command_in_prose_names_a_script_and_flags_that_exist(name):
    prose = re.sub(r'^```.*?^```', '', (ROOT / name).read_text(encoding='utf-8'), flags=re.S | re.M)
    spans = re.findall(r'`((?:[A-Z_]+=\S+ )*(?:python3?|bash) [^`]+)`', prose)
    assert spans
    for span in spans:
        words = span.replace('\n', ' ').split()
        if words[1] in ('main_*.py', '-c') or words[1:3] == ['-m', 'torch.distributed.launch']:
            continue        # not one script of this repository
        text = source_of(words)
        for flag in re.findall(r'--(\w+)', span):
            assert flag in ('help', 'torch') or re.search(r"(--|'){}\b".format(flag), text), span


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


def flags_in_tables(name):
    """{heading: the flags that the first columns of its tables name, in order} of a document."""
    sections = re.split(r'^#+ (.*)$', (ROOT / name).read_text(encoding='utf-8'), flags=re.M)
    return {heading: [flag for cell in re.findall(r'^\| (`--[^|]*) \|', text, re.M)
                      for flag in re.findall(r'`(--[\w-]+)', cell)]
            for heading, text in zip(sections[1::2], sections[2::2])}


@pytest.mark.parametrize('name', PAIRS[0])
def test_the_tables_of_the_parameters_have_each_flag_once(name):
    public, shared, pretraining, classifying = [flags for flags in flags_in_tables(name).values() if flags][-4:]
    for flags in (public, shared + pretraining + classifying):
        assert not [flag for flag in flags if flags.count(flag) > 1]
    parsers = [{flag for action in parser()._actions for flag in action.option_strings if flag.startswith('--')}
               - {'--help'} for parser in (pretrain_parser, finetune_parser, linprobe_parser)]
    assert set(shared) == parsers[0] & parsers[1]
    assert set(pretraining) == parsers[0] - parsers[1] and set(classifying) == parsers[1] - parsers[0]
    assert parsers[2] == set(shared[:-4] + classifying[:classifying.index('--cls_token') + 1])
