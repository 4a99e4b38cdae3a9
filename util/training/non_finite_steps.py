"""Optimizer steps skipped because a loss or gradient was not finite: counted on the device, read by the host later."""
import collections
import itertools
import json
import math
import os

import torch

from util.errors import UserError
from util.files import write_atomically
from util.log import logger

REMEMBERED = 128            # steps


class NonFiniteSteps:
    """Counts skipped steps; after `limit` of them in a row the run is to stop.

    Gradients are exchanged before they are looked at, so every process counts the same.

    Args:
        in_row: steps that were skipped last before a resume.
    """

    def __init__(self, limit, in_row=0):
        self.limit = limit
        # Numbers, or tensors on the device where the optimizer decides there; the host reads them now and then.
        self._skipped, self._in_row, self._over = 0, in_row, 0
        self._recent = collections.deque(maxlen=REMEMBERED)     # ([what `remember` got of its iterations], bad)
        self._open = []

    def add(self, bad):
        """Count a step: 1 where it was skipped, else 0 (a number or a 0-dimensional tensor)."""
        self._skipped = bad + self._skipped
        self._in_row = (bad + self._in_row) * bad
        self._over = (self._in_row >= self.limit) + self._over
        self._recent.append((self._open, bad))
        self._open = []

    def remember(self, epoch, iteration, lr, loss):
        """Keep what a diagnosis needs of an iteration; `loss` (a scalar on the device) is not read."""
        self._open.append((epoch, iteration, lr, loss.detach()))

    @property
    def skipped(self):
        """Steps that this process has seen skipped; reading it may wait for the device."""
        return int(self._skipped)

    @property
    def in_row(self):
        """Steps skipped since the last one taken."""
        return int(self._in_row)

    @property
    def limit_reached(self):
        """True where `limit` steps in a row have been skipped at some time."""
        return int(self._over) > 0

    def abort(self, folder, world, scale, files_of):
        """Write bad_steps.json about the skipped steps into `folder` (on the main process) and end the run.

        Args:
            scale: the current loss scale.
            files_of: (rank, epoch, iteration) -> names of that batch's images.
        Raises:
            UserError: always.
        """
        rows = [list(steps) for bad, steps in itertools.groupby(self._recent, lambda step: int(step[1])) if bad]
        row = max(rows, key=len)
        iterations = [iteration for step, _ in row[:self.limit] for iteration in step]
        losses = world.all_gather(torch.stack([loss.float() for *_, loss in iterations]))      # [rank][iteration]
        path = os.path.join(folder, 'bad_steps.json')
        if world.is_main:
            report = {'skipped_in_a_row': len(row), 'loss_scale': scale, 'iterations': [
                {'epoch': epoch, 'iteration': i, 'lr': lr, 'processes': [
                    {'rank': rank, 'loss': loss if math.isfinite(loss) else str(loss),
                     'files': files_of(rank, epoch, i)} for rank, loss in _to_blame(at)]}
                for (epoch, i, lr, _), at in zip(iterations, zip(*losses))]}
            try:
                write_atomically(path, json.dumps(report, indent=1).encode())
            except OSError as error:
                logger.error('error: %s: not written (%s)', path, error.strerror)
        raise UserError('{} steps in a row, from epoch {}, iteration {} on, were skipped, as a loss or gradient is not '
                        'finite: lower --blr (or --lr), lengthen --warmup_epochs or set --clip_grad 1.0, then resume '
                        'with --resume auto; {} lists losses and images'.format(len(row), *iterations[0][:2], path))


def _to_blame(losses):
    """(rank, loss) of the processes whose loss is not finite; of all where only gradients are not."""
    lost = [(rank, loss) for rank, loss in enumerate(losses) if not math.isfinite(loss)]
    return lost or list(enumerate(losses))
