"""Progress bars: on a terminal, never in a file, and never in the way of a log line."""
import io
import re
import sys

import pytest
from conftest import pretrain

from util import log
from util.log import logger, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def left(shown):
    """The lines that stand on a terminal at the end."""
    return [line.split('\r')[-1].rstrip() for line in shown.replace('\r\n', '\n').split('\n')]


def test_a_bar_counts_on_a_terminal_is_not_torn_by_log_lines_and_gone_at_the_end(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, 'stderr', screen)
    monkeypatch.setattr(sys, 'stdout', screen)
    log.set_up(is_main=True)
    with progress_bar('packing\n', 'images', 80, done=2) as bar:
        logger.info('one')
        bar.update(10)
        bar.refresh()
        assert re.fullmatch(r'packing.*12/80.*images.*', left(screen.getvalue())[-1])
    assert left(screen.getvalue()) == ['one', '']


@pytest.mark.parametrize('rank, terminal', [('0', False), ('1', True)])
def test_a_file_and_other_processes_get_no_bar(monkeypatch, rank, terminal):
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, 'stderr', stream)
    monkeypatch.setenv('RANK', rank)
    assert list(progress_bar('packing', 'images', items='abc')) == ['a', 'b', 'c'] and stream.getvalue() == ''


class Screen(io.TextIOWrapper):
    def isatty(self):
        return True


def test_a_terminal_shows_a_bar_of_the_training_and_the_log_lines(images, tmp_path, monkeypatch):
    monkeypatch.setattr(io, 'TextIOWrapper', Screen)
    monkeypatch.setenv('COLUMNS', '100')
    run = pretrain('--data_path', images, '--epochs', 1, '--output_dir', tmp_path)
    shown = run.output
    assert run.status == 0 and re.search(r'training: .*[1-4]/4 ', shown), shown
    assert len([line for line in left(shown) if line.startswith('Epoch: [')]) == 2, shown
