"""docs/en/flags.md and docs/zh/flags.md are those that test/lib/flags_page.py would write."""
import runpy

import pytest
from conftest import ROOT

WRITER = runpy.run_path(str(ROOT / 'test' / 'lib' / 'flags_page.py'))


@pytest.mark.parametrize('path, words', WRITER['PAGES'], ids=['en', 'zh'])
def test_the_flags_pages_are_current(path, words):
    text = path.read_text(encoding='utf-8')
    assert WRITER['page'](path, words) == text, 'run python test/lib/flags_page.py'
    tables = [(heading, {row[0] for row in WRITER['ROW'].findall(rows)}) for _, heading, rows in
              WRITER['TABLE'].findall(text)]
    for script, parser in WRITER['PARSERS'].items():
        assert set().union(*(flags for heading, flags in tables if script in heading)) == {
            action.option_strings[0] for action in parser.flags.values() if action.dest != 'help'}
