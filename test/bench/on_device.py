"""A part of on_device.sh, which describes them: python test/bench/on_device.py PART --results NAME --work FOLDER"""
import argparse
import copy
import functools
import json
import os
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'test' / 'lib')]

import util  # noqa: F401  (before torch: it keeps `import torch` from loading a broken torch_npu)

import numpy as np
import synthetic_dataset
import timm
import torch
from bench_loader import one_pass, sources
from bench_step import measure, parse, table
from PIL import Image
from steps import EACH, built, compiled, in_ddp
from torch import nn
from torch.nn import functional as F

import models_mae
from util.checkpoints import pth_file
from util.data.datasets import pretraining_set
from util.data.lazy_image import BICUBIC
from util.data.loader import seed_generators, training_loader
from util.data.transforms import Normalize, evaluation_transform
from util.devices import accelerator as devices, host
from util.devices.precision import choose_precision
from util.distributed.world import World
from util.errors import UserError
from util.files import atomic_file
from util.training.optimizer_step import OptimizerStep, decay_groups, warmup_cosine

PRETRAIN = str(ROOT / 'main_pretrain.py')
# curve: side, batch and steps of the loss curves; loaded: images per worker; steps: of the real run
FULL = {'models': ('base_patch16', 'large_patch16'), 'input_size': 224, 'batch': {'pretrain': 256, 'finetune': 128},
        'window': 3., 'rounds': 2, 'curve': (112, 32, 200), 'pictures': 256, 'workers': (1, 4, 8, 16), 'loaded': 2000,
        'steps': 60}
SMALL = {**FULL, 'models': ('tiny_patch16', 'small_patch16'), 'input_size': 96, 'batch': {'pretrain': 8, 'finetune': 4},
         'window': 1., 'curve': (48, 8, 200), 'workers': (1, 2), 'steps': 30}
QUICK = {**SMALL, 'models': ('nano_patch16',), 'input_size': 32, 'window': .05, 'rounds': 1,
         'curve': (32, 4, 6), 'pictures': 40, 'workers': (1,), 'loaded': 64, 'steps': 3}
LIMITS = {'fp32': 5e-3, 'fp16': .02, 'bf16': .06}       # of relative differences from fp32 on the CPU; fp32 may be TF32
LOSS_SCALE = 1024.
RATIO, SHARE, MEMORY = {'pretrain': 2., 'finetune': 1.8}, (.4, .5), .7      # targets on an H200


class Results:
    """NAME.json and NAME.md: whole after each row, so that a run which is cut off keeps them."""

    def __init__(self, name, part, accelerator):
        self.name, self.begun, earlier = name, time.time(), Path(name + '.json')
        self.found = json.loads(earlier.read_text()) if earlier.exists() else {'head': head(accelerator), 'parts': {}}
        self.part = self.found['parts'].setdefault(part, {'rows': []})
        self.save()

    def add(self, **row):
        self.part['rows'].append(row)
        print(*row.values(), sep='  ', flush=True)
        self.save()

    def check(self, what, value, limit):
        self.add(check=what, difference=value, limit=limit, result='passed' if value <= limit else 'FAILED')

    def save(self, complete=False):
        self.part.update(complete=complete, seconds=round(time.time() - self.begun, 1))
        text = '# Measured by on_device.sh\n\n'
        text += ''.join('- {}: {}\n'.format(*pair) for pair in self.found['head'].items())
        for name, part in self.found['parts'].items():
            text += '\n## {}: {seconds} s, complete: {complete}\n\n{}'.format(name, table(part['rows']), **part)
        for suffix, content in (('.json', json.dumps(self.found, indent=1) + '\n'), ('.md', text)):
            with atomic_file(self.name + suffix) as file:
                file.write(content.encode())


