"""Optimizer steps skipped because a loss or gradient was not finite: counted on the device, read later by the host."""
import collections
import itertools
import math
from typing import Any, Callable, Dict, List, Union

import torch

from util.distributed.world import World
from util.errors import UserError
from util.log import logger

HISTORY = 128               # steps kept for the diagnosis
LISTED = 8                  # losses and images in the diagnosis


class NonFiniteSteps:
    """Counter of skipped steps; the run aborts after `limit` consecutive ones.

    Gradients are checked after their all-reduce, so all processes have the same counts.
    """

    def __init__(self, limit: float):
        self.limit = limit
        # Numbers, or tensors where a fused optimizer decides on the device; the host reads them only now and then.
        self._skipped, self._in_row, self._limit_hits = 0, 0, 0
        self._history = collections.deque(maxlen=HISTORY)       # (iterations of the step, skipped)
        self._iterations = []                                   # of the open accumulation window

    def record_iteration(self, epoch: int, iteration: int, loss: torch.Tensor) -> None:
        """Record an iteration of the open accumulation window; `loss` (a scalar on the device) is not read."""
        self._iterations.append((epoch, iteration, loss.detach()))

    def add(self, skipped: Union[int, torch.Tensor]) -> None:
        """Count a step: 1 if it was skipped, else 0 (a number or a 0-dimensional tensor)."""
        self._skipped = skipped + self._skipped
        self._in_row = (skipped + self._in_row) * skipped
        self._limit_hits = (self._in_row >= self.limit) + self._limit_hits
        self._history.append((self._iterations, skipped))
        self._iterations = []

    @property
    def skipped(self) -> int:
        """Steps skipped in this process; synchronizes with the device."""
        return int(self._skipped)

    @property
    def limit_reached(self) -> bool:
        """True once `limit` consecutive steps have been skipped; synchronizes with the device."""
        return int(self._limit_hits) > 0

    def state_dict(self) -> Dict[str, int]:
        """The number of consecutive steps skipped up to now."""
        return {'bad_steps_in_row': int(self._in_row)}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Restore a state_dict, or a checkpoint that may lack its key."""
        self._in_row = state.get('bad_steps_in_row') or 0

    def abort(self, world: World, scale: float, files_of: Callable[[int, int, int], List[str]]) -> None:
        """Collective: log where the longest run of skipped steps began, and abort.

        Args:
            scale: current loss scale.
            files_of: (rank, epoch, iteration) -> names of the images in that batch.
        Raises:
            UserError: always.
        """
        rows = [list(steps) for bad, steps in itertools.groupby(self._history, lambda step: int(step[1])) if bad]
        row = max(rows, key=len)
        iterations = [iteration for step, _ in row for iteration in step][:LISTED]
        epoch, first, _ = iterations[0]
        losses = world.all_gather(torch.stack([loss.float() for *_, loss in iterations]))      # [rank][iteration]
        # the process where it began; if only gradients are not finite, all are equally suspect
        rank = min(range(world.size), key=lambda rank: math.isfinite(losses[rank][0]))
        logger.info('non-finite from epoch %d, iteration %d on: losses of process %d: %s; loss scale now: %g', epoch,
                    first, rank, ', '.join(map('{:.4g}'.format, losses[rank])), scale)
        logger.info('its first images in iteration %d: %s', first, ', '.join(files_of(rank, epoch, first)[:LISTED]))
        raise UserError('{} steps in a row skipped, from epoch {}, iteration {} on: loss or gradients are not finite; '
                        'lower --blr (or --lr), lengthen --warmup_epochs or set --clip_grad 1.0, then resume with '
                        '--resume auto'.format(len(row), epoch, first))
