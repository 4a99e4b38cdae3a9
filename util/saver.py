"""Saving beside training: the step waits only for a copy in host memory, a thread writes it; old ones make room."""
import os
import shutil
import threading
import time

from util import checkpoint, checkpoint_file, hang_detector
from util.log import logger


class Saver:
    """Of the main process. Writes one checkpoint at a time.

    A checkpoint that cannot be written is told in one line; training goes on and the next one is tried when it is due.

    Args:
        folder: where checkpoints lie.
        every_minutes: between checkpoints; 0: none is due by time.
        keep_last: newest checkpoints that stay, beside the best; 0: all.
    """

    def __init__(self, folder, every_minutes, keep_last):
        self._folder, self._seconds, self._keep_last = folder, every_minutes * 60, keep_last
        self._thread, self._last = None, time.monotonic()
        self.failed = False             # the newest state is not on the disk

    @property
    def due(self):
        """True where the time for a checkpoint has come and none is being written."""
        busy = self._thread is not None and self._thread.is_alive()
        return bool(self._seconds) and not busy and time.monotonic() - self._last >= self._seconds

    def save(self, state, names):
        """Copy `state` (nested dicts and lists with tensors) and write it under each of the names in the folder."""
        self.wait()
        self._last = time.monotonic()
        copied = checkpoint_file.plain_copy(state, lambda tensor: tensor.detach().to('cpu', copy=True))
        self._thread = threading.Thread(target=self._write, args=(copied, names), name='saver')
        self._thread.start()

    def wait(self):
        """Return when the last save has ended; False where it failed."""
        if self._thread is not None:
            hang_detector.progress('the wait for a checkpoint to be written')
            self._thread.join()
        return not self.failed

    def _write(self, state, names):
        self.failed = False
        for name in names:
            path = os.path.join(self._folder, name)
            try:
                checkpoint_file.save(path, state)
            except (OSError, RuntimeError) as error:     # the latter is how torch.save tells of a full disk
                self.failed = True
                logger.error('error: %s', self._why_not(path, state, error))
        if not self.failed:
            self._make_room()

    def _why_not(self, path, state, error):
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split('\n')[0]
        try:
            free = '{:.1f} MB are free'.format(shutil.disk_usage(self._folder).free / 1e6)
        except OSError:
            free = 'the folder cannot be looked at'
        newest, sizes = (checkpoint.numbered(self._folder) or ['none'])[0], []
        checkpoint_file.plain_copy(state, lambda tensor: sizes.append(tensor.numel() * tensor.element_size()))
        return ('{}: not saved ({}); it needs {:.1f} MB, {}; the newest checkpoint is {}; training goes on, the '
                'next one is written when it is due'.format(path, reason, sum(sizes) / 1e6, free, newest))

    def _make_room(self):
        for path in checkpoint.numbered(self._folder)[self._keep_last:] if self._keep_last else []:
            try:
                os.remove(path)
            except OSError as error:
                logger.warning('%s: cannot be removed (%s)', path, error.strerror)


class SilentSaver:
    """Of the other processes."""
    due = failed = False

    def save(self, state, names):
        pass

    def wait(self):
        return True
