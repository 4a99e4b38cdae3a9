"""What a run keeps for people and programs: log.txt, summary.json, TensorBoard, and the `Final result` block."""
import json
import os

from util.files import write_atomically
from util.log import logger
from util.output_dir import set_aside

STEPS_PER_EPOCH = 1000      # TensorBoard's step is epoch x 1000, so that runs of any batch size share an axis


class Logbook:
    """Of the main process; the others have a SilentLogbook."""

    def __init__(self, folder, log_dir=None):
        self.folder = folder
        self._writer = _tensorboard(log_dir or folder)

    def epoch(self, record):
        """Append one JSON object to log.txt."""
        with open(os.path.join(self.folder, 'log.txt'), 'a', encoding='utf-8') as log:
            log.write(json.dumps(record) + '\n')
        self._writer.flush()

    def scalars(self, epoch, values):
        """TensorBoard scalars {tag: value} at a fractional epoch."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, int(epoch * STEPS_PER_EPOCH))

    def finish(self, name, result):
        """Write `name`.json (an older one is set aside) and print it as the Final result block."""
        path = os.path.join(self.folder, name + '.json')
        if os.path.exists(path):
            set_aside(path)
        write_atomically(path, json.dumps(result, indent=1).encode())
        logger.info(final_result(path))
        self._writer.close()


class SilentLogbook:
    """Keeps nothing."""

    def epoch(self, record):
        pass

    def scalars(self, epoch, values):
        pass

    def finish(self, name, result):
        pass


class _NoTensorBoard:
    """Stands in where tensorboard is not installed."""

    def add_scalar(self, tag, value, step):
        pass

    def flush(self):
        pass

    def close(self):
        pass


def _tensorboard(log_dir):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        logger.info('TensorBoard files are not written: %s', error)
        return _NoTensorBoard()
    return SummaryWriter(log_dir=log_dir)


def final_result(path):
    """The Final result block of a summary file."""
    with open(path, encoding='utf-8') as file:
        result = json.load(file)
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
