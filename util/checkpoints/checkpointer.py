"""Checkpointing: find the checkpoint to resume from, validate and load it, save new ones, keep the last N."""
import glob
import json
import os
import re
import threading
import time
from argparse import Namespace
from typing import Any, List, Optional, Sequence, Tuple

import torch
from torch import nn

from util.checkpoints import schema
from util.checkpoints.pth_file import checkpoint_errors, load, plain_copy, prefer_ema_weights, save
from util.checkpoints.schema import State
from util.checkpoints.weights import check_hidden_differences, load_strict, with_positions_for
from util.devices.precision import FullPrecision
from util.distributed import hang_detector
from util.errors import UserError
from util.files import lines, set_aside
from util.log import logger
from util.text import first_line

# Flags that do not affect the result: `report_changes` skips them.
PLACES = ('data_path', 'output_dir', 'log_dir', 'resume', 'num_workers', 'pin_mem', 'local_rank', 'dist_url', 'addr',
          'prof', 'report_every', 'config', 'save_every', 'save_every_minutes', 'keep_last', 'hang_timeout', 'finetune',
          'init_from', 'start_epoch', 'class_names')
BEST = 'checkpoint-best.pth'            # highest accuracy


def name_after(epoch: int) -> str:
    """File name of the checkpoint at the end of `epoch`, counted from 0."""
    return 'checkpoint-{}.pth'.format(epoch)


def name_within(epoch: int, images: int) -> str:
    """File name of a checkpoint within `epoch`, after `images` images."""
    return 'checkpoint-{}-{}.pth'.format(epoch, images)


def numbered(folder: str) -> List[str]:
    """Paths of the checkpoints in `folder`, newest first, without the best."""
    found = [(_place(path), path) for path in glob.glob(os.path.join(glob.escape(folder), 'checkpoint-*.pth'))]
    return [path for place, path in sorted(found, reverse=True) if place > (-1, 0)]


def _place(path: str) -> Tuple[int, int]:
    """(epoch, images done in it) to resume at from the checkpoint at `path`; (-1, 0) for other files."""
    match = re.search(r'checkpoint-(\d+)(?:-(\d+))?\.pth$', path)
    if not match:
        return -1, 0
    epoch, images = match.groups()
    return (int(epoch) + 1, 0) if images is None else (int(epoch), int(images))