def head(accelerator):
    """What the results depend on."""
    cpu = re.search(r'model name\s*: (.*)', output_of('cat', '/proc/cpuinfo'))
    driver = re.search(r'Version: *(\S+)', output_of('nvidia-smi') or output_of('npu-smi', 'info'))
    return {'device': accelerator.name, 'driver': driver.group(1) if driver else 'none',
            'host': '{} cores of {}'.format(host.default_workers(most=10000), cpu.group(1) if cpu else 'a CPU'),
            'versions': ', '.join(map(' '.join, {'torch': torch.__version__, 'timm': timm.__version__,
                                                 **accelerator.details}.items())),
            'date': time.strftime('%Y-%m-%d %H:%M'),
            'commit': output_of('git', '-C', str(ROOT), 'describe', '--always', '--dirty').strip(),
            'flags': ' '.join(sys.argv[6:])}         # after those of on_device.sh


def output_of(*words):
    """Output of a command, or nothing."""
    try:
        return subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.decode()
    except OSError:
        return ''


def correctness(args, results, accelerator, place):
    """The device against the CPU, mixed precision against fp32; DDP, --compile and a resumed run against plain."""
    images = str(args.work / 'images')
    synthetic_dataset.write(images, train=64, val=8, seed=0)
    flags = ['--data_path', images, '--model', 'mae_vit_tiny_patch16', '--input_size', 64, '--batch_size', 16,
             '--epochs', 2, '--save_every', 1, '--num_workers', 1, '--deterministic']
    whole = started(args.work / 'whole', *flags)        # beside what follows, which is not timed
    for task in ('pretrain', 'finetune'):
        expected = numbers(task, small(task))
        for dtype, limit in LIMITS.items():
            what = '{}, {} on the device against fp32 on the CPU: '.format(task, dtype)
            try:
                backend, half = ('none', 'auto') if dtype == 'fp32' else ('native', dtype)
                autocast = choose_precision(accelerator, backend=backend, dtype=half).autocast
            except UserError as error:
                results.add(check=what + 'all', result='not available: {}'.format(error))
                continue
            found = numbers(task, small(task), place, autocast)
            for name, difference in zip(('loss', 'prediction', 'gradients'), differences(found, expected)):
                results.check(what + name, difference, limit)
    finish(whole)
    resumed = started(args.work / 'resumed', *flags, '--resume', args.work / 'whole' / 'checkpoint-0.pth')
    transform, drawn = evaluation_transform(args.curve[0]), pretraining_set(images)
    pixels = torch.stack([transform(drawn[i][0]) for i in range(len(drawn))])
    full = choose_precision(accelerator)
    half = choose_precision(accelerator, dtype='bf16' if accelerator.supports_bf16() else 'fp16')
    first, second, mixed = (losses(pixels, *args.curve[1:], seed, precision, accelerator, place)
                            for seed, precision in ((0, full), (1, full), (0, half)))
    results.check('losses of {} steps, {} against fp32; limit: another seed in fp32'.format(len(first), half.name),
                  (first - mixed).abs().mean().item(), (first - second).abs().mean().item())
    plain = numbers('finetune', small('finetune'), place)
    side = SimpleNamespace(accelerator=accelerator, place=place, precision=full)
    for what, wrap in (('one DDP process over ' + accelerator.backend, in_ddp), ('--compile', compiled)):
        found = numbers('finetune', small('finetune'), place, wrap=lambda model, wrap=wrap: wrap(side, model))
        results.check(what + ' against plain: gradients', differences(found, plain)[2], LIMITS['fp32'])
    finish(resumed)
    one, other = (pth_file.load(str(args.work / run / 'checkpoint-1.pth'))['model'] for run in ('whole', 'resumed'))
    results.check('weights that are not bit-equal after a resume',
                  sum(not torch.equal(one[name], other[name]) for name in one), 0)
    return any(row['result'] == 'FAILED' for row in results.part['rows'])


