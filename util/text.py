"""Text for people: values on one line, reasons of errors, durations."""


def one_line(text):
    """`text` as a person can see it in one line: line breaks, escape sequences and undecodable bytes are spelt out."""
    return ''.join(letter if letter.isprintable() else letter.encode('unicode_escape').decode('ascii')
                   for letter in str(text))


def first_line(error):
    """What an import's error says, in one line without its full stop."""
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        return 'its import ends the program'            # as some do that have printed the reason
    return str(error).strip().split('\n')[0].rstrip('.') or type(error).__name__


def duration(seconds):
    """3725 -> '1:02:05'."""
    minutes, seconds = divmod(int(seconds), 60)
    return '{}:{:02d}:{:02d}'.format(minutes // 60, minutes % 60, seconds)
