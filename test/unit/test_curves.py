"""Curves as SVG: ticks, gaps, one point, and no markup from outside."""
import re
from html.parser import HTMLParser

import pytest

from util import curves


def texts(svg, kind):
    return re.findall(r'<text class="{}"[^>]*>([^<]*)'.format(kind), svg)


@pytest.mark.parametrize('low, high, expected', [
    (0, 1, [0, .2, .4, .6, .8, 1]), (.41, 1.26, [.4, .6, .8, 1, 1.2, 1.4]), (.7, 1.26, [.6, .8, 1, 1.2, 1.4]),
    (0, 2515, [0, 1000, 2000, 3000]), (83.1, 83.4, [83.1, 83.2, 83.3, 83.4]), (-3, 3, [-4, -2, 0, 2, 4])])
def test_ticks_are_round_and_enclose_the_values(low, high, expected):
    assert curves.ticks(low, high) == expected


@pytest.mark.parametrize('low, high, expected', [(0, 5, [0, 1, 2, 3, 4, 5]), (0, 399, [0, 100, 200, 300]),
                                                 (7, 7, [7]), (3, 12, [4, 6, 8, 10, 12])])
def test_ticks_of_epochs_are_whole_and_within(low, high, expected):
    assert curves.whole_ticks(low, high) == expected


def test_a_curve_of_one_epoch_is_a_dot_with_its_value():
    svg = curves.figure('Loss', [0], {'training': [1.5]})
    assert svg.count('<circle') == 1 and '<polyline' not in svg and '<b>1.5</b>' in svg and texts(svg, 'x') == ['0']


def test_a_line_passes_over_epochs_in_which_nothing_was_measured():
    svg = curves.figure('Accuracy', list(range(7)), {'k-NN': [None, None, 20., None, None, 30., 40.]})
    line, = re.findall(r'points="([^"]*)"', svg.replace('data-points', ''))
    assert line.count(',') == 3 and svg.count('<circle') == 1


def test_values_that_are_not_finite_are_gaps_and_a_curve_without_values_is_none():
    svg = curves.figure('Loss', [0, 1, 2, 3, 4], {'a': [1, 2, float('nan'), 3, 4], 'b': [None] * 5})
    lines = re.findall(r'points="([^"]*)"', svg.replace('data-points', ''))
    assert [line.count(',') for line in lines] == [2, 2] and '>b ' not in svg


def test_without_values_nothing_is_drawn():
    assert curves.figure('Accuracy', [0, 1], {'a': [None, float('inf')]}) == curves.figure('Accuracy', [], {}) == ''


def test_small_numbers_share_a_power_of_ten():
    svg = curves.figure('Learning rate', [0, 1], {'lr': [1e-4, 3e-4]}, from_zero=True)
    assert '10<sup>−4</sup>' in svg and texts(svg, 'y') == ['0', '1', '2', '3']


def test_level_and_zero_curves_have_an_axis():
    assert len(texts(curves.figure('FPS', [0, 1], {'FPS': [300, 300]}, from_zero=True), 'y')) >= 2
    assert len(texts(curves.figure('Wait', [0, 1], {'wait': [0., 0.]}, from_zero=True), 'y')) >= 2
    assert len(texts(curves.figure('Loss', [0, 1], {'loss': [-2., -2.]}), 'y')) >= 2


def test_points_lie_where_their_values_say():
    svg = curves.figure('Loss', [0, 10], {'a': [0., 1.]})
    first, last = [tuple(map(float, point.split(','))) for point in
                   re.search(r'<polyline[^>]*points="([^"]*)"', svg).group(1).split()]
    assert first == (curves.LEFT, curves.BOTTOM) and last == (curves.RIGHT, curves.TOP)


def test_a_long_curve_is_thinned_and_keeps_its_end():
    svg = curves.figure('Loss', list(range(10001)), {'a': list(range(10001))})
    assert len(svg) < 200000 and '<b>10000</b>' in svg


def test_names_are_text():
    class Tags(HTMLParser):
        def handle_starttag(self, tag, attrs):
            assert tag in ('figure', 'figcaption', 'b', 'span', 'i', 'svg', 'path', 'text', 'polyline', 'circle', 'p')
    Tags().feed(curves.figure('<script>', [0, 1], {'"><img src=x>': [0, 1]}))