def losses(images, batch_size, steps, seed, precision, accelerator, place):
    """Losses of a pre-training on uint8 images (N, H, W, 3)."""
    seed_generators(seed)
    accelerator.seed(seed)
    model = models_mae.mae_vit_tiny_patch16(img_size=images.shape[1], norm_pix_loss=True).to(place).train()
    optimizer = precision.adamw(accelerator, decay_groups(model, .05), lr=1e-3, betas=(.9, .95))
    optimizer_step = OptimizerStep(*precision.prepare(model, optimizer), precision,
                                   lambda epoch: warmup_cosine(epoch, 1e-3, steps, steps / 10, 0.))
    normalize, found = Normalize(), []
    for step in range(steps):
        batch = images[torch.randint(len(images), (batch_size,))].to(place)
        optimizer_step.set_lr(step, 0, 1)
        with precision.autocast():
            loss = optimizer_step.model(normalize(batch), mask_ratio=.75, loss_only=True)
        optimizer_step.backward(loss)
        optimizer_step.update()
        found.append(loss.detach())
    return torch.stack(found).cpu()


def small(task):
    """A small model, always the same."""
    return copy.deepcopy(built(task, 'tiny_patch16', 64)).eval()


def numbers(task, model, place='cpu', autocast=nullcontext, wrap=lambda model: model):
    """[loss, prediction, gradients] in fp32 on the CPU, for 8 random images."""
    generator = torch.Generator()
    generator.manual_seed(0)
    images, noise = (torch.randn(*shape, generator=generator).to(place) for shape in ((8, 3, 64, 64), (8, 16)))
    model = wrap(model.to(place))
    with autocast():
        if task == 'pretrain':
            loss, prediction, _ = model(images, noise=noise)
        else:
            prediction = model(images)
            loss = F.cross_entropy(prediction.float(), torch.arange(8, device=place))
    (loss * LOSS_SCALE).backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]) / LOSS_SCALE
    return [value.detach().float().cpu() for value in (loss, prediction, gradients)]


def differences(found, expected):
    return [((one - other).norm() / other.norm()).item() for one, other in zip(found, expected)]


def started(folder, *flags):
    """A running main_pretrain.py."""
    return subprocess.Popen([sys.executable, PRETRAIN, '--output_dir', str(folder), '--amp', '--warmup_epochs', '0',
                             *map(str, flags)], stdout=subprocess.DEVNULL)


def finish(child):
    if child.wait():
        raise SystemExit('status {} of {}'.format(child.returncode, ' '.join(child.args)))


def step(args, results, accelerator, place):
    """Ours, ours with --compile, and the baseline; the larger model's compilations last."""
    tasks = ('pretrain', 'finetune')
    groups = [(0, task, ('ours', 'ours --compile', 'baseline')) for task in tasks]
    groups += [(1, task, (ours, 'baseline')) for ours in ('ours', 'ours --compile') for task in tasks]
    groups += [(0, task, ('ours', *EACH[task])) for task in tasks] if args.each else []
    for size, task, names in (group for group in groups if group[0] < len(args.models)):
        bench, against = parse([]), 'baseline' if 'baseline' in names else 'ours'
        for halvings in range(6):
            vars(bench).update(task=task, model=args.models[size], batch_size=args.batch[task] >> halvings,
                               rounds=args.rounds, window=args.window, input_size=args.input_size)
            found = measure(bench, accelerator, place, names, against)
            if 'out of memory' not in str(found):
                break
        for name, side in found['sides'].items():
            goals = {'ratio': RATIO[task], 'share_of_peak': SHARE[size], 'memory_ratio': MEMORY}
            results.add(model=bench.model, task=task, batch=bench.batch_size, step=name, **side,
                        peak_tflops=found['peak'] / 1e12, targets=', '.join('{} {} {}'.format(
                            key, goal, 'met' if (side[key] >= goal) != (key == 'memory_ratio') else 'missed')
                            for key, goal in goals.items() if key in side and against == 'baseline' != name))


