"""The line that is written anew on a terminal, and nothing elsewhere."""
import io
import os
import pty
import subprocess
import sys

import pytest
from conftest import ROOT, shown_on

from util.columns import width
from util.listing import Listing
from util.progress_bar import Bar, Silent, progress_bar
from util.terminal import Screen


class Clock:
    """Seconds that pass only when somebody says so."""
    time = 0.

    def __call__(self):
        return self.time


def written(total, patience=0., keep=True):
    """What a bar writes that counts 2, 10 and 28 in a second each, of which the first 2 were there before."""
    clock, stream = Clock(), io.StringIO()
    with Bar('packing', 'images', total, patience, Screen(stream), keep, clock) as bar:
        bar.add(2, earlier=True)
        for count in (10, 28):
            clock.time += 1
            bar.add(count)
    return stream.getvalue().replace('\x1b[K', '').split('\r')[1:]


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv('COLUMNS', '120')


def test_a_line_tells_share_count_pace_and_time_left():
    assert written(80) == [
        'packing: [' + '.' * 24 + '] 2 of 80 images, 0/s, ? left',
        'packing: [' + '#' * 3 + '.' * 21 + '] 12 of 80 images, 10/s, 0:00:06 left',
        'packing: [' + '#' * 12 + '.' * 12 + '] 40 of 80 images, 19/s, 0:00:02 left',
        'packing: [' + '#' * 12 + '.' * 12 + '] 40 of 80 images, 19/s, 0:00:02 left\n']


def test_without_a_total_count_and_pace_are_told():
    assert written(None)[-1] == 'packing: 40 images, 19/s\n'


def test_nothing_is_told_of_work_that_takes_less_than_the_patience():
    assert written(80, patience=3.) == [] and len(written(80, patience=2.)) == 2


def test_a_line_that_is_not_kept_is_taken_away():
    assert written(80, keep=False) == written(80)[:-1] + ['']


@pytest.mark.parametrize('what, expected', [
    ('/data/imagenet-shards/train', '...hards/train: [########]'), ('/data/x', '/data/x: [###############]'),
    ('/数据/训练', '/数据/训练: [############]')])
def test_a_narrow_terminal_gets_pace_and_time_left_and_the_end_of_a_long_name(what, expected, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    bar = Bar(what, 'images', 1200000, 0., Screen(io.StringIO()), now=Clock())
    bar.add(1200000)
    line = bar._line(1000.)
    assert line == expected + ' 1,200,000 of 1,200,000 images, 1,200/s, 0:00:00 left' and width(line) == 79


def test_a_line_stays_within_the_terminal(monkeypatch):
    monkeypatch.setenv('COLUMNS', '30')
    assert {len(line.rstrip('\n')) for line in written(80)} == {29}


def test_names_of_files_break_no_line():
    assert '\n' not in Bar('a\nb', 'images', None, 0., Screen(io.StringIO()))._line(1.)


def test_what_is_no_terminal_gets_nothing():
    stream = io.StringIO()
    bar = progress_bar('packing', 'images', 10, stream=stream)
    assert type(bar) is Silent and not bar.live
    assert list(bar.over('abc')) == ['a', 'b', 'c'] and stream.getvalue() == ''


def test_packing_on_a_terminal_shows_one_line_that_moves(images, tmp_path):
    ours, theirs = pty.openpty()
    child = subprocess.Popen([sys.executable, '-m', 'util.pack_shards', str(images / 'val'), str(tmp_path / 'x')],
                             cwd=str(ROOT), stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, 'COLUMNS': '200'})
    os.close(theirs)
    told = child.communicate(timeout=100)[0].decode()
    lines = shown_on(ours).decode().split('\r')
    assert child.returncode == 0, told
    assert any('] 19 of 19 images, ' in line and line.startswith('{}: ['.format(tmp_path / 'x')) for line in lines)
    assert len(told.splitlines()) == 1 and told.endswith('train with --data_path {}\n'.format(tmp_path / 'x'))


def test_listing_a_folder_counts_its_images(images, monkeypatch):
    clock, stream = Clock(), io.StringIO()
    monkeypatch.setattr('util.listing.progress_bar',
                        lambda what, unit, patience: Bar(what, unit, None, 0., Screen(stream), now=clock))
    Listing(str(images), ('.jpg',))
    assert stream.getvalue().replace('\x1b[K', '').endswith(': 51 images, 51,000,000,000/s\n')
