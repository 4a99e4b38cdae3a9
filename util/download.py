"""Published weights by their URL, where the file's name carries the hash of its content.

PyTorch's hub names files so: name-HASH.pth, where HASH is the beginning of the SHA-256. They are kept where the hub
keeps them, $TORCH_HOME/hub/checkpoints, and checked each time they are used.
"""
import fcntl
import hashlib
import http.client
import os
import re
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from contextlib import contextmanager

from util.errors import UserError
from util.log import logger
from util.progress_bar import progress_bar

NAMED_BY_HASH = re.compile(r'[\w.+%-]*-([0-9a-f]{8,64})\.(pth|pt)', re.ASCII)
MIB, SLOW = 2 ** 20, 1.     # bytes; seconds of checking a file before a bar is shown
SILENCE = 60.       # seconds without a byte until a server counts as gone


def is_url(path):
    """True where `path` is no path of a file, but http://..., file://... or the like."""
    return bool(re.match(r'[A-Za-z][A-Za-z0-9+.-]*://', path))


def fault_of(url):
    """Why `url` is not loaded and what to do instead, or None where it may be."""
    if not re.fullmatch(r'https?://[^/?#\s][\x21-\x7e]*', url):
        return 'is not an http:// or https:// address; download it and give the path of the file'
    if not NAMED_BY_HASH.fullmatch(_name(url)):
        return 'has no hash in its name (name-<8 or more digits of its SHA-256>.pth), so what arrives could not be ' \
               'checked; download it, check it, and give the path of the file'
    return None


def _name(url):
    path = re.match('https?://[^/?#]+([^?#]*)', url).group(1)
    return path.rsplit('/', 1)[-1]


def fault_of_path(path):
    """Why `path` names no weights, as the end of a sentence; None for a file, or a folder for util.hugging_face."""
    if os.path.isdir(path):
        return None if os.path.isfile(os.path.join(path, 'config.json')) else 'is not a file, and has no config.json'
    return None if os.path.isfile(path) else 'is not a file'


def fault_of_weights(place):
    """Why a URL or path names no weights, as the end of a sentence; None where it does."""
    return fault_of(place) if is_url(place) else fault_of_path(place)


def fetch(url):
    """Where the file of `url` lies on this machine; it is downloaded unless it is there already.

    Processes of a machine that need the same file wait for the first one to download it.
    Raises:
        UserError: the URL has no hash, cannot be reached, or its content is of another hash.
    """
    fault = fault_of(url)
    if fault:
        raise UserError('{}: {}'.format(url, fault))
    expected = NAMED_BY_HASH.fullmatch(_name(url)).group(1)
    try:
        folder = _folder()
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, _name(url))
        with _alone(folder):
            if not os.path.isfile(path) or not _sha256(path).startswith(expected):
                _download(url, path, expected)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, 'reason', error)
        raise UserError('{}: cannot be downloaded ({})'.format(url, reason)) from error
    return path


def _folder():
    """Where torch.hub keeps checkpoints; PyTorch 1.5 had one level less."""
    import torch.hub
    home = torch.hub.get_dir() if hasattr(torch.hub, 'get_dir') else torch.hub._get_torch_home()
    return os.path.join(home, 'checkpoints')


def _sha256(path):
    digest, name, size = hashlib.sha256(), os.path.basename(path), os.path.getsize(path)
    with open(path, 'rb') as file, progress_bar('checking ' + name, 'MiB', -(-size // MIB), SLOW) as bar:
        for chunk in iter(lambda: file.read(MIB), b''):
            digest.update(chunk)
            bar.add()
    return digest.hexdigest()


@contextmanager
def _alone(folder):
    """One process of the machine at a time. A file system without locks only means that each downloads for itself."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


class _OnlyHttp(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, file, code, message, headers, url):
        if not re.match('https?://', url):
            raise urllib.error.URLError('it redirects to {}'.format(url))
        return super().redirect_request(request, file, code, message, headers, url)


def _download(url, path, expected):
    from torch.hub import download_url_to_file
    logger.info('downloading %s to %s', url, path)
    patience, opener = socket.getdefaulttimeout(), urllib.request._opener
    socket.setdefaulttimeout(SILENCE)
    urllib.request.install_opener(urllib.request.build_opener(_OnlyHttp))
    try:
        with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as folder:      # leaves nothing half behind
            part = os.path.join(folder, os.path.basename(path))
            download_url_to_file(url, part, hash_prefix=expected, progress=sys.stderr.isatty())
            os.replace(part, path)
    finally:
        urllib.request.install_opener(opener)
        socket.setdefaulttimeout(patience)
