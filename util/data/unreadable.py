"""Unreadable image files of a run: counted, logged, listed in bad_images.txt, and limited."""
import os
from typing import Optional, Sized

import torch

from util.data.image_files import Failures
from util.distributed.world import World
from util.errors import UserError
from util.files import open_regular
from util.log import logger
from util.text import one_line

NAME = 'bad_images.txt'
MAX_LOGGED = 10         # files with a line in the log, not only in the list


class UnreadableTracker:
    """The unreadable files of a run, `limit` at most, which every process records.

    Only the main process has a `folder`, where it keeps bad_images.txt; the others neither write nor log.
    """

    def __init__(self, folder: Optional[str], limit: int):
        self.limit, self._recorded, self._logged = limit, set(), 0
        self.pending = {}               # {path: reason} of the files that were added since the last sync
        self._path = folder and os.path.join(folder, NAME)

    @classmethod
    def of_run(cls, folder: str, limit: Optional[int], dataset: Sized, world: World) -> 'UnreadableTracker':
        """Tracker with the limit of --max_bad_images; None: 1 in 1000 images of `dataset`, at least 10."""
        limit = max(10, len(dataset) // 1000) if limit is None else limit
        return cls(folder if world.is_main else None, limit)

    def add(self, failures: Failures) -> None:
        """Add files that this process could not read."""
        self.pending.update(pair for pair in failures if pair[0] not in self._recorded)

    def sync(self, world: World, device: torch.device) -> None:
        """Collective: count, log and list the pending files of all processes; UserError above the limit.

        Files that an earlier part of a resumed run has listed count only if they fail again: they may be repaired.
        """
        gathered, self.pending = world.all_gather_object(list(self.pending.items()), device), {}
        found = dict(tuple(pair) for failures in gathered for pair in failures)
        new = [pair for pair in found.items() if pair[0] not in self._recorded]
        self._recorded.update(path for path, _ in new)
        if self._path and new:
            self._list(new)
        if new and len(self._recorded) > self.limit:
            raise UserError('{} image file{} cannot be read, more than --max_bad_images {}; see {}; the last is {} ({})'
                            .format(len(self._recorded), 's'[:len(self._recorded) - 1], self.limit, NAME, *new[-1]))

    def _list(self, failures):
        """Append files that are not listed yet, one `escaped path TAB reason` per line; log the first MAX_LOGGED."""
        try:
            if os.path.lexists(self._path):         # also from before a resume
                with open_regular(self._path, 'r', encoding='utf-8', errors='replace') as file:
                    listed = {line.split('\t')[0] for line in file}
                failures = [pair for pair in failures if escaped(pair[0]) not in listed]
            with open(self._path, 'a', encoding='utf-8', errors='backslashreplace') as file:
                file.writelines('{}\t{}\n'.format(escaped(path), reason) for path, reason in failures)
        except OSError as error:
            logger.warning('%s: cannot be written (%s); training continues', self._path, error.strerror)
        for path, reason in failures[:max(0, MAX_LOGGED - self._logged)]:
            logger.warning('%s: cannot be read (%s)', path, reason)
        self._logged += len(failures)


def escaped(path: str) -> str:
    """`path` with backslashes and unprintable characters (line ends, tabs, undecodable bytes) as \\-escapes."""
    return one_line(path.replace('\\', '\\\\'))
