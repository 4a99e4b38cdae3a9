"""Published weights by their URL, where the file's name carries the hash of its content.

PyTorch's hub names files so: name-HASH.pth, where HASH is the beginning of the SHA-256. They are kept where the hub
keeps them, $TORCH_HOME/hub/checkpoints, and checked each time they are used.
"""
import hashlib
import http.client
import os
import socket
import sys

from util.config.weights_location import HASHED_URL
from util.errors import UserError
from util.file_lock import file_lock
from util.log import logger
from util.text import first_line

SILENCE = 60.       # seconds without a byte until a server counts as gone


def fetch(url):
    """Path of the file of `url`, which `location_fault` has passed; it is downloaded unless it is there already.

    Processes of a machine that need the same file wait for the first one to download it.
    Raises:
        UserError: the URL cannot be reached, or its content is of another hash.
    """
    # Not above, since --help needs the rest of this module, and no torch.
    from torch import hub

    name, expected = HASHED_URL.fullmatch(url).group('name', 'hash')
    try:
        path = os.path.join(_folder(hub), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with file_lock(path + '.lock'):
            if not os.path.isfile(path) or not _sha256(path).startswith(expected):
                logger.info('downloading %s to %s', url, path)
                patience = socket.getdefaulttimeout()
                socket.setdefaulttimeout(SILENCE)
                try:
                    hub.download_url_to_file(url, path, hash_prefix=expected, progress=sys.stderr.isatty())
                finally:
                    socket.setdefaulttimeout(patience)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        raise UserError('{}: cannot be downloaded ({})'.format(url, first_line(error))) from error
    return path


def _folder(hub):
    if hasattr(hub, 'get_dir'):
        return os.path.join(hub.get_dir(), 'checkpoints')
    cache = os.environ.get('XDG_CACHE_HOME', '~/.cache')            # PyTorch 1.5, whose place has one level less
    return os.path.join(os.path.expanduser(os.environ.get('TORCH_HOME', cache + '/torch')), 'checkpoints')


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for chunk in iter(lambda: file.read(2 ** 20), b''):
            digest.update(chunk)
    return digest.hexdigest()
