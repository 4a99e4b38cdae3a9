"""What a classifier says of images, for people and for programs: an aligned table, or JSON lines."""
import json
import unicodedata

from util.errors import UserError, first_line, one_line

MEASURED = 1000         # file names that are looked at to find the width of their column


def width(text):
    """Columns of a terminal that a text takes; a Chinese character takes two."""
    return sum(0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in 'WF' else 1
               for letter in text)


def read_class_names(path, count):
    """The lines of a text file of --class_names.

    Raises:
        UserError: it cannot be read, or has another number of lines than there are classes.
    """
    try:
        with open(path, encoding='utf-8-sig') as file:
            names = file.read().splitlines()
    except (OSError, ValueError) as error:
        raise UserError('--class_names {}: cannot be read ({})'.format(path, first_line(error))) from error
    if len(names) != count:
        raise UserError('--class_names {}: has {} lines, but the model has {} classes'.format(path, len(names), count))
    return names


class Table:
    """Rows of file, class and probability.

    Args:
        stream: text file to write to.
        files: names of image files, whose longest decides the width; classes: names of all classes.
    """

    def __init__(self, stream, files, classes):
        self._stream = stream
        self._file, self._class = (max([5] + [width(one_line(name)) for name in names]) for names in (files, classes))
        self._row('file', 'class', 'prob.')

    def add(self, file, classes, probabilities):
        """Write the rows of an image: the most likely classes first."""
        for name, share in zip(classes, probabilities):
            self._row(one_line(file), one_line(name), '{:.1%}'.format(share) if share >= .0005 else '<0.1%')
            file = ''

    def _row(self, file, name, share):
        file, name = file + ' ' * (self._file - width(file)), name + ' ' * (self._class - width(name))
        self._stream.write('  '.join((file, name, share.rjust(6))) + '\n')

    def flush(self):
        """Show what was written."""
        self._stream.flush()


class JsonLines:
    """A JSON object a line: file, classes (names; numbers where there are none) and probabilities, in UTF-8.

    Args:
        write: takes bytes; flush: called where what was written shall be handed on.
    """

    def __init__(self, write, flush):
        self._write, self.flush = write, flush

    def add(self, file, classes, probabilities):
        """Write the line of an image: the most likely classes first."""
        line = json.dumps({'file': file, 'classes': classes,
                           'probabilities': [float('{:.6g}'.format(share)) for share in probabilities]},
                          ensure_ascii=False)
        # Bytes of a name that are no text stand there as JSON's escapes, such as \udcff.
        self._write(line.encode('utf-8', 'backslashreplace') + b'\n')
