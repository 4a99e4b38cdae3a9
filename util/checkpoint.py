"""Checkpoints of a run: which there are, what they hold, and going on from one."""
import glob
import os
import re

from util.checkpoint_file import load
from util.errors import UserError
from util.log import logger
from util.weights import load_model, with_positions_for


def path_of(folder, epoch):
    """Where the checkpoint after `epoch` (counted from 0) lies."""
    return os.path.join(folder, 'checkpoint-{}.pth'.format(epoch))


def best(folder):
    """Where the checkpoint of highest accuracy lies."""
    return os.path.join(folder, 'checkpoint-best.pth')


def newest(folder):
    """The checkpoint-N.pth of highest N in `folder`, or None."""
    found = {}
    for path in glob.glob(os.path.join(glob.escape(folder), 'checkpoint-*.pth')):
        match = re.search(r'checkpoint-(\d+)\.pth$', path)
        if match:
            found[int(match.group(1))] = path
    return found[max(found)] if found else None


def resume_path(flag, folder):
    """What --resume names: a path, the newest checkpoint of `folder` for 'auto', or None."""
    return newest(folder) if flag == 'auto' else flag or None


def optimizer_state(optimizer, saved, path):
    """A state for optimizer.load_state_dict: the saved moments under this run's own settings, so that flags win and
    checkpoints pass between devices and PyTorch generations.

    Raises:
        UserError: the saved optimizer had other parameter groups.
    """
    groups = optimizer.state_dict()['param_groups']
    if [len(group['params']) for group in groups] != [len(group['params']) for group in saved['param_groups']]:
        raise UserError('{}: its optimizer has other parameter groups; give it to --finetune instead of --resume'
                        .format(path))
    for group, saved_group in zip(groups, saved['param_groups']):
        group['params'] = saved_group['params']
    # Plain step counts suit every optimizer; Ascend's fused ones count a tensor up twice a step.
    state = {key: {name: int(value) if name == 'step' else value for name, value in moments.items()}
             for key, moments in saved['state'].items()}
    return {'state': state, 'param_groups': groups}


def training_state(model, optimizer, precision, epoch, args, **more):
    """All that a run needs to go on after `epoch`, in tensors and plain types.

    Args:
        model: not in DistributedDataParallel.
        more: further plain values, such as best and classes.
    """
    return {'model': precision.model_state(model, optimizer), 'optimizer': optimizer.state_dict(), 'epoch': epoch,
            'scaler': precision.state_dict(), 'args': dict(vars(args)), **more}


class Resumed:
    """The checkpoint that a run goes on from; where `path` is None, one that restores nothing."""

    def __init__(self, path):
        self.path, self.state = path, load(path) if path else {}

    def restore_model(self, model, fit_positions=False):
        """Fill the bare model, before its precision is set up.

        Args:
            fit_positions: interpolate the positions where the model takes another input size.
        """
        if self.path:
            weights = self.state['model']
            load_model(model, with_positions_for(model, weights) if fit_positions else weights, self.path)
            logger.info('loaded the weights of %s', self.path)

    def restore_training(self, optimizer, precision):
        """Fill optimizer and loss scaler, after the precision is set up."""
        if 'optimizer' in self.state:
            optimizer.load_state_dict(optimizer_state(optimizer, self.state['optimizer'], self.path))
            precision.load_state_dict(self.state.get('scaler'))
            logger.info('going on after epoch %d', self.next_epoch - 1)
        elif self.path:
            logger.info('%s holds no optimizer: starting at epoch 0 from its weights', self.path)

    @property
    def next_epoch(self):
        """First epoch to run, counted from 0."""
        return self.state['epoch'] + 1 if 'optimizer' in self.state else 0

    def get(self, name, default=None):
        """A further value of the checkpoint."""
        return self.state.get(name, default)
