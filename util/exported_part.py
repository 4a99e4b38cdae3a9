"""What of a trained model goes out to other tools: the whole masked autoencoder, the classifier, or the encoder.

Shapes: N images, C channels, L patches, p patch side, D width.
"""
from contextlib import contextmanager

import torch
from torch import nn

import models_mae
from util import encoder, trained
from util.errors import UserError
from util.input_size import sides
from util.input_statistics import statistics

ENCODER, CLASSIFIER, MAE = PARTS = ('encoder', 'classifier', 'mae')
# Greatest difference of an output from this program's, as a share of its greatest value, or of FLOOR where that is
# more. Arithmetic in another order makes about 1e-6.
TOLERANCE, FLOOR = 1e-4, .01
IMAGES = 3          # that outputs are compared on; graphs are traced with one less
DESCRIBING = ('model', 'input_size', 'patch_size', 'in_chans', 'global_pool', 'norm_pix_loss', 'mask_ratio', 'mean',
              'std', 'layer_norm_eps')


class Part:
    """A part of a trained model, images to try it on, and what it makes of them.

    Args:
        path: checkpoint; kind: one of PARTS, or None for all that there is.
    Raises:
        UserError: the checkpoint cannot be read, or has no such part.
    """

    def __init__(self, path, kind=None):
        self.model, self.flags, self.classes = trained.load_either(path)
        whole = MAE if hasattr(self.model, 'decoder_embed') else \
            ENCODER if isinstance(self.model.head, nn.Identity) else CLASSIFIER
        if kind not in (None, whole, ENCODER):
            raise UserError('--part {}: {} is {}; give --part {}'.format(kind, path, {
                MAE: 'a masked autoencoder', CLASSIFIER: 'a classifier', ENCODER: 'an encoder alone'}[whole],
                whole if whole == ENCODER else 'encoder or ' + whole))
        self.kind = kind or whole
        self.pools_mean = hasattr(self.model, 'fc_norm')
        self.in_chans = self.flags.get('in_chans') or 3
        self.size = sides(self.flags.get('input_size') or 224)           # (height, width)
        self.mask_ratio = self.flags.get('mask_ratio', .75)
        self.inputs = self._inputs()
        self.expected = named(self.output_names, self.run(*self.inputs.values()))

    @property
    def output_names(self):
        """What `run` returns, in its order."""
        return {MAE: ('loss', 'pred', 'mask'), CLASSIFIER: ('logits',), ENCODER: ('features', 'tokens')}[self.kind]

    @property
    def patch_size(self):
        """Side of a patch in pixels."""
        return self.model.patch_embed.proj.kernel_size[0]

    @property
    def eps(self):
        """Of its layer norms."""
        return self.model.blocks[0].norm1.eps

    @property
    def statistics(self):
        """(mean, std) by which its inputs are normalised, a number in each for each channel."""
        return statistics(self.in_chans, self.flags.get('mean'), self.flags.get('std'))

    def _inputs(self):
        generator = torch.Generator()
        generator.manual_seed(0)
        inputs = {'imgs': torch.randn(IMAGES, self.in_chans, *self.size, generator=generator)}
        if self.kind == MAE:
            patches = self.model.grid_size[0] * self.model.grid_size[1]
            inputs['noise'] = torch.rand(IMAGES, patches, generator=generator)
        return inputs

    @torch.no_grad()
    def run(self, imgs, noise=None):
        """What this program makes of images (N, C, H, W).

        Args:
            noise: (N, L), for the autoencoder.
        Returns:
            loss, pred (N, L, p * p * C) and mask (N, L) of an autoencoder; logits (N, classes) of a classifier;
            features (N, D), as a head takes them, and tokens (N, 1 + L, D) of an encoder.
        """
        if self.kind == MAE:
            return self.model(imgs, self.mask_ratio, noise)
        return (self.model(imgs),) if self.kind == CLASSIFIER else _encoded(self.model, imgs, self.pools_mean)

    def input_lines(self):
        """What the inputs are, for people."""
        mean, std = self.statistics
        lines = ['imgs: (N, {}, {}, {}) float32, of 0..1 less mean {}, divided by {}'.format(
            self.in_chans, *self.size, ' '.join(map('{:g}'.format, mean)), ' '.join(map('{:g}'.format, std)))]
        if self.kind == MAE:
            mask = self.expected['mask'][0]
            lines.append('noise: (N, {}) float32; patches of the {:g} largest values of a row are hidden'
                         .format(len(mask), float(mask.sum())))
        return lines

    def weights(self):
        """dict of the part's tensors by name."""
        outside = {MAE: (), CLASSIFIER: (), ENCODER: ('head.', 'decoder_', 'mask_token')}[self.kind]
        return {name: value for name, value in self.model.state_dict().items() if not name.startswith(outside)}

    def description(self):
        """The flags that build the part again, as in a checkpoint."""
        flags = {name: self.flags[name] for name in DESCRIBING if self.flags.get(name) is not None}
        if self.kind == ENCODER:
            flags.update(model=flags['model'].replace('mae_', ''), global_pool=self.pools_mean)
        return flags

    @contextmanager
    def graph(self):
        """A module for torch.jit.trace, as `run`, whose graph takes any number of images; while the block runs."""
        embed = self.model.patch_embed
        self.model.patch_embed = _Patches(embed.proj)
        try:
            yield _Graph(self).eval()
        finally:
            self.model.patch_embed = embed

    def compare(self, found, library):
        """Hold outputs of another library, a dict of tensors or arrays by name, to this program's.

        Returns:
            a line that says what was compared, with the greatest difference.
        Raises:
            UserError: they differ.
        """
        worst = 0.
        for name, value in found.items():
            expected, value = self.expected[name], torch.as_tensor(value)
            if value.shape != expected.shape:
                raise UserError('{} gives {} of shape {}, this program {}; nothing was written'.format(
                    library, name, tuple(value.shape), tuple(expected.shape)))
            difference = float((value - expected).abs().max())
            if not difference <= TOLERANCE * max(FLOOR, float(expected.abs().max())):
                raise UserError("{}'s {} differ from this program's by {:.2g}; nothing was written"
                                .format(library, name, difference))
            worst = max(worst, difference)
        return '{} of {} images by {}: greatest difference from this program {:.1e}'.format(
            ', '.join(found), IMAGES, library, worst)


