"""Image files that could not be read: counted over the whole run, told, listed in bad_images.txt, and not too many."""
import os
import re

from util.errors import UserError
from util.log import logger

NAME = 'bad_images.txt'
SHOWN = 10          # files that get a line in the log
_ESCAPE = re.compile(r'\\([\\nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U000[0-9a-f]{5}|U0010[0-9a-f]{4})')


def default_limit(images):
    """Files that may be unreadable among so many: 1 in 1000, at least 10."""
    return max(10, images // 1000)


def ledger(folder, limit, dataset, runtime):
    """The BadImages of a run; `limit` is the flag, None for 1 in 1000 of `dataset`."""
    return BadImages(folder if runtime.world.is_main else None, default_limit(len(dataset)) if limit is None else limit)


class BadImages:
    """The unreadable files of a run. Every process has one, and all of them record the same.

    Args:
        folder: where the main process keeps bad_images.txt; None on the others, which neither write nor speak.
        limit: unreadable files that a run puts up with.
    """

    def __init__(self, folder, limit):
        self.limit = limit
        self._list = _Nowhere() if folder is None else _List(os.path.join(folder, NAME))
        self._seen, self._fresh, self._recorded = set(), [], set()

    def met(self, found):
        """Take note of (path, reason) pairs that this process has met."""
        for path, reason in found:
            if path not in self._seen:
                self._seen.add(path)
                self._fresh.append((path, reason))

    def take(self):
        """The (path, reason) pairs that were met since the last call; a path comes once in a run."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def record(self, pairs):
        """Count, tell and list what all processes together have met; to be called by all with the same pairs.

        Files that bad_images.txt lists from before a resume count again only when they are met again: they may have
        been repaired.
        Raises:
            UserError: more files than the limit cannot be read.
        """
        fresh = []
        for path, reason in pairs:
            if path not in self._recorded:
                self._recorded.add(path)
                fresh.append((path, reason))
        if not fresh:
            return
        self._list.add(fresh)
        if len(self._recorded) > self.limit:
            raise UserError('{} image file{} cannot be read, more than --max_bad_images {}; see {}; the last is {} ({})'
                            .format(len(self._recorded), 's'[:len(self._recorded) - 1], self.limit, NAME,
                                    fresh[-1][0], fresh[-1][1]))

    @property
    def pending(self):
        """Files that this process has met and nobody has recorded."""
        return len(self._fresh)

    def share(self, world, device):
        """Record what all processes have met since the last time; each must call it."""
        self.record([tuple(pair) for found in world.gather_values(self.take(), device) for pair in found])


class Unlisted:
    """For a loader that nobody gave a BadImages: files are told, none is listed or limited."""

    def __init__(self):
        self._seen, self._voice = set(), _Voice('further unreadable images are not told')

    def met(self, found):
        """Warn of (path, reason) pairs."""
        fresh = [pair for pair in found if pair[0] not in self._seen]
        self._seen.update(path for path, _ in fresh)
        self._voice.tell(fresh)


class _Voice:
    """Warns of the first few (path, reason) pairs, and says once what becomes of the others."""

    def __init__(self, others):
        self._others, self._told = others, 0

    def tell(self, pairs):
        for path, reason in pairs[:max(0, SHOWN - self._told)]:
            logger.warning('%s: cannot be read (%s)', path, reason)
        if self._told <= SHOWN < self._told + len(pairs):
            logger.warning('%s', self._others)
        self._told += len(pairs)


class _Nowhere:
    """The list of a process other than the main one."""

    def add(self, pairs):
        pass


class _List:
    """bad_images.txt: a line a file, path TAB reason, the path as `escaped` writes it; no file twice."""

    def __init__(self, path):
        self.path = path
        self._known, self._unwritten, self._writable = _listed(path), [], True
        self._voice = _Voice('further unreadable images are only listed, in ' + path)
        if self._known:
            logger.info('%s lists %d unreadable images from before', path, len(self._known))

    def add(self, pairs):
        """Tell and append the (path, reason) pairs that are not known yet."""
        fresh = [(path, reason) for path, reason in pairs if path not in self._known]
        self._known.update(path for path, _ in fresh)
        self._voice.tell(fresh)
        self._unwritten += fresh
        self._write()

    def _write(self):
        """Append what is due. What a disk refuses stays due: training goes on without it."""
        lines = ''.join('{}\t{}\n'.format(escaped(path), reason) for path, reason in self._unwritten)
        try:
            with open(self.path, 'ab+') as file:
                # A write that was cut off, by a full disk or a kill, left a piece of a line.
                cut_off = file.tell() and not _ends_a_line(file)
                file.write(b'\n' * cut_off + lines.encode())
            self._unwritten = []
        except OSError as error:
            if self._writable:
                logger.warning('%s: cannot be written (%s); going on without it', self.path, error.strerror or error)
            self._writable = False


def _ends_a_line(file):
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b'\n'


def _listed(path):
    """The paths that an earlier run has listed."""
    try:
        with open(path, encoding='utf-8', errors='replace') as file:
            return {unescaped(line.split('\t')[0]) for line in file if '\t' in line}
    except OSError:
        return set()


def escaped(path):
    """`path` with backslashes, and all that does not print (line ends, tabs, undecodable bytes), as \\-escapes."""
    return ''.join(char if char.isprintable() and char != '\\' else char.encode('unicode_escape').decode()
                   for char in path)


def unescaped(text):
    """The path that `escaped` made `text` of; any other text gives something too."""
    return _ESCAPE.sub(lambda found: found.group().encode().decode('unicode_escape'), text)
