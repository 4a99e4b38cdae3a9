"""Text in columns of a terminal, where a Chinese character takes two."""
import unicodedata


def width(text):
    """Columns that a text takes."""
    return sum(0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in 'WF' else 1
               for letter in text)


def fitted(text, columns, end=False):
    """`text` in exactly so many columns: filled up with spaces, or cut; `end`: at its beginning, as suits a path."""
    if width(text) > columns:
        text = text[::-1] if end else text
        while width(text) > max(columns - 3, 0):
            text = text[:-1]
        text = '...' + text[::-1] if end else text + '...'
    return (text + ' ' * columns)[:len(text) + columns - width(text)]
