"""Documents: links lead somewhere, commands name scripts and flags that exist, six of them run.

A command is a line of a ```bash block, or inline code that begins with `python` or `bash`.
"""
import re
import runpy
import shlex
import shutil
from functools import lru_cache

import pytest
from conftest import ROOT, call, launcher, succeeded
from test_baseline import help_of

DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md')])
TRANSLATIONS = [(name, name.replace('docs/zh/', 'docs/en/') if '/' in name else name.replace('.md', '.en.md'))
                for name in DOCUMENTS if name.startswith('docs/zh/') or name.replace('.md', '.en.md') in DOCUMENTS]
BLOCK = re.compile(r'^( *)```(\w*)[^\n]*\n(.*?)^\1```', re.S | re.M)
INLINE = re.compile(r'(?<!`)`([^`]+)`(?!`)')
CURRENT = [name for name in DOCUMENTS if not name.startswith('CHANGELOG')]       # which names earlier commands too
OTHERS = {'--name', '--build-arg', '--gpus', '--ipc', '--runtime', '--signal'}      # of docker and Slurm, in the prose
WITH_LAUNCHERS = ('README.md', 'README.en.md', 'docs/zh/recipes.md', 'docs/en/recipes.md')
FLAGS_PAGE = runpy.run_path(str(ROOT / 'test' / 'lib' / 'flags_page.py'))        # writes docs/*/flags.md


def text_of(name):
    return (ROOT / name).read_text(encoding='utf-8')


def bash_of(name):
    """The bash blocks of a document."""
    return ''.join(block for _, language, block in BLOCK.findall(text_of(name)) if language == 'bash')


def words_of(code):
    """[words of a command] in bash code, without comments; pipes, lists and substitutions separate commands."""
    commands = []
    for line in code.replace('\\\n', ' ').splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        commands.append([])
        for word in lexer:
            if set(word) <= set('();<>|&'):
                commands.append([])
            else:
                commands[-1].append(word)
    return [words for words in commands if words]


def commands_of(name):
    """[words of a command] in the bash blocks and the inline code of a document."""
    inline = [code.replace('\n', ' ') for code in INLINE.findall(BLOCK.sub('', text_of(name)))]
    return words_of(bash_of(name)) + [words for code in inline if re.match(r'(\w+=\S+ )?(python|bash) ', code)
                                      for words in words_of(code)]


def scripts_of(words):
    """[(file, its words)] of a command, for each script or module of this repository that a word names."""
    found = []
    for previous, word in zip(['', *words], words):
        if previous == '-m' and re.match(r'util\.[a-z_.]+$', word):
            found.append((word.replace('.', '/') + '.py', []))
        elif re.match(r'(main_\w+|(util|test)/[\w/]+)\.(py|sh)$', word):
            found.append((word, []))
        elif found:
            found[-1][1].append(word)
    return found


@lru_cache(maxsize=None)
def flags_of(script):
    """The flags of a script, by its help or, in test/, its source; a launcher takes those of its script too."""
    if script.startswith(('main_', 'util/')):
        return frozenset(help_of(script + ' --help'))
    if script.endswith('.py'):
        return frozenset(re.findall(r"\(\s*'(--\w+)'", text_of(script)))
    output = succeeded(launcher(script[len('test/'):-len('.sh')], '--help'))
    return frozenset(re.findall(r'--\w+', output)).union(
        ['--help'], *(flags_of(name) for name in set(re.findall(r'main_\w+\.py', output))))


@pytest.mark.parametrize('name', CURRENT)
def test_commands_name_scripts_and_flags_that_exist(name):
    for words in commands_of(name):
        for script, rest in scripts_of(words):
            assert (ROOT / script).is_file(), script
            given = {word.split('=')[0] for word in rest if re.match(r'--\w', word)}
            assert not given or given <= flags_of(script), '{}: {}'.format(script, given - flags_of(script))


def test_the_prose_names_flags_that_exist():
    scripts = {script for name in CURRENT for words in commands_of(name) for script, _ in scripts_of(words)
               if not script.startswith('test/lib/')}
    flags = OTHERS.union(*map(flags_of, scripts))
    for name in CURRENT:
        for code in INLINE.findall(BLOCK.sub('', text_of(name))):
            flag = re.match(r'--[a-z][\w-]*', code)
            assert not flag or flag.group() in flags, '{}: {}'.format(name, code)


