"""Data loading benchmark, from image files to batches on the device: python test/bench/bench_loader.py FOLDER [flags]

Ours: the program's datasets, transforms and loaders. The baseline: Pillow, torchvision's (for fine-tuning timm's)
transforms to normalized float tensors, the default collate. Both read the same files with one thread per process, in
alternating rounds; medians are shown. With --packed, ours is also measured on tar files, against the same baseline on
image files.
"""
import argparse
import itertools
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import util  # noqa: F401  (before torch: it keeps `import torch` from loading a broken torch_npu)

import PIL
import torch
import torchvision
from PIL import Image
from timm.data import create_transform
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from torchvision import transforms

from util.devices import accelerator as devices
from util.data.datasets import ImageList, pretraining_set
from util.distributed.world import World
from util.data.loader import evaluation_loader, training_loader
from util.data.lazy_image import BICUBIC
from util.models.timm_adapter import color_augmentation
from util.data.transforms import evaluation_transform, finetuning_transform, MEAN, Normalize, pretraining_transform, STD

INTERPOLATION = transforms.InterpolationMode.BICUBIC if hasattr(transforms, 'InterpolationMode') else BICUBIC


class Baseline(Dataset):
    """Image files decoded by Pillow, with a transform of PIL images."""

    def __init__(self, paths, transform):
        self.paths, self.transform = paths, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        with open(self.paths[index], 'rb') as file:
            return self.transform(Image.open(file).convert('RGB')), 0


def baseline_transform(task, size):
    """The usual transform."""
    floats = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    if task == 'finetune':
        policy, options = 'rand-m9-mstd0.5-inc1', {'interpolation': 'bicubic', 'mean': MEAN, 'std': STD}
        steps = create_transform(size, is_training=True, auto_augment=policy, color_jitter=None, re_prob=.25,
                                 re_mode='pixel', **options).transforms
        # Not timm's own RandAugment, with which Pillow 13 fails occasionally.
        return transforms.Compose([*steps[:2], *color_augmentation(policy, input_size=size, **options), *steps[3:]])
    if task == 'evaluate':
        return transforms.Compose([transforms.Resize(int(size / .875), interpolation=INTERPOLATION),
                                   transforms.CenterCrop(size), *floats])
    return transforms.Compose([transforms.RandomResizedCrop(size, scale=(.2, 1.), interpolation=INTERPOLATION),
                               transforms.RandomHorizontalFlip(), *floats])


def alternate(works, rounds):
    """[time of each round] that each function returns, in alternation, after a warm-up round."""
    times = [[work() for work in works] for _ in range(rounds + 1)]
    return list(zip(*times[1:]))


def one_pass(loader, count, finish, accelerator, skip=1):
    """Seconds per image, of `count` images after the first `skip` batches, which start the workers."""
    seen = 0
    for i, (images, _) in enumerate(loader):
        finish(images)
        if i < skip:
            begun = time.perf_counter()
        else:
            seen += len(images)
        if seen >= count:
            break
    accelerator.synchronize()
    return (time.perf_counter() - begun) / seen


def sources(task, paths, args):
    """{label: dataset} for ours, each with at least as many images as `paths`."""
    make = {'pretrain': pretraining_transform, 'finetune': finetuning_transform, 'evaluate': evaluation_transform}
    transform = make[task](args.input_size)
    found = {'': ImageList(paths, [0] * len(paths), ['all'], transform)}
    if args.packed:
        packed = pretraining_set(args.packed, transform)
        found[' from tar files'] = ConcatDataset([packed] * -(-len(paths) // len(packed)))
    return found


def speeds(task, dataset, paths, args, workers, accelerator, place):
    """(images/s of ours, of the baseline, median ratio)."""
    if task == 'evaluate':
        loader = evaluation_loader(dataset, args.batch_size, World(), False, workers, True, accelerator)
    else:
        loader = training_loader(dataset, args.batch_size, World(), 0, workers, True, accelerator)
    usual = DataLoader(Baseline(paths, baseline_transform(task, args.input_size)), args.batch_size,
                       shuffle=task != 'evaluate', num_workers=workers, pin_memory=accelerator.is_accelerator)
    normalize = Normalize()
    times = alternate([
        lambda: one_pass(loader, args.images, lambda images: normalize(*accelerator.to_device([images], place)),
                         accelerator),
        lambda: one_pass(usual, args.images, lambda images: images.to(place, non_blocking=True), accelerator)],
        args.rounds)
    return (*(1 / statistics.median(seconds) for seconds in times),
            statistics.median(slow / fast for fast, slow in zip(*times)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', help='image folder, flat or nested')
    parser.add_argument('--task', choices=('pretrain', 'finetune', 'evaluate'), nargs='+',
                        default=('pretrain', 'finetune', 'evaluate'))
    parser.add_argument('--workers', type=int, nargs='*', default=(0, 1, 2))
    parser.add_argument('--images', type=int, default=1000, help='per pass, repeated if the folder has fewer')
    parser.add_argument('--input_size', type=int, default=224)
    parser.add_argument('--batch_size', type=int, default=32)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--device', default='auto')
    parser.add_argument('--packed', help='output of python -m util.tools.pack_shards for the folder')
    args = parser.parse_args()
    torch.set_num_threads(1)
    accelerator = devices.select(args.device)
    place = accelerator.use(0)
    found = pretraining_set(args.folder).paths
    paths = list(itertools.islice(itertools.cycle(found), args.images + args.batch_size))
    print('{} files, {}, Python {}, torch {}, torchvision {}, Pillow {}'.format(
        len(found), accelerator.name, sys.version.split()[0], torch.__version__, torchvision.__version__,
        PIL.__version__))
    print('batches of {0.batch_size} at {0.input_size} x {0.input_size}; medians of {0.rounds}'.format(args))
    for task in args.task:
        print('\n| {} | ours | baseline | ratio |\n|---|---|---|---|'.format(task))
        for workers, (words, dataset) in itertools.product(args.workers, sources(task, paths, args).items()):
            mine, other, ratio = speeds(task, dataset, paths, args, workers, accelerator, place)
            print('| {} worker{}{}, images/s | {:.0f} | {:.0f} | {:.2f} |'.format(
                workers, '' if workers == 1 else 's', words, mine, other, ratio), flush=True)


if __name__ == '__main__':
    main()
