"""What a run keeps for people and programs: log.txt, summary.json, TensorBoard, and the `Final result` block."""
import json
import os

import numpy as np

from util.errors import one_line
from util.files import lines, write_atomically
from util.log import logger
from util.output_dir import set_aside

STEPS_PER_EPOCH = 1000      # TensorBoard's step is epoch x 1000, so that runs of any batch size share an axis


class Logbook:
    """Of the main process; the others have a SilentLogbook.

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
        self._writer = _tensorboard(log_dir or folder, None if begin is None else int(begin * STEPS_PER_EPOCH))
        if records is not None and (records or os.path.exists(self._path)):
            self._write()

    def epoch(self, record):
        """Add one JSON object to log.txt."""
        self.records.append(json.dumps(record))
        self._write()
        self._tell_tensorboard('flush')

    def _write(self):
        # Written anew each time: a kill or a full disk leaves the old file or the new one, never half a line.
        try:
            write_atomically(self._path, ''.join(line + '\n' for line in self.records).encode())
        except OSError as error:
            logger.error('error: %s: not written (%s); training goes on; memory and checkpoints keep its lines',
                         self._path, error.strerror)

    def scalars(self, epoch, values):
        """TensorBoard scalars {tag: value} at a fractional epoch."""
        for tag, value in values.items():
            self._tell_tensorboard('add_scalar', tag, value, int(epoch * STEPS_PER_EPOCH))

    def picture(self, epoch, tag, picture):
        """A PIL image for TensorBoard at a fractional epoch."""
        pixels = np.array(picture.convert('RGB'))
        self._tell_tensorboard('add_image', tag, pixels, int(epoch * STEPS_PER_EPOCH), None, 'HWC')

    def hyperparameters(self, flags, tags):
        """The flags of the run, {name: value}, for TensorBoard's table of runs, beside the scalars named `tags`."""
        self._tell_tensorboard('add_hyperparameters', flags, tags)

    def _tell_tensorboard(self, method, *args):
        try:
            getattr(self._writer, method)(*args)
        except (OSError, RuntimeError, ValueError) as error:    # what its writing thread has met, sooner or later
            logger.error('error: TensorBoard files cannot be written (%s); training goes on without them', error)
            self._writer = _NoTensorBoard()

    def finish(self, name, result):
        """Write `name`.json (an older one is set aside) and print it as the Final result block."""
        path = os.path.join(self.folder, name + '.json')
        try:
            if os.path.exists(path):
                set_aside(path)
            write_atomically(path, json.dumps(result, indent=1).encode())
        except OSError as error:
            logger.error('error: %s: not written (%s)', path, error.strerror)
        logger.info(final_result(result))

    def close(self):
        """Give the folder free."""
        self._tell_tensorboard('close')
        self._lock.release()


class SilentLogbook:
    """Keeps nothing."""
    records = ()

    def epoch(self, record):
        pass

    def scalars(self, epoch, values):
        pass

    def picture(self, epoch, tag, picture):
        pass

    def hyperparameters(self, flags, tags):
        pass

    def finish(self, name, result):
        pass

    def close(self):
        pass


class _NoTensorBoard:
    """Stands in where tensorboard is not installed."""

    def add_scalar(self, *args):
        pass

    add_image = add_hyperparameters = add_scalar

    def flush(self):
        pass

    def close(self):
        pass


def _tensorboard(log_dir, purge_step):
    try:
        from torch.utils.tensorboard import SummaryWriter
        return _with_hyperparameters(SummaryWriter)(log_dir=log_dir, purge_step=purge_step)
    except (ImportError, OSError, UnicodeEncodeError) as error:      # the last of a folder whose name is no text
        logger.info('TensorBoard files are not written: %s', error)
        return _NoTensorBoard()


def _with_hyperparameters(writer):
    """A SummaryWriter whose hyper-parameters are of the run itself: those of add_hparams are of one in a subfolder."""
    from torch.utils.tensorboard.summary import hparams

    class Writer(writer):
        def add_hyperparameters(self, flags, tags):
            plain = {name: value if isinstance(value, (bool, int, float)) else one_line(value)
                     for name, value in flags.items()}
            experiment, start, _ = hparams(plain, dict.fromkeys(tags, 0.))      # the last would end the run
            for summary in (experiment, start):
                self.file_writer.add_summary(summary)
    return Writer


def final_result(result):
    """The Final result block of a summary."""
    lines = ['------------------ Final result ------------------']
    if result.get('images_per_sec') is not None:
        lines.append('Final Performance images/sec : {:.2f}'.format(result['images_per_sec']))
    if 'loss' in result:
        lines.append('Final Loss : {:.4f}'.format(result['loss']))
    if 'acc1' in result:
        lines.append('Final Accuracy : {:.2f}'.format(result['acc1']))
    if 'best_acc1' in result:
        lines.append('Best Accuracy : {:.2f} (epoch {})'.format(result['best_acc1'], result['best_epoch']))
    lines.append('E2E {} Duration sec : {:.0f}'.format(result['task'], result['duration_sec']))
    return '\n'.join(lines)
