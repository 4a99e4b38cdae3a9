"""Locations of weights: a file, a Hugging Face folder, or a URL with a hash."""
import os
import re
from argparse import ArgumentTypeError
from typing import Optional

HASHED_URL = re.compile(
    r'https?://[^/?#\s][!-~]*?/(?P<name>[\w.+%-]*-(?P<hash>[0-9a-f]{8,64})\.(pth|pt))([?#][!-~]*)?', re.ASCII)


def is_url(path: str) -> bool:
    """Whether `path` has a scheme: http://..., file://... or the like."""
    return bool(re.match(r'[A-Za-z][A-Za-z0-9+.-]*://', path))


def weights(text: str) -> str:
    """argparse type: location of weights, 'auto' or ''."""
    location = os.path.expanduser(text)
    fault = None if text in ('', 'auto') else _fault(location)
    if fault:
        raise ArgumentTypeError('{} {}'.format(location, fault))
    return location


def _fault(location: str) -> Optional[str]:
    """Why weights cannot be loaded from a path or URL, as the end of a sentence; None if the location is valid."""
    if is_url(location):
        if not re.match('https?://', location):
            return 'is not an http:// or https:// URL; download it and give the path of the file'
        return None if HASHED_URL.fullmatch(location) else \
            'has no hash in its name (name-<at least 8 digits of its SHA-256>.pth) to check the download; download ' \
            'it yourself and give the path of the file'
    if re.fullmatch(r'[\w.-]+/[\w.-]+', location) and not os.path.lexists(os.path.dirname(location)):
        return 'is not a file; if it is a model of the Hugging Face hub, download its folder (hf download {} ' \
               '--local-dir FOLDER) and give that'.format(location)
    if not os.path.isdir(location):
        return None if os.path.isfile(location) else 'is not a file'
    return None if os.path.isfile(os.path.join(location, 'config.json')) else 'is a folder without config.json'
