"""Where weights may come from: a file, a folder of Hugging Face, or a URL with a hash. Nothing here imports torch."""
import os
import re

WEIGHTS = re.compile(r'https?://[^/?#\s][!-~]*?/(?P<name>[\w.+%-]*-(?P<hash>[0-9a-f]{8,64})\.(pth|pt))([?#][!-~]*)?',
                     re.ASCII)


def is_url(path):
    """True where `path` is no path of a file, but http://..., file://... or the like."""
    return bool(re.match(r'[A-Za-z][A-Za-z0-9+.-]*://', path))


def fault_of_weights(place):
    """Why a URL or path names no weights, as the end of a sentence, or None for a file, a folder of Hugging Face, or a
    URL that may be loaded."""
    if is_url(place):
        if not re.match('https?://', place):
            return 'is not an http:// or https:// address; download it and give the path of the file'
        return None if WEIGHTS.fullmatch(place) else \
            'has no hash in its name (name-<8 or more digits of its SHA-256>.pth), so what arrives could not be ' \
            'checked; download it, check it, and give the path of the file'
    if os.path.isdir(place):
        return None if os.path.isfile(os.path.join(place, 'config.json')) else 'is not a file, and has no config.json'
    return None if os.path.isfile(place) else 'is not a file'
