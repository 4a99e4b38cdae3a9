"""Image files that could not be read: counted over the whole run, logged, listed in bad_images.txt, and limited."""
import os
from contextlib import suppress

from util.errors import UserError
from util.files import open_regular, write_atomically
from util.log import logger
from util.text import one_line

NAME = 'bad_images.txt'
SHOWN = 10          # files that get a line in the log


def track_unreadable(folder, limit, dataset, session):
    """The UnreadableImages of a run; `limit` is the flag, None for 1 in 1000 of `dataset`, at least 10."""
    limit = max(10, len(dataset) // 1000) if limit is None else limit
    return UnreadableImages(folder if session.world.is_main else None, limit)


class UnreadableImages:
    """The unreadable files of a run. Every process has one, and all of them record the same.

    Args:
        folder: where the main process keeps bad_images.txt; None on the others, which neither write nor log.
        limit: maximum number of unreadable files.
    """

    def __init__(self, folder, limit):
        self.limit, self._met, self._recorded, self._logged = limit, {}, set(), 0
        self._path, self._text, self._listed = folder and os.path.join(folder, NAME), b'', set()
        if folder:
            with suppress(OSError), open_regular(self._path) as file:       # that of before a resume, if there is one
                self._text = file.read()
            self._text += b'\n' * (self._text[-1:] not in (b'', b'\n'))
            self._listed = {line.split(b'\t')[0] for line in self._text.split(b'\n') if b'\t' in line}

    def met(self, found):
        """Take note of (path, reason) pairs that this process has met."""
        self._met.update(pair for pair in found if pair[0] not in self._recorded)

    @property
    def pending(self):
        """Files that this process has met and nobody has recorded."""
        return len(self._met)

    def share(self, world, device):
        """Record what all processes have met since the last time; each must call it."""
        gathered, self._met = world.all_gather_object(list(self._met.items()), device), {}
        self.record([tuple(pair) for found in gathered for pair in found])

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
        """List the pairs that no earlier run has, a line a file: escaped path TAB reason; log the first SHOWN."""
        for path, reason in pairs:
            line = '{}\t{}\n'.format(escaped(path), reason).encode(errors='backslashreplace')
            if line.split(b'\t')[0] in self._listed:
                continue
            self._text += line
            self._logged += 1
            if self._logged <= SHOWN:
                logger.warning('%s: cannot be read (%s)', path, reason)
            elif self._logged == SHOWN + 1:
                logger.warning('further unreadable images are only listed, in %s', self._path)
        try:
            write_atomically(self._path, self._text)
        except OSError as error:                # training continues; the next time writes these lines too
            logger.warning('%s: cannot be written (%s); continuing without it', self._path, error.strerror or error)


def escaped(path):
    """`path` with backslashes, and all that does not print (line ends, tabs, undecodable bytes), as \\-escapes."""
    return one_line(path.replace('\\', '\\\\'))
