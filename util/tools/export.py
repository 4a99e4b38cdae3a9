"""Export a trained model to another library: python -m util.tools.export --resume CHECKPOINT --to FORMAT --output PATH.

If the other library is installed, it runs the exported model before the file appears: outputs must be equal.
Shapes: N images, C channels, L patches, p patch side, D width.
"""
import importlib
from functools import partial
from typing import Any, Dict, List, Optional, Tuple

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from util import log
from util.checkpoints import load_model, pth_file
from util.compat import accepts
from util.config.inference_flags import add_checkpoint
from util.config.input_flags import flags_text, sides, statistics
from util.config.parser import Parser
from util.errors import UserError, run
from util.log import logger
from util.model_sizes import MASK_RATIO
from util.models.features import last_tokens, pool_tokens
from util.text import first_line
from util.tools.outputs import is_special, output_path

FORMATS = ('timm', 'hf', 'onnx')
# Names of the outputs of each part, in the order of ExportedModel.forward.
OUTPUTS = {'encoder': ('features', 'tokens'), 'classifier': ('logits',), 'mae': ('loss', 'pred', 'mask')}
# Maximum difference of an output, relative to its maximum, at least FLOOR; another order of summation makes about 1e-6.
TOLERANCE, FLOOR = 1e-4, .01
EXAMPLES = 3        # images to compare outputs on; graphs are traced with one less


class ExportedModel:
    """A part of a checkpoint (see OUTPUTS; None: all of it), with example inputs and the outputs to expect of it.

    Raises:
        UserError: the checkpoint cannot be read, or has no such part.
    """

    def __init__(self, path: str, part: Optional[str] = None):
        self.model, self.flags, self.classes = load_model.load_any(path)
        whole = 'mae' if hasattr(self.model, 'decoder_embed') else \
            'encoder' if isinstance(self.model.head, nn.Identity) else 'classifier'
        if part not in (None, whole, 'encoder'):
            raise UserError('--part {}: {} has {}'.format(part, path, ' and '.join(sorted({'encoder', whole}))))
        self.part = part or whole
        self.output_names = OUTPUTS[self.part]
        self.global_pool = hasattr(self.model, 'fc_norm')
        self.in_chans = self.flags.get('in_chans') or 3
        self.size = sides(self.flags.get('input_size') or 224)              # (height, width)
        self.patch_size = self.model.patch_embed.proj.kernel_size[0]
        self.eps = self.model.blocks[0].norm1.eps                           # of all layer norms
        self.mask_ratio = self.flags.get('mask_ratio', MASK_RATIO)
        self.mean, self.std = statistics(self.in_chans, self.flags.get('mean'), self.flags.get('std'))
        generator = torch.Generator()
        generator.manual_seed(0)
        self.inputs = {'imgs': torch.randn(EXAMPLES, self.in_chans, *self.size, generator=generator)}
        if self.part == 'mae':
            self.model.predict_ratio = 1.       # transformers predicts all hidden patches at once
            self.inputs['noise'] = torch.rand(EXAMPLES, self.model.pos_embed.shape[1] - 1, generator=generator)
        self._model_forward = self.model.forward            # the ONNX export replaces model.forward
        self.expected = dict(zip(self.output_names, self.forward(*self.inputs.values())))

    @torch.no_grad()
    def forward(self, imgs: torch.Tensor, noise: Optional[torch.Tensor] = None) -> Tuple[torch.Tensor, ...]:
        """Outputs of the part for images (N, C, H, W), normalised, and for an autoencoder noise (N, L).

        Returns:
            loss, pred (N, L, p * p * C) and mask (N, L) of an autoencoder; logits (N, classes) of a classifier;
            features (N, D), the input of a head, and tokens (N, 1 + L, D) of an encoder.
        """
        if self.part == 'mae':
            return self._model_forward(imgs, self.mask_ratio, noise)
        if self.part == 'classifier':
            return (self._model_forward(imgs),)
        tokens = last_tokens(self.model, imgs)
        features = pool_tokens(self.model, tokens, 'mean' if self.global_pool else 'cls')
        return features, tokens if self.global_pool else self.model.norm(tokens)

    def state_dict(self) -> Dict[str, torch.Tensor]:
        """The weights of the part."""
        excluded = ('head.', 'decoder_', 'mask_token') if self.part == 'encoder' else ()
        return {name: value for name, value in self.model.state_dict().items() if not name.startswith(excluded)}

    def compare(self, outputs: Dict[str, Any], library: str) -> str:
        """Compare another library's outputs, tensors or arrays by name, with this program's; returns a log line.

        Raises:
            UserError: they differ in shape or value.
        """
        worst = 0.
        for name, value in outputs.items():
            expected, value = self.expected[name], torch.as_tensor(value)
            difference = float((value - expected).abs().max()) if value.shape == expected.shape else float('nan')
            if not difference <= TOLERANCE * max(FLOOR, float(expected.abs().max())):
                raise UserError('--to {}: its {} {} and {} {} here differ by {:.2g}; nothing was written'.format(
                    library, name, tuple(value.shape), name, tuple(expected.shape), difference))
            worst = max(worst, difference)
        return 'compared with {}: {} of {} images, greatest difference {:.1e}'.format(
            library, ', '.join(outputs), EXAMPLES, worst)