def loader(args, results, accelerator, place):
    """From JPEG files to normalised batches on the device, and a real run on them."""
    drawn, few, many, packed = (args.work / name for name in ('drawn', 'few', 'many', 'packed'))
    few.mkdir()
    many.mkdir()
    if not args.data_path:
        draw_pictures(drawn, args.pictures)
    for i, path in zip(range(args.pictures), pretraining_set(args.data_path or str(drawn)).paths):
        os.symlink(os.path.abspath(path), str(few / '{}.jpg'.format(i)))
    paths = list(pretraining_set(str(few)).paths)
    subprocess.run([sys.executable, '-m', 'util.tools.pack_shards', str(few), str(packed)], check=True, cwd=str(ROOT))
    normalize = Normalize()
    for workers in args.workers:
        count, skipped = args.loaded * workers, 2 * workers             # batches until the queues are full
        longer = paths * ((count + 64 * (skipped + 2)) // len(paths) + 1)
        for where, dataset in sources('pretrain', longer, SimpleNamespace(**vars(args), packed=str(packed))).items():
            batches = training_loader(dataset, 64, World(), 0, workers, True, accelerator)
            results.add(source='JPEG files' + where, workers=workers, images_per_sec=1 / one_pass(
                batches, count, lambda images: normalize(*accelerator.to_device([images], place)), accelerator,
                skipped))
    for i in range(-(-args.steps * args.batch['pretrain'] // len(paths))):
        os.symlink(str(few), str(many / str(i)))
    finish(started(args.work / 'run', '--data_path', many, '--model', 'mae_vit_' + args.models[0], '--input_size',
                   args.input_size, '--batch_size', args.batch['pretrain'], '--epochs', 1))
    log = json.loads((args.work / 'run' / 'log.txt').read_text())
    results.add(source='JPEG files, training of ' + args.models[0], workers=host.default_workers(),
                images_per_sec=log['FPS'], data_wait=log['data_wait'])


def draw_pictures(folder, count):
    """Noisy JPEG files of 500 x 375 pixels and about 110 kB, as photographs have."""
    folder.mkdir()
    rng = np.random.RandomState(0)
    for i in range(count):
        picture = synthetic_dataset.draw(synthetic_dataset.CLASSES[i % 8], rng).resize((500, 375), BICUBIC)
        noisy = (np.asarray(picture) + rng.normal(0, 12, (375, 500, 1))).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(str(folder / '{}.jpg'.format(i)), quality=90)


def lesson(args, results, accelerator, place):
    """Pre-train, fine-tune, train from scratch: accuracy against seconds."""
    words, folder, seen, running = ['demo.sh', *['--quick'] * args.quick], args.work / 'lesson', {}, True
    if args.cifar10:
        words = ['cifar10_1p.sh', '--data_path=' + args.cifar10, '--pretrain_epochs=6', '--finetune_epochs=3']
    child = subprocess.Popen(['bash', str(ROOT / 'test' / words[0]), *words[1:], '--output_dir={}'.format(folder)],
                             stdout=subprocess.DEVNULL, env={**os.environ, 'PYTHON': sys.executable})
    while running:
        time.sleep(.2)
        running = child.poll() is None
        for log in folder.glob('*/log.txt'):
            lines = log.read_text().split('\n')[:-1]
            for line in map(json.loads, lines[seen.get(log, 0):]):
                results.add(run=log.parent.name, epoch=line['epoch'] + 1, seconds=round(time.time() - results.begun, 1),
                            loss=line['train_loss'], images_per_sec=line['FPS'], accuracy=line.get('test_acc1', ''))
            seen[log] = len(lines)
    finish(child)


def main():
    parser = argparse.ArgumentParser(prog='on_device.sh')
    parser.add_argument('part', type=globals().get)
    for name in ('--results', '--work', '--data_path', '--cifar10'):
        parser.add_argument(name)
    for name in ('--each', '--small', '--quick'):
        parser.add_argument(name, action='store_true')
    args = parser.parse_args()
    vars(args).update(QUICK if args.quick else SMALL if args.small else FULL, work=Path(args.work))
    if args.quick and hasattr(nn.Module, 'compile'):        # traced, but not translated
        nn.Module.compile = functools.partialmethod(nn.Module.compile, backend='aot_eager')
    accelerator = devices.select('auto')
    place = accelerator.use(0)
    results = Results(args.results, args.part.__name__, accelerator)
    failed = args.part(args, results, accelerator, place)
    results.save(complete=True)
    sys.exit(failed)


if __name__ == '__main__':
    main()