def named(names, values):
    """Values of a library's output by name."""
    return dict(zip(names, values))


def _encoded(model, imgs, pools_mean):
    tokens = list(encoder.block_outputs(model, imgs))[-1]
    features = encoder.pool_tokens(model, tokens, 'mean' if pools_mean else 'cls')
    return features, tokens if pools_mean else model.norm(tokens)


class _Patches(nn.Module):
    """The patch embedding without checks of its input, and with the number of images left open."""

    def __init__(self, proj):
        super().__init__()
        self.proj = proj

    def forward(self, imgs):
        x = self.proj(imgs)                                              # (N, D, rows, columns)
        return x.reshape(x.shape[0], x.shape[1], -1).transpose(1, 2)


class _Graph(nn.Module):
    """A part of a model, written in what exporters of all generations of PyTorch know."""

    def __init__(self, part):
        super().__init__()
        self.model, self._kind, self._ratio, self._pools_mean = part.model, part.kind, part.mask_ratio, part.pools_mean

    def forward(self, imgs, noise=None):
        if self._kind == ENCODER:
            return _encoded(self.model, imgs, self._pools_mean)
        return self._autoencode(imgs, noise) if self._kind == MAE else self.model(imgs)

    def _autoencode(self, imgs, noise):
        """MaskedAutoencoderViT.forward, but for the variance and the mean square, which some exporters lack."""
        model, gather = self.model, models_mae.gather_tokens
        ids = noise.sort(dim=1)[1]
        keep = int(ids.shape[1] * (1 - self._ratio))
        patches = model.patchify(imgs)
        pred = model.forward_decoder(model.forward_encoder(patches, ids[:, :keep]), ids)
        target = gather(patches, ids[:, keep:])
        if model.norm_pix_loss:
            centred = target - target.mean(dim=-1, keepdim=True)
            variance = (centred * centred).sum(dim=-1, keepdim=True) / (target.shape[-1] - 1)
            target = centred / (variance + 1.e-6).sqrt()
        error = pred[:, keep:] - target
        ids_restore = ids.sort(dim=1)[1]
        return (error * error).mean(), gather(pred, ids_restore), (ids_restore >= keep).float()
