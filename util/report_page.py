"""The HTML of a report: one file, without anything from elsewhere. All that users name is escaped."""
import base64
import hashlib
import html

from util.curves import short
from util.errors import one_line
from util.report_style import SCRIPT, STYLE

MOST_ROWS = 400         # of the table of epochs; log.txt has them all

PAGE = '''<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'sha256-{digest}'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
'''


def page(title, body):
    """The whole document as bytes.

    Args:
        title: plain text.
        body: HTML.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return PAGE.format(digest=digest, title=escape(title), style=STYLE, body=body,
                       script=SCRIPT).encode('utf-8', 'backslashreplace')


def escape(text):
    """Any text as HTML that shows it, in one line."""
    return html.escape(one_line(text))


def head(title, state, words, lead):
    """Heading, how the run stands ('running', 'finished', 'stopped', 'ended') in `words`, and what it was about."""
    return '<header><h1>{}</h1><p><span class="state {}">{}</span><span class="dim">{}</span></p><p class="lead">{}' \
           '</p></header>'.format(escape(title), state, state, escape(words), escape(lead))


def tiles(values):
    """The figures that matter most: [(name, text)]."""
    return '<ul class="tiles">{}</ul>'.format(''.join(
        '<li class="card"><span>{}</span><b>{}</b></li>'.format(escape(name), escape(text)) for name, text in values))


def section(heading, content):
    """A part of the page; nothing where it has no content."""
    return '<section><h2>{}</h2>{}</section>'.format(escape(heading), content) if content else ''


def charts(figures):
    """What util.curves.figure gave."""
    found = ''.join(figures)
    return '<div class="charts">{}</div>'.format(found) if found else ''


def command(text):
    """A shell command to copy."""
    return '<pre class="card" tabindex="0">{}</pre>'.format(html.escape(text))


def facts(values):
    """A table of (name, value)."""
    return '<div class="card flush"><table class="facts"><tbody>{}</tbody></table></div>'.format(''.join(
        '<tr><th scope="row">{}</th><td>{}</td></tr>'.format(escape(name), escape(value)) for name, value in values))


def folded(summary, content):
    """What is seen on request."""
    return '<details><summary>{}</summary>{}</details>'.format(escape(summary), content)


def epochs(records):
    """The lines of log.txt as a table, newest first."""
    if not records:
        return ''
    names = list(dict.fromkeys(name for record in records for name, value in record.items()
                               if isinstance(value, (int, float)) and name != 'n_parameters'))
    names.sort(key=lambda name: name != 'epoch')
    step = -(-len(records) // MOST_ROWS)
    shown = records[::-1][::step]
    rows = ''.join('<tr>{}</tr>'.format(''.join('<td>{}</td>'.format(_number(record.get(name))) for name in names))
                   for record in shown)
    table = ('<div class="card wide" tabindex="0" role="region" aria-label="Values of each epoch"><table class='
             '"numbers"><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>').format(
                 ''.join('<th scope="col">{}</th>'.format(escape(name)) for name in names), rows)
    every = '' if step == 1 else ' (one in {}; log.txt has all)'.format(step)
    return folded('Values of each epoch' + every, table)


def _number(value):
    return escape(short(value) if isinstance(value, (int, float, type(None))) else value)


def images(pictures, words):
    """Base64 JPEGs as pictures; `words` say what they show, with {} for their number."""
    return ''.join('<img src="data:image/jpeg;base64,{}" alt="{}">'.format(
        html.escape(picture), escape(words).replace('{}', str(number))) for number, picture in enumerate(pictures, 1))


def strips(rows, note):
    """Rows of pictures: [(what they show, base64 JPEGs)]."""
    found = ''.join('<p class="what">{}</p><div style="grid-template-columns:repeat({},1fr)">{}</div>'.format(
        escape(what), len(pictures), images(pictures, 'image {}, ' + what)) for what, pictures in rows)
    return '<p class="lead dim">{}</p><div class="strips">{}</div>'.format(escape(note), found)


def pairs(rows):
    """Confused classes: [(class, what it is taken for, how many of its images, of how many, base64 JPEGs)]."""
    if not rows:
        return '<p>No validation image was taken for another class.</p>'
    return '<div class="pairs">{}</div>'.format(''.join(map(_pair, rows)))


def _pair(row):
    label, guess, count, size, examples = row
    return ('<figure class="card"><figcaption><b>{}</b> taken for <b>{}</b><br><span>{} of {} images, {:.0%}</span>'
            '</figcaption><div class="thumbs">{}</div></figure>').format(
                escape(label), escape(guess), count, size, count / size,
                images(examples, '{} taken for another class'))


def confusion_matrix(names, counts):
    """A table of all pairs: counts[label][guess]; darker is a larger share of the label's images."""
    top = ''.join('<th scope="col" title="{0}">{0}</th>'.format(escape(name)) for name in names)
    rows = []
    for label, (name, row) in enumerate(zip(names, counts)):
        size = max(sum(row), 1)
        cells = ''.join('<td{} style="background:rgba(var(--hot),{:.2f})">{}</td>'.format(
            ' class="right"' if guess == label else '', .6 * count / size, count or '<span class="dim">·</span>')
            for guess, count in enumerate(row))
        rows.append('<tr><th scope="row" title="{0}">{0}</th>{1}</tr>'.format(escape(name), cells))
    return ('<p class="lead dim">Validation images by their class (rows) and what they are taken for (columns); the '
            'diagonal is right.</p><div class="card wide fit" tabindex="0" role="region" aria-label="Confusion matrix">'
            '<table class="matrix"><thead><tr><td></td>{}</tr></thead><tbody>{}</tbody></table></div>').format(
                top, ''.join(rows))


def hardest_classes(rows):
    """The classes that are recognised least: [(class, images that are, all its images)]."""
    return '<div class="card wide"><table class="numbers"><thead><tr><th scope="col" class="text">class' \
           '</th><th scope="col">recognised</th><th scope="col">images</th></tr></thead><tbody>{}</tbody></table>' \
           '</div>'.format(''.join(
               '<tr><th scope="row" class="text">{}</th><td>{:.1%}</td><td>{}</td></tr>'.format(
                   escape(name), right / size, size) for name, right, size in rows))
