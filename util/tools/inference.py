"""Batched inference of a trained model with loader processes, in order; unreadable files are skipped."""
import sys
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple

import torch
from torch.utils.data import Dataset

from util.checkpoints.load_model import LoadedModel
from util.data.datasets import InputImages
from util.data.loader import evaluation_loader
from util.data.transforms import preprocessing_of
from util.devices import accelerator as devices
from util.devices.host import default_workers
from util.devices.precision import choose_precision
from util.distributed.world import World
from util.errors import UserError
from util.log import progress_bar


class Inference:
    """A trained model on its device, by the flags `device` and `amp`; UserError if the device is not available."""

    def __init__(self, loaded: LoadedModel, device: str = 'auto', amp: bool = False):
        self._accelerator = devices.select(device)
        self._device = self._accelerator.use(0)
        self._precision = choose_precision(self._accelerator, amp)
        self.model = self._precision.prepare_inference(loaded.model.to(self._device))
        self._transform, self.normalize = preprocessing_of(loaded.flags)
        self.unreadable: List[Tuple[str, str]] = []         # (path, reason)

    def dataset(self, paths: Sequence[str]) -> InputImages:
        """Dataset of the images of a command line, with the evaluation transform."""
        return InputImages(paths, self._transform)

    def run(self, dataset: Dataset, function: Callable[[torch.nn.Module, torch.Tensor], Any], batch_size: int,
            num_workers: Optional[int] = None, label: str = '') -> Iterator[Tuple[List[int], Any]]:
        """Yield (indices, function(model, imgs (N, C, H, W))) of each batch, in order.

        Args:
            dataset: of `dataset`, or a Subset of it; label: text before the progress bar; '' for no bar.
            num_workers: loader processes; None: at most one per core and per batch but the first.
        Raises:
            UserError: no image can be read.
        """
        if num_workers is None:             # a single batch loads as fast in this process
            num_workers = min(default_workers(), (len(dataset) - 1) // batch_size)
        loader = evaluation_loader(dataset, batch_size, World(), False, num_workers, True, self._accelerator)
        self.unreadable = loader.failures
        with progress_bar(label, 'images', len(dataset)) as bar:
            for pixels, indices in loader:
                pixels, = self._accelerator.to_device([pixels], self._device)
                # apex casts the weights to half precision; only its own forward would cast the images.
                imgs = self.normalize(pixels).to(self.model.patch_embed.proj.weight.dtype)
                with torch.no_grad(), self._precision.autocast():
                    outputs = function(self.model, imgs)
                yield indices.tolist(), outputs
                bar.update(len(indices))
        bad, total = len(self.unreadable), len(dataset)
        if bad == total:
            raise UserError('none of the {:,} images can be read'.format(total))
        if bad:
            print('{:,} of {:,} images cannot be read'.format(bad, total), file=sys.stderr)
