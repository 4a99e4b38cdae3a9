"""A trained model at work on many images: in batches, in order, with loader processes; what cannot be read is told."""
import sys

import torch
from torch.utils.data import Subset

from util import device as devices, precision as precisions
from util.bad_images import escaped
from util.datasets import ImageSources
from util.distributed import World
from util.errors import UserError
from util.loader import default_workers, evaluation_loader
from util.log import logger, progress_bar
from util.transforms import preprocessing_of, to_pil


class Unreadable:
    """Takes the place of util.bad_images.BadImages: names files on standard error as they are met, and keeps them."""

    def __init__(self):
        self.files = []     # (path, reason) pairs

    def met(self, found):
        """Take note of (path, reason) pairs."""
        for path, reason in found:
            logger.warning('%s: cannot be read (%s)', path, reason)
        self.files += found

    def listed(self):
        """Bytes of a file such as util.bad_images keeps: a line a file, path TAB reason."""
        return ''.join('{}\t{}\n'.format(escaped(path), reason) for path, reason in self.files).encode()

    def close(self, total):
        """Say how many of `total` images there were.

        Raises:
            UserError: no image could be read.
        """
        if self.files and len(self.files) == total:
            raise UserError('none of the {:,} images can be read'.format(total))
        if self.files:
            print('{:,} of {:,} images cannot be read'.format(len(self.files), total), file=sys.stderr)


class Inference:
    """A trained model on its device.

    Args:
        trained: util.trained.Trained.
        device, amp: as the flags of that name.
    Raises:
        UserError: the device cannot be used here.
    """

    def __init__(self, trained, device='auto', amp=False):
        self._accelerator = devices.select(device)
        self._device = self._accelerator.use(0)
        self._precision = precisions.choose(self._accelerator, amp)
        self.model = self._precision.prepare_inference(trained.model.to(self._device))
        self._transform, self.normalize = preprocessing_of(trained.flags)
        self.unreadable = Unreadable()

    def images(self, paths):
        """The images of a command line as the model takes them; see ImageSources."""
        return ImageSources(paths, self._transform)

    def some(self, images, count):
        """At most `count` of the `images`, at equal distances."""
        shown = min(count, len(images))
        return Subset(images, [i * len(images) // shown for i in range(shown)])

    def shown(self, pixels):
        """One of the `images` (H, W, C) -> PIL image."""
        return to_pil(self.normalize.shown(self.normalize(pixels[None]))[0])

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
        loader.bad_images = self.unreadable
        with progress_bar(told, 'images', len(images)) as bar:
            for pixels, indices in loader:
                yield indices.tolist(), self._apply(function, pixels)
                bar.update(len(indices))
        self.unreadable.close(len(images))

    def _apply(self, function, pixels):
        pixels, = self._accelerator.to_device([pixels], self._device)
        # apex gives a model half weights, and only its forward half images.
        imgs = self.normalize(pixels).to(self.model.patch_embed.proj.weight.dtype)
        with torch.no_grad(), self._precision.autocast():
            return function(self.model, imgs)
