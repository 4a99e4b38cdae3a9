"""Write the tables of docs/en/flags.md and docs/zh/flags.md from the parsers: python test/lib/flags_page.py

A table lists the flags that exactly the scripts in its heading have. Chinese texts are kept: translate new flags there.
"""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from util.config import inference_flags, train_flags

TRAINING = {'main_pretrain.py': train_flags.pretrain_parser(), 'main_finetune.py': train_flags.finetune_parser(),
            'main_linprobe.py': train_flags.linprobe_parser()}
PARSERS = {**TRAINING, 'main_predict.py': inference_flags.predict_parser()}
PAGES = [(ROOT / 'docs/en/flags.md', {}), (ROOT / 'docs/zh/flags.md', {'on': '开', 'off': '关', 'required': '必填'})]
TABLE = re.compile(r'^(## (.*)\n(?:(?!## ).*\n)*?\|---.*\n)((?:\|.*\n)*)', re.M)
ROW = re.compile(r'^\| `(--\w+).*?` \| (.*) \| (.*) \|$', re.M)


def page(path, words):
    """The text of a page with current tables; `words` translates defaults: {} for English."""
    return TABLE.sub(lambda found: found.group(1) + ''.join(rows(
        re.findall(r'main_\w+\.py', found.group(2)), found.group(3), words)), path.read_text(encoding='utf-8'))


def rows(scripts, old, words):
    """Table rows of the flags that exactly these scripts have; main_predict.py is on its own."""
    kept = {name: texts for name, *texts in ROW.findall(old)} if words else {}
    parsers = [PARSERS[script] for script in scripts]
    others = [PARSERS[script] for script in TRAINING if script not in scripts and scripts != ['main_predict.py']]
    for name, action in parsers[0].flags.items():
        if (name != action.option_strings[0] or name == '-h' or any(name in parser.flags for parser in others)
                or not all(name in parser.flags for parser in parsers)):
            continue
        defaults, meanings = zip(*(describe(parser, parser.flags[name]) for parser in parsers))
        defaults = [words.get(value, value) for value in defaults[:len(defaults) * (len(set(defaults)) > 1) or 1]]
        default, meaning = kept.get(name, ['', '; '.join(dict.fromkeys(meanings))])
        if not (default and any('; default: ' in parser.flags[name].help for parser in parsers)):       # values
            default = ' / '.join(defaults)
        choices = ' {' + ','.join(action.choices) + '}' if action.choices and name != '--model' else ''
        yield '| `{}{}` | {} | {} |\n'.format(name, choices, default, meaning)


def describe(parser, action):
    """(default, meaning) of a flag, in Markdown."""
    meaning, _, default = action.help.replace(' (default: %(default)s)', '').partition('; default: ')
    value = parser.get_default(action.dest)
    if action.nargs == 0:
        default = 'on' if value == action.const else 'off'
    elif not default:
        default = 'required' if action.required else '-' if value in (None, '') else re.sub(r'\.0$', '', str(value))
    return [re.sub(r'(?<![\w`/-])(--\w+)', r'`\1`', text.replace('|', r'\|').replace('<', r'\<'))
            for text in (default, meaning.replace(', the default', ''))]


if __name__ == '__main__':
    for path, words in PAGES:
        path.write_text(page(path, words), encoding='utf-8')