class Checkpointer:
    """Checkpoints of one run. The constructor finds and validates the one to resume from.

    The constructor and the load methods raise UserError and SystemFailure: see pth_file.checkpoint_errors.
    Args:
        folder: output folder; None: save nothing.
        resume: --resume: a path, 'auto' for the newest readable checkpoint in `folder`, or '' for none.
        every_minutes: save interval in minutes; 0: `due` is never true.
        keep_last: number of newest checkpoints to keep, besides the best; 0: all.
        writes: this process saves; only the main process does.
    """

    def __init__(self, folder: Optional[str], resume: str = '', every_minutes: float = 0., keep_last: int = 0,
                 writes: bool = True):
        self._folder, self._seconds, self._keep_last = folder, every_minutes * 60, keep_last
        self._writes = writes and folder is not None
        self._thread, self._last = None, time.monotonic()
        self.failed = False                     # the last save
        self.path: Optional[str] = None         # checkpoint to resume from
        self.state: State = {}                  # its content, until training begins
        if resume == 'auto':
            self._find()
        elif resume:
            self._read(resume)

    def _find(self) -> None:
        paths = numbered(self._folder)
        for path in paths:
            try:
                return self._read(path)
            except UserError as error:
                logger.warning('%s; trying the previous checkpoint', error)
        if paths:
            raise UserError('--resume auto: none of the {} checkpoints in {} is readable; without --resume the run '
                            'starts from scratch and renames them'.format(len(paths), self._folder))

    def _read(self, path: str) -> None:
        state = load(path, as_trained=True)
        with checkpoint_errors(path):
            schema.validate(state, path)
        self.path, self.state = path, state

    @property
    def is_resume(self) -> bool:
        """Whether training resumes; False also where it starts from the weights of a checkpoint without optimizer."""
        return 'optimizer' in self.state

    def get(self, name: str, default: Any = None) -> Any:
        """A value of the checkpoint, see util.checkpoints.schema; `default` without a checkpoint."""
        return self.state.get(name, default)

    @property
    def outputs(self) -> Optional[int]:
        """Number of classes that the checkpoint's classifier has; None without one."""
        heads = [self.state.get('model', {}).get(name) for name in ('head.weight', 'head.1.weight')]
        return next((len(head) for head in heads if head is not None and head.dim() == 2), None)

    def load_model(self, model: nn.Module, fit_positions: bool = False, ema_weights: bool = False) -> None:
        """Load the weights, or with `ema_weights` those of the EMA, if any, into a model without precision set up yet.

        `fit_positions` interpolates position embeddings if the model has another input size.
        """
        if not self.path:
            return
        state = prefer_ema_weights(self.state, self.path) if ema_weights else self.state
        weights, flags = state['model'], state.get('args')
        with checkpoint_errors(self.path):
            load_strict(model, with_positions_for(model, weights, flags) if fit_positions else weights, self.path)
            if not fit_positions:
                check_hidden_differences(model, weights, flags, self.path)
        logger.info('loaded the weights of %s', self.path)

    def load_training(self, optimizer: torch.optim.Optimizer, precision: FullPrecision) -> None:
        """Load optimizer state and loss scale, if training resumes, after the precision is set up."""
        if self.is_resume:
            with checkpoint_errors(self.path):
                load_optimizer(optimizer, self.state['optimizer'], self.path)
                precision.load_state_dict(self.state.get('scaler'))
            epoch, images = self.start()
            logger.info('resuming epoch %d%s', epoch, ' at image {}'.format(images) if images else '')
        elif self.path:
            logger.info('%s: no optimizer state; using it as initial weights, starting at epoch 0', self.path)

    def load_ema(self, ema: Any) -> None:
        """Load util.training.ema.EMA, if training resumes; without saved EMA weights it starts from the model's."""
        if self.is_resume and 'model_ema' in self.state:
            with checkpoint_errors(self.path):
                ema.load_state_dict(self.state)

    def start(self, flag: Optional[int] = None) -> Tuple[int, int]:
        """(epoch, counted from 0, images done in it) where training starts; --start_epoch overrides the checkpoint."""
        if flag is not None or not self.is_resume:
            return flag or 0, 0
        return self.state['epoch'] + 1, self.state.get('images') or 0

    def records_before(self, epoch: int) -> List[str]:
        """Lines of log.txt before `epoch`: from the checkpoint, or else from the file in the output folder."""
        path, records = os.path.join(self._folder, 'log.txt'), self.get('log')
        try:
            return [line for line in (lines(path) if records is None else records)
                    if json.loads(line).get('epoch', -1) < epoch]
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError('{}: not a log of this program ({}); rename or remove it'.format(
                path, first_line(error))) from error

    def set_newer_aside(self, start: Tuple[int, int]) -> List[str]:
        """Rename checkpoints beyond `start`, the (epoch, images) that training resumes at; returns their new names."""
        # They are damaged, or the user went back to an older one: this run writes its own.
        kept = os.path.realpath(self.path)
        return [set_aside(path) for path in numbered(self._folder)
                if _place(path) > start and os.path.realpath(path) != kept]

    def report_changes(self, args: Namespace, processes: int) -> None:
        """Log which flags differ from those in the checkpoint."""
        before = {'processes': self.get('processes', processes), **(self.get('args') or {})}
        now = dict(vars(args), processes=processes)
        changed = ['{} {} -> {}'.format(name, before[name], now[name]) for name in sorted(now)
                   if name in before and before[name] != now[name] and name not in PLACES]
        if self.is_resume and changed:
            logger.info('changed since the checkpoint: %s', ', '.join(changed))

    def begin(self) -> None:
        """Training begins: free the loaded tensors, which the model and the optimizer have copied; reset the timer."""
        self.state, self._last = {}, time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the save interval has elapsed and no save is in progress."""
        busy = self._thread is not None and self._thread.is_alive()
        return self._writes and self._seconds > 0 and not busy and time.monotonic() - self._last >= self._seconds

    def save(self, state: State, names: Sequence[str]) -> None:
        """Copy `state` to host memory, then write it under these names on a background thread; only logs a failure."""
        if not self._writes:
            return
        self.wait()
        self._last = time.monotonic()
        copied = plain_copy(state, lambda tensor: tensor.detach().to('cpu', copy=True))
        self._thread = threading.Thread(target=self._write, args=(copied, names), name='saver')
        self._thread.start()

    def wait(self) -> bool:
        """Wait for the last save; False if it failed."""
        if self._thread is not None:
            hang_detector.heartbeat('waiting for a checkpoint to be written')
            self._thread.join()
        return not self.failed

    def _write(self, state: State, names: Sequence[str]) -> None:
        self.failed = False
        for name in names:
            path = os.path.join(self._folder, name)
            try:
                save(path, state)
            except (OSError, RuntimeError) as error:     # RuntimeError: torch.save on a full disk
                self.failed = True
                reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
                logger.error('error: %s: not saved (%s); newest checkpoint: %s; training continues and retries at the '
                             'next checkpoint', path, reason, (numbered(self._folder) or ['none'])[0])
        for path in numbered(self._folder)[self._keep_last:] if self._keep_last and not self.failed else []:
            try:
                os.remove(path)
            except OSError as error:
                logger.warning('%s: cannot be removed (%s)', path, error.strerror)


def load_optimizer(optimizer: torch.optim.Optimizer, saved: State, path: str) -> None:
    """Load the saved moments, but keep this run's hyperparameters, so that flags override the checkpoint.

    Raises:
        UserError: the moments belong to other parameters.
    """
    schema.validate_optimizer(optimizer, saved, path)
    groups = optimizer.state_dict()['param_groups']
    for group, saved_group in zip(groups, saved['param_groups']):
        group['params'] = saved_group['params']
    # Checkpoints pass between devices and PyTorch releases: every optimizer takes plain step counts (Ascend's fused
    # ones would increment a tensor twice a step) and contiguous moments (fused ones ignore strides).
    state = {key: {name: int(value) if name == 'step' else value.contiguous() if torch.is_tensor(value) else value
                   for name, value in moments.items()} for key, moments in saved['state'].items()}
    optimizer.load_state_dict({'state': state, 'param_groups': groups})
