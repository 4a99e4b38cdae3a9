"""--prof: a trace of some iterations after the warm-up, for chrome://tracing or TensorBoard's trace viewer."""
import os
import shutil
import tempfile

import torch

from util.log import logger

SKIP = 5
# PyTorch 1.8 takes the square of their number to nest the events: two minutes for 10 iterations of ViT-B.
TRACE = 10 if hasattr(torch, 'inference_mode') else 3


class Profiler:
    """Traces iterations SKIP to SKIP + TRACE of the run (fewer where it ends sooner) into folder/prof/trace.json.

    Args:
        folder: None for no trace.
    """

    def __init__(self, accelerator, folder):
        self._accelerator, self._path = accelerator, folder and os.path.join(folder, 'prof', 'trace.json')
        self._done, self._trace = 0, None

    def step(self):
        """Call after each iteration."""
        self._done += 1
        if self._path and self._done == SKIP:
            self._accelerator.synchronize()     # what was queued before the window stays out of it
            self._trace = self._accelerator.profile()
            self._trace.__enter__()
        elif self._done == SKIP + TRACE:
            self.finish()

    def finish(self):
        """Write what was traced, if it has not been written."""
        if self._path and self._done < SKIP:
            logger.warning('--prof: the run ended after %d iterations, the trace begins after %d: nothing written',
                           self._done, SKIP)
        if self._trace is None:
            return
        self._accelerator.synchronize()
        self._trace.__exit__(None, None, None)
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:       # torch itself takes no path that is not UTF-8
            trace = os.path.join(folder, 'trace.json')
            self._trace.export_chrome_trace(trace)
            shutil.move(trace, self._path)
        self._trace = None
        logger.info('profiler trace: %s (open in chrome://tracing)', self._path)
