"""The line that moves at the bottom of a terminal while a training runs: what it says, and that it disturbs nothing."""
import io
import os
import pty
import re
import subprocess
import sys

import pytest
from conftest import PRETRAIN, ROOT, pretrain, shown_on

from util import live_line, terminal
from util.live_line import Line, NoLine, fitted
from util.terminal import Guarded, Screen, fitting


class Clock:
    """Seconds that pass only when somebody says so."""
    time = 0.

    def __call__(self):
        return self.time


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def at_a_terminal(monkeypatch):
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('COLUMNS', '120')
    monkeypatch.delenv('MAE_TERMINAL', raising=False)
    yield
    terminal._shown.clear()


def line_after(seconds_between=0.):
    """A Line in the second epoch of three, after 25 of 100 iterations of 2 s, in a quarter of which it waited."""
    clock = Clock()
    line = Line(3, 64, Screen(io.StringIO()), clock)
    for epoch in (0, 1):
        line.begin(epoch, 0, 100)
        for done in range(1, (100, 25)[epoch] + 1):
            clock.time += 2
            line.step(done, .5)
        if not epoch:
            line.end()
            clock.time += seconds_between
    return line


def test_the_line_tells_pace_waiting_and_the_time_left_of_epoch_and_run():
    line = line_after()
    assert line.text(25, 200).startswith('epoch 1/3 [######' + '.' * 18 + '] 25/100 32 images/s data 25% eta ')
    line.loss(.45214)
    assert line.text(25, 200).endswith('] 25/100 loss 0.4521 32 images/s data 25% eta 0:02:30 run 0:05:50')


def test_the_time_left_of_the_run_counts_evaluations_as_long_as_the_last_one():
    assert line_after(seconds_between=60.).text(25, 200).endswith('eta 0:02:30 run 0:07:50')


@pytest.mark.parametrize('columns, expected', [
    (79, 'epoch 1/3 [###.........] 25/100 loss 0.4521 32 images/s eta 0:02:30 run 0:05:50'),
    (59, 'epoch 1/3 [##.........] loss 0.4521 eta 0:02:30 run 0:05:50'),
    (39, 'epoch 1/3 loss 0.4521 run 0:05:50'), (10, 'epoch 1/3')])
def test_a_narrow_terminal_gets_what_matters_most(columns, expected):
    line = line_after()
    line.loss(.45214)
    assert line.text(25, columns) == expected


@pytest.mark.parametrize('columns', range(5, 130))
def test_the_bar_fills_the_room_and_never_more(columns):
    text = fitted([('epoch 1/3', 0), ('', 4), ('loss 1', 1)], .5, columns)
    assert len(text) <= max(columns, 9) and text.count('#') in (0, 4, 5, 6, 7, 8, 9, 10, 11, 12)


def test_the_line_is_written_twice_a_second_at_most():
    clock, stream = Clock(), io.StringIO()
    line = Line(1, 1, Screen(stream), clock)
    line.begin(0, 0, 100)
    for done in range(1, 101):
        clock.time += .125
        line.step(done, 0.)
    assert stream.getvalue().count('\r') == 25


def test_what_is_written_takes_the_lines_place_and_leaves_none_of_it():
    stream = Terminal()
    guarded = Guarded(stream)
    terminal.screen(guarded).show('epoch 1/3')
    guarded.write('Epoch: [1]\n')
    guarded.write('and more\n')
    assert stream.getvalue() == '\repoch 1/3\x1b[K\r\x1b[KEpoch: [1]\nand more\n'


def test_a_line_on_standard_error_makes_way_for_standard_output():
    out, error = io.StringIO(), Terminal()
    terminal.screen(error).show('epoch')
    Guarded(out).write('text')
    assert error.getvalue() == '\repoch\x1b[K\r\x1b[K' and out.getvalue() == 'text'


def test_a_terminal_that_is_gone_ends_nothing():
    class Gone(Terminal):
        def flush(self):
            raise OSError(5, 'Input/output error')
    screen = terminal.screen(Gone())
    screen.show('epoch')
    screen.end()
    assert not terminal._shown


@pytest.mark.parametrize('text, columns, expected', [
    ('abcdef', 4, 'abcd'), ('\u6c49\u5b57\u6c49', 5, '\u6c49\u5b57'), ('e\u0301e', 2, 'e\u0301e'), ('', 3, '')])
