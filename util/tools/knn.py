"""Weighted k-NN evaluation of features: python -m util.tools.knn --resume CHECKPOINT --data_path DATA"""
from util import log
from util.checkpoints import load_model
from util.config.inference_flags import add_model, add_work
from util.config.parser import Parser, fraction_below_one, non_negative_int, positive, positive_int
from util.data.datasets import has_validation
from util.data.transforms import preprocessing_of
from util.data.validation_split import resolve_split
from util.devices import accelerator
from util.devices.host import default_workers
from util.devices.precision import choose_precision
from util.distributed.world import World
from util.errors import run
from util.training.knn import TEMPERATURE, K, datasets_of, evaluate
from util.training.session import Session


def main() -> None:
    parser = Parser(prog='python -m util.tools.knn', description=__doc__)
    add_model(parser, 'main_pretrain.py, main_finetune.py or main_linprobe.py')
    add = parser.add_argument
    add('--data_path', required=True, help='folder with train/<class>/ and val/<class>/, or other data for fine-tuning')
    add('--val_fraction', type=fraction_below_one,
        help="without val/, fraction of each class to split off for validation; default: the checkpoint's, else 0.1")
    add('--val_seed', type=non_negative_int, help="seed of this split; default: the checkpoint's, else 0")
    add('--k', type=positive_int, default=K, help='number of neighbors')
    add('--temperature', type=positive, default=TEMPERATURE, help='vote weight: exp(cosine similarity / temperature)')
    add('--pool', choices=('mean', 'cls'), default='mean', help='features: mean of the patch tokens, or class token')
    add('--images', type=positive_int, help='number of training images, spread evenly over the classes; default: all')
    add('--seed', type=non_negative_int, default=0, help='seed that selects --images')
    add_work(parser)
    args = parser.parse_args()
    log.set_up(is_main=True)
    model, flags, _ = load_model.load_any(args.resume, args.input_size)
    # A training with val/, or on all images, has recorded the fraction 0: it says nothing on other data.
    split = resolve_split(args.val_fraction, args.val_seed, has_validation(args.data_path), False,
                           flags if flags.get('val_fraction') else None)
    datasets = datasets_of(args.data_path, flags, args.images, args.seed, *split)
    session = Session(accelerator.select(args.device), World())
    precision = choose_precision(session.accelerator, args.amp)
    model = precision.prepare_inference(model.to(session.device))
    workers = default_workers() if args.num_workers is None else args.num_workers
    evaluate(model, preprocessing_of(flags)[1], session, precision, datasets, (args.batch_size, workers, True),
             args.pool, args.k, args.temperature)


if __name__ == '__main__':
    run(main)
