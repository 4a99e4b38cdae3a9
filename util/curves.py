"""Curves of a run as inline SVG: one drawing of a few kilobytes each, without a library and without a network."""
import html
import json
import math

WIDTH, HEIGHT = 400, 210                        # units of the drawing, about pixels on a phone
LEFT, RIGHT, TOP, BOTTOM = 48, 392, 10, 176     # edges of the plane
MOST_POINTS = 2000                              # of a curve; of a longer one, points at equal distances are drawn


def figure(title, x, series, from_zero=False):
    """A chart with its legend, as HTML.

    Args:
        title: with the unit.
        x: the epochs, ascending whole numbers.
        series: {name: values at x}; a line passes over None, where nothing was measured, and breaks where a value is
            not finite.
        from_zero: the vertical axis begins at 0.
    Returns:
        '' where there is nothing to draw.
    """
    kept = _spread(len(x))
    x = [x[i] for i in kept]
    measured = {name: [values[i] for i in kept] for name, values in series.items()}
    series = {name: [_finite(value) for value in values] for name, values in measured.items()}
    series = {name: values for name, values in series.items() if any(value is not None for value in values)}
    if not series:
        return ''
    values = [value for line in series.values() for value in line if value is not None]
    power = _power(values)
    y_ticks = ticks(*_range([value / 10. ** power for value in values], from_zero))
    plane = _Plane(x, [tick * 10. ** power for tick in (y_ticks[0], y_ticks[-1])])
    body = _grid(plane, y_ticks, power) + ''.join(
        _line(plane, x, measured[name], number) for number, name in enumerate(series, 1))
    words = '; '.join(_in_words(name, x, line) for name, line in series.items())
    unit = ', 10<sup>{}</sup>'.format(str(power).replace('-', '−')) if power else ''
    return ('<figure class="card chart"><figcaption><b>{}{}</b>{}</figcaption>'
            '<svg viewBox="0 0 {} {}" role="img" tabindex="0" aria-label="{}" data-points="{}">{}</svg>'
            '<p class="read" aria-live="polite"></p></figure>').format(
                html.escape(title), unit, _legend(series), WIDTH, HEIGHT, html.escape('{}. {}'.format(title, words)),
                html.escape(_points(plane, x, series)), body)


def ticks(low, high, most=6):
    """Round numbers, at most `most` and at least two, the first at or below `low` and the last at or above `high`."""
    rough = (high - low) / (most - 1)
    power = 10. ** math.floor(math.log10(rough))
    for step in (1, 2, 2.5, 5, 10, 20, 25, 50):
        first, last = math.floor(low / (step * power) + 1e-9), math.ceil(high / (step * power) - 1e-9)
        if last - first < most:
            return [round(i * step * power, 12) for i in range(first, last + 1)]
    raise ValueError('no ticks between {} and {}'.format(low, high))