def test_a_text_is_cut_by_the_columns_that_it_takes(text, columns, expected):
    assert fitting(text, columns) == expected


def test_no_line_is_shown_in_a_file_on_a_dumb_terminal_or_of_several_processes(monkeypatch):
    assert terminal.screen(io.StringIO()) is None and terminal.screen(Terminal()) is not None
    monkeypatch.setattr(sys, 'stderr', Terminal())
    assert type(live_line.of_training(1, 8, 2)) is NoLine and type(live_line.of_training(1, 8, 1)) is Line
    monkeypatch.setenv('TERM', 'dumb')
    assert terminal.screen(Terminal()) is None and type(live_line.of_training(1, 8, 1)) is NoLine


def test_a_pipe_is_taken_for_a_terminal_only_where_the_launcher_says_so(monkeypatch):
    reader, writer = os.pipe()
    with os.fdopen(reader, 'rb'), os.fdopen(writer, 'w') as stream:
        assert terminal.screen(stream) is None
        monkeypatch.setenv('MAE_TERMINAL', 'yes')
        assert terminal.screen(stream) is not None
        monkeypatch.setenv('WORLD_SIZE', '2')
        assert terminal.screen(stream) is None


def on_a_terminal(command, columns=100, **environ):
    """(status, what a terminal of so many columns is sent) by a command."""
    ours, theirs = pty.openpty()
    environ = {**os.environ, 'COLUMNS': str(columns), 'PYTHON': sys.executable, **environ}
    child = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
                             env=environ, start_new_session=True)
    os.close(theirs)
    shown = shown_on(ours)
    return child.wait(timeout=60), shown.decode(errors='replace').replace('\r\n', '\n')


def lines_left(shown):
    """What the terminal shows at the end: of each line, what stands there after the last return to its beginning."""
    return [re.sub('\x1b\\[K', '', line.split('\r')[-1]) for line in shown.split('\n')]


FAST = 'import util.live_line as line; line.EVERY = 0.; import runpy, sys; sys.argv = sys.argv[1:]; ' \
       'runpy.run_path(sys.argv[0], run_name="__main__")'


def test_on_a_terminal_the_line_moves_between_the_lines_that_a_file_gets_too(images, tmp_path):
    words = ['--data_path', images, '--epochs', 2, '--lr', .001]
    status, shown = on_a_terminal([sys.executable, '-c', FAST, ROOT / 'main_pretrain.py', *PRETRAIN, *words,
                                   '--output_dir', tmp_path / 'o'])
    moved = r'\repoch 1/2 \[#+\.+\] [234]/4 loss [\d.]+ [\d,]+ images/s .*\x1b\[K'
    assert status == 0 and re.search(moved, shown), shown
    in_file = pretrain(*words, '--output_dir', tmp_path / 'p')
    assert '\r' not in in_file.output and '\x1b' not in in_file.output

    def steady(lines):
        return [re.sub(r'eta: .*?  |time: .*|FPS: .*|o"|p"|sec : .*', '', line)
                for line in lines if 'loader' not in line]
    assert steady(lines_left(shown)) == steady(in_file.output.split('\n'))


def test_a_mistake_that_ends_a_run_takes_the_lines_place(images, tmp_path):
    status, shown = on_a_terminal([sys.executable, '-c', FAST, ROOT / 'main_pretrain.py', *PRETRAIN, '--data_path',
                                   images, '--epochs', 9, '--lr', 1e30, '--warmup_epochs', 0, '--max_bad_steps', 2,
                                   '--output_dir', tmp_path / 'o'])
    assert status == 2 and '\repoch 0/9 ' in shown
    assert lines_left(shown)[-2].startswith('error: ') and lines_left(shown)[-1] == ''


@pytest.mark.slow
def test_a_launcher_shows_the_line_and_keeps_it_out_of_its_log(images, tmp_path):
    status, shown = on_a_terminal(['bash', ROOT / 'test/pretrain_performance_1p.sh', '--data_path', images, *PRETRAIN,
                                   '--output_dir', tmp_path / 'o', '--epochs', 20, '--batch_size', 4])
    log = (tmp_path / 'o' / '910A_1p_pretrain.log').read_text()
    assert status == 0 and '\repoch ' in shown, shown
    assert '\r' not in log and '\x1b' not in log and 'epoch 1' not in log and log.endswith('\n')
    assert lines_left(shown) == log.split('\n')
