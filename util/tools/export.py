"""A trained model for other tools: python -m util.tools.export --resume CHECKPOINT --to FORMAT --output PATH.

Where the other library is installed, it runs what was written before that appears at PATH: outputs have to be equal.
Shapes: N images, C channels, L patches, p patch side, D width.
"""
import importlib
import json
import os
import tempfile
from functools import partial

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from util import log
from util.checkpoints import load_model, pth_file
from util.compat import accepts
from util.config.inference_flags import check_checkpoint, check_output
from util.config.input_flags import sides
from util.config.normalization import flags_text, statistics
from util.config.parser import Parser
from util.errors import UserError, run
from util.model_sizes import MASK_RATIO
from util.models import features as encoder
from util.text import first_line, one_line

# By format: the endings that its file may have.
FORMATS = {'timm': ('.pth', '.pt', '.bin'), 'hf': (), 'safetensors': ('.safetensors',), 'onnx': ('.onnx',)}
# By part: what Part.run returns of it, in its order.
PARTS = {'encoder': ('features', 'tokens'), 'classifier': ('logits',), 'mae': ('loss', 'pred', 'mask')}
# Greatest difference of an output from this program's, as a share of its greatest value, or of FLOOR where that is
# more. Arithmetic in another order makes about 1e-6.
TOLERANCE, FLOOR = 1e-4, .01
IMAGES = 3          # that outputs are compared on; graphs are traced with one less
DESCRIBING = ('model', 'input_size', 'patch_size', 'in_chans', 'global_pool', 'norm_pix_loss', 'mask_ratio', 'mean',
              'std', 'layer_norm_eps')


class Part:
    """What goes out of a trained model: all of it or its encoder, with images to try it on and what it makes of them.

    Args:
        path: checkpoint; kind: one of PARTS, or None for all that there is.
    Raises:
        UserError: the checkpoint cannot be read, or has no such part.
    """

    def __init__(self, path, kind=None):
        self.model, self.flags, self.classes = load_model.load_any(path)
        whole = 'mae' if hasattr(self.model, 'decoder_embed') else \
            'encoder' if isinstance(self.model.head, nn.Identity) else 'classifier'
        if kind not in (None, whole, 'encoder'):
            raise UserError('--part {}: {} has {}'.format(kind, path, ' and '.join(sorted({'encoder', whole}))))
        self.kind = kind or whole
        self.output_names = PARTS[self.kind]
        self.pools_mean = hasattr(self.model, 'fc_norm')
        self.in_chans = self.flags.get('in_chans') or 3
        self.size = sides(self.flags.get('input_size') or 224)              # (height, width)
        self.patch_size = self.model.patch_embed.proj.kernel_size[0]
        self.eps = self.model.blocks[0].norm1.eps                           # of all layer norms
        self.mask_ratio = self.flags.get('mask_ratio', MASK_RATIO)
        # By which its inputs are normalised, a number in each for each channel.
        self.mean, self.std = statistics(self.in_chans, self.flags.get('mean'), self.flags.get('std'))
        generator = torch.Generator()
        generator.manual_seed(0)
        self.inputs = {'imgs': torch.randn(IMAGES, self.in_chans, *self.size, generator=generator)}
        if self.kind == 'mae':
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
        if self.kind == 'mae':
            return self._forward(imgs, self.mask_ratio, noise)
        if self.kind == 'classifier':
            return (self._forward(imgs),)
        tokens = list(encoder.block_outputs(self.model, imgs))[-1]
        features = encoder.pool_tokens(self.model, tokens, 'mean' if self.pools_mean else 'cls')
        return features, tokens if self.pools_mean else self.model.norm(tokens)

    def weights(self):
        """dict of the part's tensors by name."""
        outside = ('head.', 'decoder_', 'mask_token') if self.kind == 'encoder' else ()
        return {name: value for name, value in self.model.state_dict().items() if not name.startswith(outside)}

    def description(self):
        """The flags that build the part again, as in a checkpoint."""
        flags = {name: self.flags[name] for name in DESCRIBING if self.flags.get(name) is not None}
        if self.kind == 'encoder':
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


