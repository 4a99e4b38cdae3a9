"""Checkpoints of a run: find the one to resume from, restore it, save new ones and keep the last N."""
import glob
import json
import os
import re
import shutil
import threading
import time

import torch

from util.checkpoints.pth_file import load, loading, plain_copy, prefer_ema_weights, save
from util.checkpoints.schema import check, check_optimizer
from util.checkpoints.weights import check_grid, load_model, with_positions_for
from util.distributed import hang_detector
from util.errors import UserError
from util.files import lines, set_aside
from util.log import logger

# Flags that say where a run happens, not what it computes.
PLACES = ('data_path', 'output_dir', 'log_dir', 'resume', 'num_workers', 'pin_mem', 'local_rank', 'dist_url', 'addr',
          'prof', 'report_every', 'config', 'save_every', 'save_every_minutes', 'keep_last', 'hang_timeout', 'finetune',
          'init_from')
BEST = 'checkpoint-best.pth'            # of highest accuracy


def name_after(epoch):
    """File name of the checkpoint after `epoch` (counted from 0)."""
    return 'checkpoint-{}.pth'.format(epoch)


def name_within(epoch, images):
    """File name of a checkpoint within `epoch`, after `images` of its images."""
    return 'checkpoint-{}-{}.pth'.format(epoch, images)


def numbered(folder):
    """Paths of all checkpoints in `folder` but the best, newest first."""
    found = [(_place(path), path) for path in glob.glob(os.path.join(glob.escape(folder), 'checkpoint-*.pth'))]
    return [path for place, path in sorted(found, reverse=True) if place > (-1, 0)]


def _place(path):
    """(epoch, images of it) that a run goes on at from the checkpoint at `path`; (-1, 0) for other files."""
    match = re.search(r'checkpoint-(\d+)(?:-(\d+))?\.pth$', path)
    if not match:
        return -1, 0
    epoch, images = match.groups()
    return (int(epoch) + 1, 0) if images is None else (int(epoch), int(images))


def set_newer_aside(folder, start, resumed_path):
    """Rename the checkpoints in `folder` beyond `start`, (epoch, images) that a run goes on at; returns the new names.

    They are damaged, or of a course that the user has left by an older checkpoint: this run writes its own.
    """
    kept = os.path.realpath(resumed_path)
    return [set_aside(path) for path in numbered(folder) if _place(path) > start and os.path.realpath(path) != kept]


def find(flag, folder):
    """ResumeState of --resume: of a path, of the newest checkpoint in `folder` that can be read for 'auto', or of none.

    Raises:
        UserError: it cannot be read; or there are checkpoints but none can be read.
    """
    if flag != 'auto':
        return ResumeState(flag or None)
    paths = numbered(folder)
    for path in paths:
        try:
            return ResumeState(path)
        except UserError as error:
            logger.warning('%s; trying the one before', error)
    if paths:
        raise UserError('--resume auto: none of the {} checkpoints in {} can be read; without --resume the run starts '
                        'anew and keeps them under another name'.format(len(paths), folder))
    return ResumeState(None)


def load_optimizer(optimizer, saved, path):
    """Give `optimizer` the saved moments under this run's own settings, so that flags win and checkpoints pass between
    devices and PyTorch generations.

    Raises:
        UserError: the moments are not of these parameters.
    """
    check_optimizer(optimizer, saved, path)
    groups = optimizer.state_dict()['param_groups']
    for group, saved_group in zip(groups, saved['param_groups']):
        group['params'] = saved_group['params']
    # Plain step counts suit every optimizer; Ascend's fused ones count a tensor up twice a step. And fused ones write
    # row after row, whatever steps in memory a file gives a tensor.
    state = {key: {name: int(value) if name == 'step' else value.contiguous() if torch.is_tensor(value) else value
                   for name, value in moments.items()} for key, moments in saved['state'].items()}
    optimizer.load_state_dict({'state': state, 'param_groups': groups})


