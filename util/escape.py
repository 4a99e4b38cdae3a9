"""Paths in text: one line whatever bytes a file name holds, and the way back."""
import re

_ESCAPE = re.compile(r'\\([\\nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U000[0-9a-f]{5}|U0010[0-9a-f]{4})')


def escaped(path):
    """`path` with backslashes, and all that does not print (line ends, tabs, undecodable bytes), as \\-escapes."""
    return ''.join(char if char.isprintable() and char != '\\' else char.encode('unicode_escape').decode()
                   for char in path)


def unescaped(text):
    """The path that `escaped` made `text` of; any other text gives something too."""
    return _ESCAPE.sub(lambda found: found.group().encode().decode('unicode_escape'), text)
