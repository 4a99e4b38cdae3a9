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
    """For a loader that nobody gave a BadImages: each file gets a line in the log, none is listed or limited."""

    def met(self, found):
        """Warn of (path, reason) pairs."""
        for path, reason in found:
            logger.warning('%s: cannot be read (%s)', path, reason)


class BadImages:
    """The unreadable files of a run. Every process has one, and all of them record the same.

    Args:
        folder: where the main process keeps bad_images.txt; None on the others, which neither write nor log.
        limit: maximum number of unreadable files.
    """

    def __init__(self, folder, limit):
        self.limit, self._seen, self._met, self._recorded = limit, set(), [], set()
        self._path, self._logged, self._writable = folder and os.path.join(folder, NAME), 0, True
        if folder:
            self._text = _content(self._path)
            self._listed = {line.split(b'\t')[0] for line in self._text.split(b'\n') if b'\t' in line}
            if self._listed:
                logger.info('%s lists %d unreadable images from before', self._path, len(self._listed))

    def met(self, found):
        """Take note of (path, reason) pairs that this process has met, each path once."""
        fresh = [pair for pair in dict(found).items() if pair[0] not in self._seen]
        self._seen.update(path for path, _ in fresh)
        self._met += fresh

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
        """List the pairs that are not listed yet, a line a file: escaped path TAB reason; log the first SHOWN."""
        for path, reason in pairs:
            line = '{}\t{}\n'.format(escaped(path), reason).encode(errors='backslashreplace')
            if line.split(b'\t')[0] in self._listed:
                continue
            self._listed.add(line.split(b'\t')[0])
            self._text += line
            self._logged += 1
            if self._logged <= SHOWN:
                logger.warning('%s: cannot be read (%s)', path, reason)
            elif self._logged == SHOWN + 1:
                logger.warning('further unreadable images are only listed, in %s', self._path)
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
