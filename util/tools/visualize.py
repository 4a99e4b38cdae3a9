"""Reconstructions of a masked autoencoder: python -m util.tools.visualize --resume CHECKPOINT --output PNG IMAGES...

Each row is one image: masked, reconstructed, reconstructed with the visible patches pasted in, and the original.
"""
from typing import List, Optional

from torch.utils.data import Subset

from util import log
from util.checkpoints import load_model
from util.config.inference_flags import add_checkpoint, add_images
from util.config.parser import Parser, non_negative_int, open_fraction, positive_int
from util.errors import run
from util.log import logger
from util.model_sizes import MASK_RATIO
from util.models.reconstruction import reconstruct
from util.reporting import thumbnails
from util.tools.inference import Inference
from util.tools.outputs import open_output

TITLES = ('masked', 'reconstruction', 'with visible patches', 'original')
NORM_PIX_NOTE = ' (mean and contrast of patches are those of the original: the model does not predict them)'
SIDE, COLUMN = 160, 162         # pixels: longer side of an image, minimum width of a column


def main(argv: Optional[List[str]] = None) -> None:
    parser = Parser(prog='python -m util.tools.visualize', description=__doc__.split('\n')[0])
    add_images(parser)
    add = parser.add_argument
    add_checkpoint(parser, 'main_pretrain.py')
    add('--output', required=True, help='PNG file to write; an existing one is renamed')
    add('--mask_ratio', type=open_fraction, help='fraction of masked patches; default: as in training')
    add('--count', type=positive_int, default=8, help='maximum number of images, evenly spaced among those given')
    add('--seed', type=non_negative_int, default=0, help='seed of the masks')
    args = parser.parse_args(argv)
    log.set_up(True, results=True)
    loaded = load_model.load_autoencoder(args.resume)
    inference = Inference(loaded, 'cpu')
    mask_ratio = args.mask_ratio or loaded.flags.get('mask_ratio', MASK_RATIO)
    dataset = inference.dataset(args.images)
    count = min(args.count, len(dataset))
    chosen = Subset(dataset, [i * len(dataset) // count for i in range(count)])
    with open_output(args.output) as file:
        # As one batch: masks depend on its size.
        (_, columns), = inference.run(chosen, lambda model, imgs: [
            thumbnails.to_images(column, inference.normalize, SIDE)
            for column in (*reconstruct(model, imgs, mask_ratio, args.seed), imgs)], count, num_workers=0)
        thumbnails.grid(list(zip(*columns)), TITLES, width=COLUMN).save(file, 'PNG')
    logger.info('reconstructions: %s%s', args.output, NORM_PIX_NOTE if loaded.model.norm_pix_loss else '')


if __name__ == '__main__':
    run(main)