@torch.no_grad()
def write_timm(part, path):
    """Write a bare state_dict for timm's VisionTransformer, and run it there; results are those of write_safetensors.

    Raises:
        UserError: timm has no such model.
    """
    if part.kind == 'mae':
        raise UserError('--to timm: timm has no masked autoencoder; add --part encoder, or give --to hf')
    if part.pools_mean and not accepts(VisionTransformer, 'global_pool'):
        raise UserError('--to timm: the ViT of timm {} has no mean pooling (--global_pool); install a newer timm, or '
                        'give --to hf'.format(timm.__version__))
    pth_file.save(path, part.weights())
    options = {'img_size': part.size, 'patch_size': part.patch_size, 'in_chans': part.in_chans,
               'num_classes': 0 if part.kind == 'encoder' else part.model.head.out_features,
               'embed_dim': part.model.cls_token.shape[-1], 'depth': len(part.model.blocks),
               'num_heads': part.model.blocks[0].attn.num_heads}
    if accepts(VisionTransformer, 'global_pool'):
        options['global_pool'] = 'avg' if part.pools_mean else 'token'
    model = VisionTransformer(norm_layer=partial(nn.LayerNorm, eps=part.eps), **options)
    model.load_state_dict(torch.load(path))
    loaded_by = 'model = timm.models.vision_transformer.VisionTransformer({}, norm_layer=functools.partial(' \
                'torch.nn.LayerNorm, eps={!r})); model.load_state_dict(torch.load({{}}))'.format(
                    ', '.join('{}={!r}'.format(*option) for option in options.items()), part.eps)
    return {part.output_names[0]: model.eval()(part.inputs['imgs'])}, loaded_by


def write_safetensors(part, path):
    """Write weights under this program's names, with the flags and class names that load_model reads again.

    Returns:
        the other library's outputs by name, None as none computes with it; code that loads the file, {} for the path.
    """
    classes = {'classes': json.dumps(part.classes)} if part.classes else {}
    pth_file.save_safetensors(path, part.weights(), args=json.dumps(part.description()), **classes)
    return None, 'safetensors.torch.load_file({})'


def parse_export(argv=None):
    """Parse and check the flags; a bad one ends the process with one line."""
    parser = Parser(prog='python -m util.tools.export', description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--resume', required=True, help='checkpoint of main_pretrain.py or main_finetune.py, or weights of timm or '
                                        'Hugging Face: a file, a folder, or a URL with a hash in its name')
    add('--to', required=True, choices=tuple(FORMATS), help='format')
    add('--output', required=True, help='file to write, for hf a folder; must not exist')
    add('--part', choices=tuple(PARTS), help='what to write; default: all that the checkpoint has')
    args = parser.parse_args(argv)
    check_checkpoint(parser, args)
    check_output(parser, args)
    if os.path.lexists(args.output):
        parser.error('argument --output: {} exists; name another place'.format(args.output))
    endings = FORMATS[args.to]
    if endings and not args.output.endswith(endings):
        parser.error('argument --output: for --to {} its name must end in {}'.format(args.to, ' or '.join(endings)))
    return args


def export(path, form, output, kind=None):
    """Write a part of a checkpoint for another tool, and compare its outputs there where that tool is installed.

    Args:
        form: one of FORMATS; kind: one of PARTS, or None for the whole.
    Returns:
        lines that say what was compared, what the inputs are, and how to load it.
    Raises:
        UserError: the part has no such form, what writes it is not installed, or its outputs differ there.
    """
    log.set_up(True)
    writers = {'timm': write_timm, 'safetensors': write_safetensors}
    try:
        write = writers.get(form) or importlib.import_module('util.tools.export_' + form).write
    except ImportError as error:
        raise UserError('--to {}: {}; pip install onnx onnxruntime'.format(form, first_line(error))) from error
    part, whole_path = Part(path, kind), os.path.abspath(output)
    try:
        with tempfile.TemporaryDirectory(dir=os.path.dirname(whole_path)) as place:
            inner = os.path.join(place, os.path.basename(whole_path))       # some libraries go by the ending
            outputs, loaded_by = write(part, inner)
            compared = part.compare(outputs, form) if outputs else 'not compared: no library at hand runs it'
            os.rename(inner, output)
    except OSError as error:
        raise UserError('--output {}: cannot be written ({})'.format(output, error.strerror or error)) from error
    takes = 'takes imgs (N, {}, {}, {}): 0..1, normalised by {}'.format(part.in_chans, *part.size,
                                                                        flags_text(part.mean, part.std))
    if part.kind == 'mae':
        takes += '; and noise (N, {1}), whose largest values hide patches'.format(*part.inputs['noise'].shape)
    return [compared, takes, 'to load it: ' + loaded_by.format(repr(output))]


def main(args):
    for line in ['written: ' + args.output, *export(args.resume, args.to, args.output, args.part)]:
        print(one_line(line))


if __name__ == '__main__':
    run(main, parse_export())