@pytest.mark.parametrize('chinese, english', TRANSLATIONS, ids=[chinese for chinese, _ in TRANSLATIONS])
def test_both_languages_have_the_same_commands(chinese, english):
    assert words_of(bash_of(chinese)) == words_of(bash_of(english))


def anchors_of(name):
    """The names by which GitHub links to the headings of a document."""
    anchors = []
    for heading in re.findall(r'^#+ (.*)$', BLOCK.sub('', text_of(name)), re.M):
        heading = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', heading)
        anchor = re.sub(r'[^\w\- ]', '', heading.lower()).strip().replace(' ', '-')
        same = sum(re.fullmatch(re.escape(anchor) + r'(-\d+)?', other) is not None for other in anchors)
        anchors.append('{}-{}'.format(anchor, same) if same else anchor)
    return anchors


@pytest.mark.parametrize('name', DOCUMENTS)
def test_links_between_documents_lead_somewhere(name):
    prose = INLINE.sub('', BLOCK.sub('', text_of(name)))
    for target in re.findall(r'\]\(([^)\s]+)\)', prose):
        path, _, anchor = target.partition('#')
        if not re.match(r'\w+:', path):
            linked = ((ROOT / name).parent / path if path else ROOT / name).resolve()
            assert linked.exists(), target
            assert not anchor or anchor in anchors_of(linked.relative_to(ROOT).as_posix()), target


@pytest.mark.parametrize('name', WITH_LAUNCHERS)
def test_the_table_of_launchers_is_complete(name):
    """A row has devices, epochs and log as the launcher declares them."""
    rows = {row[0]: row for row in (re.split(r' *\| *', line)[1:-1] for line in text_of(name).splitlines())
            if row and re.match(r'`\w+\.sh`', row[0])}
    launchers = [path for path in (ROOT / 'test').glob('*.sh') if re.search('^launch ', path.read_text(), re.M)]
    assert len(rows) == len(launchers) == 13
    for path in launchers:
        declared = dict(re.findall(r'^(\w+) +(\S+)$', path.read_text(), re.M))
        _, devices, epochs, *_, log = rows['`{}`'.format(path.name)]
        nodes, devices = re.match(r'(?:(\d+) × )?(\d+)', devices).groups('1')
        assert int(nodes) * int(devices) == int(declared['devices']) * int(declared.get('nodes', 1))
        assert (epochs, log) == (declared.get('epochs', '-'), '`{}`'.format(declared['output'])), path.name


@pytest.mark.parametrize('path, words', FLAGS_PAGE['PAGES'], ids=['en', 'zh'])
def test_the_flags_pages_are_current(path, words):
    text = path.read_text(encoding='utf-8')
    assert FLAGS_PAGE['page'](path, words) == text, 'run python test/lib/flags_page.py'
    tables = [(heading, {row[0] for row in FLAGS_PAGE['ROW'].findall(rows)}) for _, heading, rows in
              FLAGS_PAGE['TABLE'].findall(text)]
    for script, parser in FLAGS_PAGE['PARSERS'].items():
        assert set().union(*(flags for heading, flags in tables if script in heading)) == {
            action.option_strings[0] for action in parser.flags.values() if action.dest != 'help'}


def test_readme_commands_run(images, tmp_path, monkeypatch):
    """Photographs from pre-training to export, by the commands of the README with one epoch of small batches."""
    monkeypatch.chdir(str(tmp_path))
    (tmp_path / 'photos').symlink_to(images / 'train')
    (tmp_path / 'mine').symlink_to(images / 'train')
    shutil.copy(str(next((images / 'val').glob('*/*'))), 'photo.jpg')
    done = []
    for _, script, *words in words_of(bash_of('README.md').replace('checkpoint-119', 'checkpoint-0')):
        if {'photos', 'mine', 'photo.jpg', 'classifier.onnx'} & set(words):
            if script.startswith('main_'):
                words += ['--num_workers', 0, '--device', 'cpu', '--batch_size', 8]
            if '--epochs' in words:
                words += ['--epochs', 1, '--warmup_epochs', 0]
            name = words.pop(0) if script == '-m' else script[:-3]
            succeeded(call(name, *words))
            done.append(name)
    assert done == ['main_pretrain', 'util.tools.visualize', 'main_finetune', 'main_predict', 'main_finetune',
                    'util.tools.export']
    for name in ('output_photos/log.txt', 'output_photos/report.html', 'reconstructions.png', 'output_mine/log.txt',
                 'output_eval/eval.json', 'classifier.onnx'):
        assert (tmp_path / name).is_file(), name
