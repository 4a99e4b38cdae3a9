"""Download of published weights whose file name holds a hash of the content, as PyTorch Hub names them.

name-HASH.pth, where HASH begins the SHA-256. Files are kept in Hub's folder, $TORCH_HOME/hub/checkpoints.
"""
import http.client
import os
import socket
import sys

from torch import hub

from util.config.parser import HASHED_URL
from util.errors import UserError
from util.file_lock import file_lock
from util.log import logger
from util.text import first_line

SILENCE = 60.       # seconds without data before the download fails


def fetch(url: str) -> str:
    """Path of the file of a valid weights URL, downloaded if missing, by one process while others wait.

    Raises:
        UserError: the URL cannot be reached, or the hash of the content differs.
    """
    name, expected = HASHED_URL.fullmatch(url).group('name', 'hash')
    try:
        path = os.path.join(hub._get_torch_home(), 'hub', 'checkpoints', name)      # get_dir is newer than 1.5
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with file_lock(path + '.lock'):
            if not os.path.isfile(path):
                logger.info('downloading %s to %s', url, path)
                timeout = socket.getdefaulttimeout()
                socket.setdefaulttimeout(SILENCE)
                try:
                    hub.download_url_to_file(url, path, hash_prefix=expected, progress=sys.stderr.isatty())
                finally:
                    socket.setdefaulttimeout(timeout)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        raise UserError('{}: cannot be downloaded ({})'.format(url, first_line(error))) from error
    return path
