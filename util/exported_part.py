"""What of a trained model goes out to other tools: the whole masked autoencoder, the classifier, or the encoder.

Shapes: N images, C channels, L patches, p patch side, D width.
"""
import torch
from torch import nn

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
            raise UserError('--part {}: {} has {}'.format(kind, path, ' and '.join(sorted({ENCODER, whole}))))
        self.kind = kind or whole
        # What `run` returns, in its order.
        self.output_names = {MAE: ('loss', 'pred', 'mask'), CLASSIFIER: ('logits',),
                             ENCODER: ('features', 'tokens')}[self.kind]
        self.pools_mean = hasattr(self.model, 'fc_norm')
        self.in_chans = self.flags.get('in_chans') or 3
        self.size = sides(self.flags.get('input_size') or 224)              # (height, width)
        self.patch_size = self.model.patch_embed.proj.kernel_size[0]
        self.eps = self.model.blocks[0].norm1.eps                           # of all layer norms
        self.mask_ratio = self.flags.get('mask_ratio', .75)
        # By which its inputs are normalised, a number in each for each channel.
        self.mean, self.std = statistics(self.in_chans, self.flags.get('mean'), self.flags.get('std'))
        generator = torch.Generator()
        generator.manual_seed(0)
        self.inputs = {'imgs': torch.randn(IMAGES, self.in_chans, *self.size, generator=generator)}
        if self.kind == MAE:
            self.inputs['noise'] = torch.rand(IMAGES, self.model.pos_embed.shape[1] - 1, generator=generator)
        self._forward = self.model.forward
        self.expected = dict(zip(self.output_names, self.run(*self.inputs.values())))

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
            return self._forward(imgs, self.mask_ratio, noise)
        if self.kind == CLASSIFIER:
            return (self._forward(imgs),)
        tokens = list(encoder.block_outputs(self.model, imgs))[-1]
        features = encoder.pool_tokens(self.model, tokens, 'mean' if self.pools_mean else 'cls')
        return features, tokens if self.pools_mean else self.model.norm(tokens)

    def input_text(self):
        """What the inputs are, for people."""
        mean, std = (' '.join(map('{:g}'.format, values)) for values in (self.mean, self.std))
        text = 'takes imgs (N, {}, {}, {}): 0..1, less mean {}, divided by std {}'.format(
            self.in_chans, *self.size, mean, std)
        return text + ('; and noise (N, {1}), whose largest values hide patches'.format(*self.expected['mask'].shape)
                       if self.kind == MAE else '')

    def weights(self):
        """dict of the part's tensors by name."""
        outside = ('head.', 'decoder_', 'mask_token') if self.kind == ENCODER else ()
        return {name: value for name, value in self.model.state_dict().items() if not name.startswith(outside)}

    def description(self):
        """The flags that build the part again, as in a checkpoint."""
        flags = {name: self.flags[name] for name in DESCRIBING if self.flags.get(name) is not None}
        if self.kind == ENCODER:
            flags.update(model=flags['model'].replace('mae_', ''), global_pool=self.pools_mean)
        return flags

    def compare(self, found, library):
        """Hold outputs of another library, a dict of tensors or arrays by name, to this program's.

        Returns:
            a line that says what was compared, with the greatest difference.
        Raises:
            UserError: they differ, in shape or in value.
        """
        worst = 0.
        for name, value in found.items():
            expected, value = self.expected[name], torch.as_tensor(value)
            difference = float((value - expected).abs().max()) if value.shape == expected.shape else float('nan')
            if not difference <= TOLERANCE * max(FLOOR, float(expected.abs().max())):
                raise UserError('--to {}: its {} {} and {} {} here differ by {:.2g}; nothing was written'.format(
                    library, name, tuple(value.shape), name, tuple(expected.shape), difference))
            worst = max(worst, difference)
        return 'compared with {}: {} of {} images, greatest difference {:.1e}'.format(
            library, ', '.join(found), IMAGES, worst)
