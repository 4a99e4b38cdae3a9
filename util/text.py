"""Text formatting: values on one line, lists of names, reasons of errors."""
from typing import Any, Sequence


def one_line(text: object) -> str:
    """`text` with line breaks, escape sequences and undecodable bytes escaped, printable on one line."""
    return ''.join(letter if letter.isprintable() else letter.encode('unicode_escape').decode('ascii')
                   for letter in str(text))


def first_line(error: BaseException) -> str:
    """First line of an exception's message, without its full stop; its type where the message is empty."""
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        return 'its import ends the program'            # some packages print the reason and exit
    return str(error).strip().split('\n')[0].rstrip('.') or type(error).__name__


def listed(names: Sequence[Any], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = ' and {} more'.format(len(names) - most) if len(names) > most else ''
    return ', '.join(map(str, names[:most])) + more or 'nothing'
