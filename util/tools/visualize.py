"""See what a masked autoencoder sees: python -m util.tools.visualize --resume CHECKPOINT --output PICTURE.png IMAGES...

Each row of the picture is one image: what the model was shown, what it made of it, the same with the visible patches as
they are, and the original.
"""
from util import log
from util.checkpoints import load_model
from util.config.inference_flags import add_images, check_checkpoint, check_output
from util.config.parser import Parser, non_negative_int, open_fraction, positive_int
from util.errors import run
from util.model_sizes import MASK_RATIO
from util.models.reconstruction import reconstruct
from util.reporting import thumbnails
from util.text import one_line
from util.tools.inference import Inference, output_file

COLUMNS = (['masked'], ['reconstruction'], ['reconstruction', 'with visible patches'], ['original'])
NORMALISED = '(true patch statistics)'     # which a model trained with norm_pix_loss does not predict
CELL, TITLE = 160, 162         # pixels: longer side of an image, width of a title
def picture(model, imgs, mask_ratio, seed, normalize):
    """The grid of masked, reconstructed and original images as a PIL image."""
    columns = [thumbnails.to_images(column, normalize, CELL)
               for column in (*reconstruct(model, imgs, mask_ratio, seed), imgs)]
    note = [NORMALISED] if model.norm_pix_loss else []
    titles = [lines + (note if 'reconstruction' in lines else []) for lines in COLUMNS]
    return thumbnails.grid(list(zip(*columns)), [titles], width=TITLE)


def main(argv=None):
    parser = Parser(prog='python -m util.tools.visualize', description=__doc__.split('\n')[0])
    add_images(parser)
    parser.add_argument('--resume', required=True, help='checkpoint of main_pretrain.py')
    parser.add_argument('--output', required=True, help='PNG file to write; one that is there is renamed')
    parser.add_argument('--mask_ratio', type=open_fraction, help='share of patches to hide; default: as in training')
    parser.add_argument('--count', type=positive_int, default=8, help='images at most, spread over those named')
    parser.add_argument('--seed', type=non_negative_int, default=0, help='seed of the masks')
    args = parser.parse_args(argv)
    check_checkpoint(parser, args)
    check_output(parser, args)
    log.set_up(True, results=True)
    loaded = load_model.load_autoencoder(args.resume)
    inference = Inference(loaded, 'cpu')
    mask_ratio = args.mask_ratio or loaded.flags.get('mask_ratio', MASK_RATIO)
    # one batch, since the masks of a batch depend on its size
    (_, shown), = inference.over(inference.some(inference.images(args.images), args.count), lambda model, imgs: picture(
        model, imgs, mask_ratio, args.seed, inference.normalize), args.count, num_workers=0)
    with output_file(args.output) as file:
        shown.save(file, 'PNG')
    print('reconstructions: {}'.format(one_line(args.output)))


if __name__ == '__main__':
    run(main)
