"""Loss curves of mixed precision and fp32: python test/bench/loss_curves.py FOLDER [--amp_dtype bf16] [--compile]

Pre-trains on the images of a folder three times: in fp32 with two seeds, and in mixed precision with the first seed.
Seeds differ in weights, masks and batches: the distance between the two fp32 curves is the noise level.
"""
import argparse
import os
import statistics
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import util  # noqa: F401  (before torch: it keeps `import torch` from loading a broken torch_npu)

import torch

import models_mae
from util.devices.precision import choose_precision
from util.devices import accelerator as devices
from util.devices.compile import compile_blocks
from util.data.datasets import pretraining_set
from util.data.loader import seed_generators
from util.data.transforms import evaluation_transform, Normalize
from util.training.optimizer_step import decay_groups, warmup_cosine, OptimizerStep


def curve(args, images, seed, amp):
    """Losses of a training, and the name of its precision."""
    accelerator = devices.select(args.device)
    place = accelerator.use(0)
    precision = choose_precision(accelerator, amp, 'auto', args.amp_dtype if amp else 'auto')
    seed_generators(seed)
    accelerator.seed(seed)
    model = getattr(models_mae, 'mae_vit_' + args.model)(img_size=args.input_size, norm_pix_loss=True).to(place).train()
    optimizer = precision.adamw(accelerator, decay_groups(model, .05), lr=args.lr, betas=(.9, .95))
    model, optimizer = precision.prepare(model, optimizer)
    if amp and args.compile:
        compile_blocks(model, place)
    optimizer_step = OptimizerStep(model, optimizer, precision,
                                   lambda epoch: warmup_cosine(epoch, args.lr, args.steps, args.steps / 10, 0.))
    normalize, losses = Normalize(), []
    for step in range(args.steps):
        batch = images[torch.randint(len(images), (args.batch_size,))].to(place)
        optimizer_step.set_lr(step, 0, 1)
        with optimizer_step.gradient_sync():
            with precision.autocast():
                loss = optimizer_step.model(normalize(batch), mask_ratio=.75, loss_only=True)
            optimizer_step.backward(loss)
        if optimizer_step.due:
            optimizer_step.update()
        losses.append(loss.detach())
    return torch.stack(losses).tolist(), precision.name


def curves(args):
    """(images, curves in fp32 with two seeds and in mixed precision with the first)."""
    transform, dataset = evaluation_transform(args.input_size), pretraining_set(args.folder)
    images = torch.stack([transform(dataset[i][0]) for i in range(len(dataset))])
    return images, [curve(args, images, seed, amp) for seed, amp in ((0, False), (1, False), (0, True))]


def distance(one, other):
    """Mean absolute difference of two curves."""
    return statistics.mean(abs(a - b) for a, b in zip(one, other))


def smooth(losses, window=20):
    return [statistics.mean(losses[i:i + window]) for i in range(0, len(losses), window)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', help='image folder')
    parser.add_argument('--model', default='tiny_patch16', help='nano_patch16 to huge_patch14')
    parser.add_argument('--input_size', type=int, default=112)
    parser.add_argument('--batch_size', type=int, default=32)
    parser.add_argument('--steps', type=int, default=200)
    parser.add_argument('--lr', type=float, default=1e-3)
    parser.add_argument('--device', default='auto')
    parser.add_argument('--amp_dtype', default='auto', help='bf16 or fp16; auto: as --amp chooses')
    parser.add_argument('--compile', action='store_true', help='mixed precision with --compile')
    args = parser.parse_args()
    images, ((first, fp32), (second, _), (mixed, name)) = curves(args)
    print('{}, {} images of {} x {}, {} steps of {}, torch {}'.format(
        args.model, len(images), args.input_size, args.input_size, args.steps, args.batch_size, torch.__version__))
    print('\n| steps | {}, seed 0 | {}, seed 1 | {}, seed 0 |\n|---|---|---|---|'.format(fp32, fp32, name))
    for i, row in enumerate(zip(*map(smooth, (first, second, mixed)))):
        print('| {} to {} | {:.4f} | {:.4f} | {:.4f} |'.format(20 * i + 1, 20 * (i + 1), *row))
    print('| mean difference from the first, step by step | | {:.4f} | {:.4f} |'.format(
        distance(first, second), distance(first, mixed)))


if __name__ == '__main__':
    main()