class ResumeState:
    """The checkpoint that a run resumes from; where `path` is None, one that restores nothing.

    Raises:
        UserError, SystemFailure: see util.checkpoints.pth_file.loading; so do the methods that restore something.
    """

    def __init__(self, path):
        self.path, self.state = path, {}
        if path:
            self.state = load(path, as_trained=True)
            with loading(path):
                check(self.state, path)

    @property
    def is_resume(self):
        """True where a training continues, False where one starts from these weights."""
        return 'optimizer' in self.state

    def get(self, name, default=None):
        """A value of the checkpoint; see util.checkpoints.schema."""
        return self.state.get(name, default)

    def restore_model(self, model, fit_positions=False, ema_weights=False):
        """Fill the bare model, before its precision is set up.

        Args:
            fit_positions: interpolate the positions where the model takes another input size.
            ema_weights: take the averaged weights (--ema) where there are some.
        """
        if self.path:
            state = prefer_ema_weights(self.state, self.path) if ema_weights else self.state
            weights, flags = state['model'], state.get('args')
            with loading(self.path):
                if fit_positions:
                    weights = with_positions_for(model, weights, flags)
                else:
                    check_grid(model, weights, flags, self.path)
                load_model(model, weights, self.path)
            logger.info('loaded the weights of %s', self.path)

    def restore_training(self, optimizer, precision):
        """Fill optimizer and loss scaler, after the precision is set up."""
        if self.is_resume:
            with loading(self.path):
                load_optimizer(optimizer, self.state['optimizer'], self.path)
                precision.load_state_dict(self.state.get('scaler'))
            epoch, images, _ = self.start()
            logger.info('resuming epoch %d%s', epoch, ' at image {}'.format(images) if images else '')
        elif self.path:
            logger.info('%s holds no optimizer: starting at epoch 0 from its weights', self.path)

    def restore_ema(self, ema):
        """Fill the EMA, which has been made of the restored weights; without a saved one it starts from them."""
        if self.is_resume and 'model_ema' in self.state:
            with loading(self.path):
                ema.load_state_dict(self.state, self.path)
        elif self.is_resume:
            logger.info('--ema: %s has no EMA weights; the EMA starts from the weights', self.path)

    def start(self, start_epoch=None):
        """(epoch, images of it that are done, what Progress.state gave there or None) to resume at.

        Args:
            start_epoch: the flag, which wins over the checkpoint.
        """
        if start_epoch is not None or not self.is_resume:
            return start_epoch or 0, 0, None
        return self.state['epoch'] + 1, self.get('images') or 0, self.get('progress')

    def records_before(self, epoch, folder):
        """The lines that log.txt in `folder` starts with: the checkpoint's, or else those that are there."""
        records = self.get('log')
        if records is None:
            records = lines(os.path.join(folder, 'log.txt'))
        return [line for line in records if json.loads(line).get('epoch', -1) < epoch]

    def report_changes(self, args, processes):
        """Say which flags are not those that the checkpoint was written with."""
        if not self.is_resume or not self.get('args'):
            return
        before = {'processes': self.get('processes', processes), **self.state['args']}
        now = dict(vars(args), processes=processes)
        changed = ['{} {} -> {}'.format(name, before[name], now[name]) for name in sorted(now)
                   if name in before and before[name] != now[name] and name not in PLACES]
        if changed:
            logger.info('changed since the checkpoint: %s%s', ', '.join(changed),
                        '; the epoch goes on with the images that it has not seen' if self.get('images') else '')

    def release(self):
        """Let go of the tensors, which are in the model and the optimizer now."""
        self.state = {}


class Saver:
    """Saving beside training: the step waits only for a copy in host memory, a thread writes it; old ones make room.

    A checkpoint that cannot be written is reported in one line, and training continues.

    Args:
        folder: where checkpoints lie; None: nothing is saved, as on processes but the main one.
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
        return bool(self._folder and self._seconds) and not busy and time.monotonic() - self._last >= self._seconds

    def save(self, state, names):
        """Copy `state` (nested dicts and lists with tensors) and write it under each of the names in the folder."""
        if self._folder is None:
            return
        self.wait()
        self._last = time.monotonic()
        copied = plain_copy(state, lambda tensor: tensor.detach().to('cpu', copy=True))
        self._thread = threading.Thread(target=self._write, args=(copied, names), name='saver')
        self._thread.start()

    def wait(self):
        """Return when the last save has ended; False where it failed."""
        if self._thread is not None:
            hang_detector.heartbeat('waiting for a checkpoint to be written')
            self._thread.join()
        return not self.failed

    def _write(self, state, names):
        self.failed = False
        for name in names:
            path = os.path.join(self._folder, name)
            try:
                save(path, state)
            except (OSError, RuntimeError) as error:     # the latter is how torch.save tells of a full disk
                self.failed = True
                logger.error('error: %s', self._why_not(path, state, error))
        for path in numbered(self._folder)[self._keep_last:] if self._keep_last and not self.failed else []:
            try:
                os.remove(path)
            except OSError as error:
                logger.warning('%s: cannot be removed (%s)', path, error.strerror)

    def _why_not(self, path, state, error):
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split('\n')[0]
        try:
            free = '{:.1f} MB are free'.format(shutil.disk_usage(self._folder).free / 1e6)
        except OSError:
            free = 'the folder cannot be looked at'
        newest, sizes = (numbered(self._folder) or ['none'])[0], []
        plain_copy(state, lambda tensor: sizes.append(tensor.numel() * tensor.element_size()))
        return ('{}: not saved ({}); it needs {:.1f} MB, {}; the newest checkpoint is {}; training goes on, the '
                'next one is written when it is due'.format(path, reason, sum(sizes) / 1e6, free, newest))