@torch.no_grad()
def write_timm(exported: ExportedModel, path: str) -> Tuple[Dict[str, Any], str]:
    """Write a state_dict, and run it in timm; UserError if timm has no such ViT.

    Returns:
        outputs of the other library by name, None if it is not installed; code that loads the file, {} for its path.
    """
    if exported.global_pool and not accepts(VisionTransformer, 'global_pool'):
        raise UserError('--to timm: the ViT of timm {} has no mean pooling (--global_pool); install a newer timm, or '
                        'give --to hf'.format(timm.__version__))
    pth_file.save(path, exported.state_dict())
    options = {'img_size': exported.size, 'patch_size': exported.patch_size, 'in_chans': exported.in_chans,
               'num_classes': 0 if exported.part == 'encoder' else exported.model.head.out_features,
               'embed_dim': exported.model.cls_token.shape[-1], 'depth': len(exported.model.blocks),
               'num_heads': exported.model.blocks[0].attn.num_heads}
    if accepts(VisionTransformer, 'global_pool'):
        options['global_pool'] = 'avg' if exported.global_pool else 'token'
    model = VisionTransformer(norm_layer=partial(nn.LayerNorm, eps=exported.eps), **options)
    model.load_state_dict(torch.load(path))
    loaded_by = 'model = timm.models.vision_transformer.VisionTransformer({}, norm_layer=functools.partial(' \
                'torch.nn.LayerNorm, eps={!r})); model.load_state_dict(torch.load({{}}))'.format(
                    ', '.join('{}={!r}'.format(*option) for option in options.items()), exported.eps)
    return {exported.output_names[0]: model.eval()(exported.inputs['imgs'])}, loaded_by


def main(argv: Optional[List[str]] = None) -> None:
    parser = Parser(prog='python -m util.tools.export', description=__doc__.split('\n')[0])
    add = parser.add_argument
    add_checkpoint(parser, 'main_pretrain.py or main_finetune.py')
    add('--to', required=True, choices=FORMATS, help='format')
    add('--output', required=True,
        help='file to write, an existing one is renamed; for hf a folder, which must be new or empty')
    add('--part', choices=tuple(OUTPUTS), help='part of the model to export; default: all of it')
    args = parser.parse_args(argv)
    log.set_up(True, results=is_special(args.output))
    for line in ['written: ' + args.output, *export(args.resume, args.to, args.output, args.part)]:
        logger.info('%s', line)


def export(resume: str, form: str, output: str, part: Optional[str] = None) -> List[str]:
    """Export a model to one of FORMATS, and compare its outputs in the other library if that is installed.

    Args:
        resume: location of the weights; form: one of FORMATS; part: one of OUTPUTS, or None for the whole model.
    Returns:
        lines on the comparison, the inputs, and how to load the model.
    Raises:
        UserError: the format cannot hold the part, its library is not installed, or outputs differ.
    """
    try:
        write = write_timm if form == 'timm' else importlib.import_module('util.tools.export_' + form).write
    except ImportError as error:
        raise UserError('--to {}: {}; pip install onnx onnxruntime'.format(form, first_line(error))) from error
    exported = ExportedModel(resume, part)
    if exported.part == 'mae' and form != 'hf':
        raise UserError('--to {}: has no masked autoencoder; add --part encoder, or give --to hf'.format(form))
    with output_path(output) as temporary:
        outputs, loaded_by = write(exported, temporary)
        compared = exported.compare(outputs, form) if outputs else 'not compared: no library at hand runs it'
    takes = 'takes imgs (N, {}, {}, {}): 0..1, normalised by {}'.format(
        exported.in_chans, *exported.size, flags_text(exported.mean, exported.std))
    if exported.part == 'mae':
        takes += '; and noise (N, {1}), whose largest values mask patches'.format(*exported.inputs['noise'].shape)
    return [compared, takes, 'to load it: ' + loaded_by.format(repr(output))]


if __name__ == '__main__':
    run(main)
