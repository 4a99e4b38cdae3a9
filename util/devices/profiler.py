"""Profiler traces of a few iterations (--prof), for chrome://tracing."""
import os
from typing import Optional

import torch

from util.devices.accelerator import Cpu
from util.log import logger

WARMUP_ITERATIONS = 5
# PyTorch 1.8 needs time quadratic in the number of events: two minutes for 10 iterations of ViT-B.
TRACED_ITERATIONS = 10 if hasattr(torch, 'inference_mode') else 3


class Profiler:
    """Traces the iterations after the warm-up of a run and writes the trace to prof/ in `folder`; None disables it."""

    def __init__(self, accelerator: Cpu, folder: Optional[str]):
        self._accelerator, self._folder = accelerator, folder and os.path.join(folder, 'prof')
        self._iterations, self._trace = 0, None

    def step(self) -> None:
        """Call after each iteration."""
        self._iterations += 1
        if self._folder and self._iterations == WARMUP_ITERATIONS:
            self._accelerator.synchronize()     # keeps work queued earlier out of the trace
            os.makedirs(self._folder, exist_ok=True)
            self._trace = self._accelerator.profile(self._folder)
            self._trace.__enter__()
        elif self._iterations == WARMUP_ITERATIONS + TRACED_ITERATIONS:
            self.finish()

    def finish(self) -> None:
        """Write the trace unless it is written already; it is shorter where the run ends early."""
        if self._folder and self._iterations < WARMUP_ITERATIONS:
            logger.warning('--prof: the run ended before iteration %d: no trace written', WARMUP_ITERATIONS)
        if self._trace is None:
            return
        self._accelerator.synchronize()
        self._trace.__exit__(None, None, None)
        self._trace = None
        logger.info('profiler trace in %s (open in chrome://tracing)', self._folder)
