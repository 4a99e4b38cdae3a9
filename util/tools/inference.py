"""A trained model at work on many images: in batches, in order, with loader processes; what cannot be read is told."""
import os
import sys
from contextlib import contextmanager

import torch
from torch.utils.data import Subset

from util.data.datasets import InputImages
from util.data.loader import evaluation_loader
from util.data.transforms import preprocessing_of, to_pil
from util.devices import accelerator as devices
from util.devices.host import default_workers
from util.devices.precision import choose_precision
from util.distributed.world import World
from util.errors import UserError
from util.files import atomic_file, set_aside
from util.log import logger, progress_bar
from util.text import one_line


@contextmanager
def output_file(path):
    """A binary file that the user has named, to write to: at `path` when the block ends well, and what was there has
    another name; its `check` tells at once what a disk refuses.

    Raises:
        UserError: it cannot be written; what was at `path` is still there.
    """
    try:
        with atomic_file(path) as file:
            yield file
            file.check()
            if os.path.lexists(path):
                print('earlier results kept in {}'.format(one_line(set_aside(path))), file=sys.stderr)
    except OSError as error:
        raise UserError('{}: cannot be written ({})'.format(path, error.strerror or error)) from error


class Inference:
    """A trained model on its device.

    `unreadable` are the (path, reason) pairs of the files that cannot be read.
    Args:
        trained: LoadedModel.
        device, amp: as the flags of that name.
    Raises:
        UserError: the device cannot be used here.
    """

    def __init__(self, trained, device='auto', amp=False):
        self._accelerator = devices.select(device)
        self._device = self._accelerator.use(0)
        self._precision = choose_precision(self._accelerator, amp)
        self.model = self._precision.prepare_inference(trained.model.to(self._device))
        self._transform, self.normalize = preprocessing_of(trained.flags)
        self.unreadable = []

    def images(self, paths):
        """The images of a command line as the model takes them; see InputImages."""
        return InputImages(paths, self._transform)

    def some(self, images, count):
        """At most `count` of the `images`, at equal distances."""
        shown = min(count, len(images))
        return Subset(images, [i * len(images) // shown for i in range(shown)])

    def shown(self, pixels):
        """One of the `images` (H, W, C) -> PIL image."""
        return to_pil(self.normalize.to_display(self.normalize(pixels[None]))[0])

    def over(self, images, function, batch_size, num_workers=None, told=''):
        """Yield (indices of a batch's images, what `function` makes of (model, imgs (N, C, H, W))), in order.

        Args:
            images: what `images` gave, or a torch.utils.data.Subset of it.
            num_workers: loader processes; None: as many as there are cores and work for.
            told: the words before a bar on a terminal; '' for none.
        Raises:
            UserError: no image could be read.
        """
        if num_workers is None:             # a single batch is read as fast without
            num_workers = min(default_workers(), (len(images) - 1) // batch_size)
        loader = evaluation_loader(images, batch_size, World(), False, num_workers, True, self._accelerator)
        loader.unreadable_images = self
        with progress_bar(told, 'images', len(images)) as bar:
            for pixels, indices in loader:
                yield indices.tolist(), self._apply(function, pixels)
                bar.update(len(indices))
        bad, total = len(self.unreadable), len(images)
        if bad == total:
            raise UserError('none of the {:,} images can be read'.format(total))
        if bad:
            print('{:,} of {:,} images cannot be read'.format(bad, total), file=sys.stderr)

    def add(self, found):
        """Name unreadable files on standard error, in the place of UnreadableTracker."""
        for path, reason in found:
            logger.warning('%s: cannot be read (%s)', path, reason)
        self.unreadable += found

    def _apply(self, function, pixels):
        pixels, = self._accelerator.to_device([pixels], self._device)
        # apex gives a model half weights, and only its forward half images.
        imgs = self.normalize(pixels).to(self.model.patch_embed.proj.weight.dtype)
        with torch.no_grad(), self._precision.autocast():
            return function(self.model, imgs)
