"""What a run keeps for people and programs: log.txt, summary.json, TensorBoard, and the `Final result` block."""
import json
import os

import numpy as np

from util.files import lines, set_aside, write_atomically
from util.log import logger
from util.text import one_line

STEPS_PER_EPOCH = 1000      # TensorBoard's step is epoch x 1000, so that runs of any batch size share an axis
# The lines of the Final result block, and what they are there for.
FINAL = (('images_per_sec', 'Final Performance images/sec : {images_per_sec:.2f}'), ('loss', 'Final Loss : {loss:.4f}'),
         ('acc1', 'Final Accuracy : {acc1:.2f}'), ('best_acc1', 'Best Accuracy : {best_acc1:.2f} (epoch {best_epoch})'),
         ('task', 'E2E {task} Duration sec : {duration_sec:.0f}'))


class RunLogger:
    """Of the main process; the others have a NullRunLogger.

    A disk that is full or fails is told in one line; the lines of log.txt are kept and written when it works again.

    Args:
        lock: of the folder, released by `close`.
        records: the lines that log.txt has at the start, as a resumed run left them; None: those that are there.
        begin: fractional epoch from which on TensorBoard shows this run, not one before in the same folder; None: both.
    """

    def __init__(self, folder, log_dir, lock, records=None, begin=None):
        self.folder, self._lock = folder, lock
        self._path = os.path.join(folder, 'log.txt')
        self.records = lines(self._path) if records is None else list(records)
        self._writer = None
        try:
            from torch.utils.tensorboard import SummaryWriter
            self._writer = SummaryWriter(log_dir or folder,
                                         purge_step=None if begin is None else int(begin * STEPS_PER_EPOCH))
        except (ImportError, OSError, UnicodeEncodeError) as error:     # the last of a folder whose name is no text
            logger.info('TensorBoard files are not written: %s', error)
        if records is not None and (records or os.path.exists(self._path)):
            self._write()

    def epoch(self, record):
        """Add one JSON object to log.txt."""
        self.records.append(json.dumps(record))
        self._write()
        self._tensorboard(lambda writer: writer.flush())

    def _write(self):
        # Written anew each time: a kill or a full disk leaves the old file or the new one, never half a line.
        try:
            write_atomically(self._path, ''.join(line + '\n' for line in self.records).encode())
        except OSError as error:
            logger.error('error: %s: not written (%s); training goes on; memory and checkpoints keep its lines',
                         self._path, error.strerror)

    def scalars(self, epoch, values):
        """TensorBoard scalars {tag: value} at a fractional epoch."""
        step = int(epoch * STEPS_PER_EPOCH)
        self._tensorboard(lambda writer: [writer.add_scalar(tag, value, step) for tag, value in values.items()])

    def picture(self, epoch, tag, picture):
        """A PIL image for TensorBoard at a fractional epoch."""
        self._tensorboard(lambda writer: writer.add_image(
            tag, np.array(picture.convert('RGB')), int(epoch * STEPS_PER_EPOCH), dataformats='HWC'))

    def hyperparameters(self, flags, tags):
        """The flags of the run, {name: value}, for TensorBoard's table of runs, beside the scalars named `tags`."""
        def write(writer):
            from torch.utils.tensorboard.summary import hparams
            plain = {name: value if isinstance(value, (bool, int, float)) else one_line(value)
                     for name, value in flags.items()}
            # Not add_hparams, which makes a run of its own in a subfolder. The third summary would end the run.
            for summary in hparams(plain, dict.fromkeys(tags, 0.))[:2]:
                writer.file_writer.add_summary(summary)
        self._tensorboard(write)

    def _tensorboard(self, action):
        try:
            if self._writer:
                action(self._writer)
        except (OSError, RuntimeError, ValueError) as error:    # what its writing thread has met, sooner or later
            logger.error('error: TensorBoard files cannot be written (%s); training goes on without them', error)
            self._writer = None

    def finish(self, name, result):
        """Write `name`.json (an older one is set aside) and print it as the Final result block."""
        path = os.path.join(self.folder, name + '.json')
        try:
            if os.path.exists(path):
                set_aside(path)
            write_atomically(path, json.dumps(result, indent=1).encode())
        except OSError as error:
            logger.error('error: %s: not written (%s)', path, error.strerror)
        logger.info('\n'.join(['------------------ Final result ------------------',
                               *(text.format(**result) for key, text in FINAL if result.get(key) is not None)]))

    def close(self):
        """Give the folder free."""
        self._tensorboard(lambda writer: writer.close())
        self._lock.release()


class NullRunLogger:
    """Has the methods of a RunLogger, and keeps nothing."""
    records = ()

    def __getattr__(self, name):
        return lambda *args: None