def whole_ticks(low, high, most=6):
    """Round whole numbers within [low, high], both included where they are such."""
    step = next(step * 10 ** power for power in range(9) for step in (1, 2, 5)
                if (high - low) / (step * 10 ** power) < most)
    return list(range(-(-low // step) * step, high + 1, step))


def short(value):
    """A number in at most five significant digits: '0.41073', '2515', '1.5e-06'."""
    if value is None:
        return '–'
    if value != 0 and abs(value) < 1e-3:
        return '{:.3g}'.format(value)
    return '{:.0f}'.format(value) if abs(value) >= 1e4 else '{:.5g}'.format(value)


class _Plane:
    """From (epoch, value) to units of the drawing."""

    def __init__(self, x, y):
        self.epochs, self.y = (x[0], x[-1]), y
        self.x = self.epochs if x[-1] > x[0] else (x[0] - 1, x[0] + 1)

    def at(self, x, y):
        return (LEFT + (RIGHT - LEFT) * (x - self.x[0]) / (self.x[1] - self.x[0]),
                BOTTOM - (BOTTOM - TOP) * (y - self.y[0]) / (self.y[1] - self.y[0]))


def _spread(count):
    """Indices of the points that are drawn; the last always."""
    step = -(-count // MOST_POINTS)
    return list(range((count - 1) % step if count else 0, count, step)) if step else []


def _finite(value):
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def _range(values, from_zero):
    low, high = min(values), max(values)
    if from_zero:
        low = min(low, 0.)
    if high - low < 1e-9 * max(abs(high), 1e-3):        # a level line, in the middle
        margin = abs(high) / 10 or 1.
        low, high = (low, high + margin) if from_zero else (low - margin, high + margin)
    return low, high


def _power(values):
    """The power of ten that tick labels leave out: 0 for numbers of everyday size."""
    largest = max(map(abs, values))
    power = math.floor(math.log10(largest)) if largest > 0 else 0
    return 0 if -2 <= power < 5 else power


def _grid(plane, y_ticks, power):
    step = abs(y_ticks[1] - y_ticks[0])
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    digits += abs(round(step, digits) - step) > 1e-9 * step         # 0.25 needs one more than 0.2
    parts = []
    for tick in y_ticks:
        _, y = plane.at(plane.x[0], tick * 10. ** power)
        parts.append('<path class="grid" d="M{} {:.1f}H{}"/><text class="y" x="{}" y="{:.1f}">{:.{}f}</text>'.format(
            LEFT, y, RIGHT, LEFT - 6, y + 4.5, tick, digits))
    for tick in whole_ticks(*plane.epochs):
        x, _ = plane.at(tick, plane.y[0])
        parts.append('<path class="tick" d="M{:.1f} {}v4"/><text class="x" x="{:.1f}" y="{}">{}</text>'.format(
            x, BOTTOM, x, BOTTOM + 16, tick))
    parts.append('<text class="name" x="{}" y="{}">epoch</text>'.format((LEFT + RIGHT) / 2, HEIGHT - 3))
    return ''.join(parts)


def _line(plane, x, values, number):
    """A curve with a dot at its last point; where a point has no neighbours, it is a dot too."""
    runs, points = [[]], []
    for epoch, value in zip(x, values):
        if _finite(value) is not None:
            points.append('{:.1f},{:.1f}'.format(*plane.at(epoch, value)))
            runs[-1].append(points[-1])
        elif value is not None:
            runs.append([])
    lines = ['<polyline class="s{}" points="{}"/>'.format(number, ' '.join(run)) for run in runs if len(run) > 1]
    dots = [run[0] for run in runs if len(run) == 1]
    dots += [points[-1]] if points[-1] not in dots else []
    return ''.join(lines + ['<circle class="s{}" cx="{}" cy="{}" r="3"/>'.format(number, *dot.split(','))
                            for dot in dots])


def _legend(series):
    return ''.join('<span class="key"><i class="s{}"></i>{} <b>{}</b></span>'.format(
        number, html.escape(name), short([value for value in values if value is not None][-1]))
        for number, (name, values) in enumerate(series.items(), 1))


def _in_words(name, x, values):
    there = [(value, epoch) for epoch, value in zip(x, values) if value is not None]
    (first, begin), (last, end) = there[0], there[-1]
    (low, at_low), (high, at_high) = min(there), max(there)
    return '{}: {} at epoch {}, {} at epoch {}, lowest {} at epoch {}, highest {} at epoch {}'.format(
        name, short(first), begin, short(last), end, short(low), at_low, short(high), at_high)


def _points(plane, x, series):
    """What the page's script needs to show values under the pointer: JSON."""
    return json.dumps({'x': x, 'y': {name: [None if value is None else float('{:.6g}'.format(value))
                                            for value in values] for name, values in series.items()},
                       'plane': [*plane.x, *plane.y], 'box': [LEFT, RIGHT, TOP, BOTTOM]}, separators=(',', ':'))
