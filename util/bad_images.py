"""Image files that could not be read: counted over the whole run, logged, listed in bad_images.txt, and limited."""
import os

from util.errors import UserError
from util.files import open_regular, write_atomically
from util.log import logger

NAME = 'bad_images.txt'
SHOWN = 10          # files that get a line in the log


def default_limit(images):
    """Files that may be unreadable among so many: 1 in 1000, at least 10."""
    return max(10, images // 1000)


def ledger(folder, limit, dataset, runtime):
    """The BadImages of a run; `limit` is the flag, None for 1 in 1000 of `dataset`."""
    return BadImages(folder if runtime.world.is_main else None, default_limit(len(dataset)) if limit is None else limit)


class Unlisted:
    """For a loader that nobody gave a BadImages: files get a line in the log, none is listed or limited."""

    def __init__(self):
        self._seen, self._logged = set(), 0

    def met(self, found):
        """Take note of (path, reason) pairs that this process has met, each path once."""
        fresh = [pair for pair in dict(found).items() if pair[0] not in self._seen]
        self._seen.update(path for path, _ in fresh)
        self._take(fresh)

    def _take(self, pairs):
        self._log(pairs, 'further unreadable images are not logged')

    def _log(self, pairs, rest):
        """Warn of the first SHOWN pairs, and say once what becomes of the rest."""
        for path, reason in pairs[:max(0, SHOWN - self._logged)]:
            logger.warning('%s: cannot be read (%s)', path, reason)
        if self._logged <= SHOWN < self._logged + len(pairs):
            logger.warning('%s', rest)
        self._logged += len(pairs)


class BadImages(Unlisted):
    """The unreadable files of a run. Every process has one, and all of them record the same.

    Args:
        folder: where the main process keeps bad_images.txt; None on the others, which neither write nor log.
        limit: maximum number of unreadable files.
    """

    def __init__(self, folder, limit):
        super().__init__()
        self.limit, self._met, self._recorded = limit, [], set()
        self._path, self._text, self._writable = folder and os.path.join(folder, NAME), b'', True
        if folder:
            self._text = _content(self._path)
            self._listed = {line.split(b'\t')[0] for line in self._text.split(b'\n') if b'\t' in line}
            if self._listed:
                logger.info('%s lists %d unreadable images from before', self._path, len(self._listed))

    def _take(self, pairs):
        self._met += pairs

    def take(self):
        """The (path, reason) pairs that were met since the last call; a path comes once in a run."""
        fresh, self._met = self._met, []
        return fresh

    @property
    def pending(self):
        """Files that this process has met and nobody has recorded."""
        return len(self._met)

    def share(self, world, device):
        """Record what all processes have met since the last time; each must call it."""
        self.record([tuple(pair) for found in world.gather_values(self.take(), device) for pair in found])

    def record(self, pairs):
        """Count, log and list what all processes together have met; to be called by all with the same pairs.

        Files that bad_images.txt lists from before a resume count again only when they are met again: they may have
        been repaired.
        Raises:
            UserError: more files than the limit cannot be read.
        """
        fresh = [pair for pair in dict(pairs).items() if pair[0] not in self._recorded]
        self._recorded.update(path for path, _ in fresh)
        if self._path and fresh:
            self._list(fresh)
        if fresh and len(self._recorded) > self.limit:
            raise UserError('{} image file{} cannot be read, more than --max_bad_images {}; see {}; the last is {} ({})'
                            .format(len(self._recorded), 's'[:len(self._recorded) - 1], self.limit, NAME, *fresh[-1]))

    def _list(self, pairs):
        """Log and list the pairs that are not listed yet: a line a file, escaped path TAB reason."""
        fresh = [(path, reason) for path, reason in pairs if escaped(path).encode() not in self._listed]
        self._listed.update(escaped(path).encode() for path, _ in fresh)
        self._log(fresh, 'further unreadable images are only listed, in ' + self._path)
        self._text += ''.join('{}\t{}\n'.format(escaped(path), reason) for path, reason in fresh).encode(
            errors='backslashreplace')
        try:
            write_atomically(self._path, self._text)
        except OSError as error:                # training continues; the next time writes these lines too
            if self._writable:
                logger.warning('%s: cannot be written (%s); continuing without it', self._path, error.strerror or error)
            self._writable = False


def _content(path):
    """The list of an earlier run, its last line whole; b'' where there is none."""
    try:
        with open_regular(path) as file:
            content = file.read()
    except OSError:
        return b''
    return content + b'\n' * (content[-1:] not in (b'', b'\n'))


def escaped(path):
    """`path` with backslashes, and all that does not print (line ends, tabs, undecodable bytes), as \\-escapes."""
    return ''.join(char if char.isprintable() and char != '\\' else char.encode('unicode_escape').decode()
                   for char in path)
