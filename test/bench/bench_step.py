"""Training step benchmark against the published implementations: python test/bench/bench_step.py [flags]

Ours: the program's step from bytes on the device to updated weights, with its models, losses, precision and
OptimizerStep. The baseline follows the published implementations: explicit softmax attention, all patches embedded and
predicted, fp16 autocast with a gradient scaler on GPUs and fp32 on CPUs, plain AdamW, and a synchronization per step
to read the loss. Its images are already floats on the device.

Each is built, and compiled, once; then windows of --window seconds alternate in one process. Medians are shown, also of
the rounds' ratios. Each round also times a matrix product in bf16 (on a CPU, in fp32), whose speed counts as the
device's peak. --each also measures alone what only an accelerator can judge, against ours: see EACH. --fast measures
the fast recipe of pre-training against the published one, both ours; on a CPU, the peak memory of a process for each.

FLOPs per image are those that the loss requires: three times the forward pass (backward takes two), counting only
matrix products, with a multiplication and an addition as two. For T tokens of width D:
    block(T, D) = T * 24 D^2 + 4 T^2 D               qkv 6, projection 2, MLP 16; attention's two products
    classifier  = L * 2 D P + depth * block(1 + L, D) + 2 D classes
    autoencoder = K * 2 D P + depth * block(1 + K, D) + (1 + K) * 2 D E + decoder depth * block(1 + K + R, E)
                  + R * 2 E P
with L patches of P values, of which K are visible and R predicted, and decoder width E.
"""
import argparse
import gc
import multiprocessing
import os
import resource
import statistics
import sys
import time
from operator import truediv

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import util  # noqa: F401  (before torch: it keeps `import torch` from loading a broken torch_npu)

import timm
import torch
from steps import EACH, SIDES, built

from util.devices import accelerator as devices
from util.model_sizes import predicted_patches, visible_patches
from util.text import first_line

PEAK_SIDE = {'cpu': 2048}       # of the matrices whose product is timed; 8192 on accelerators


def flops(step):
    """Floating-point operations of a training step per image; see the module docstring."""
    model = getattr(step.model, 'inner', step.model)
    length, values = model.pos_embed.shape[1] - 1, 3 * model.patch_embed.proj.kernel_size[0] ** 2
    dim, depth = model.pos_embed.shape[2], len(model.blocks)

    def block(tokens, dim):
        return tokens * 24 * dim ** 2 + 4 * tokens ** 2 * dim

    if step.args.task == 'finetune':
        return 3 * (length * 2 * dim * values + depth * block(1 + length, dim) + 2 * dim * 1000)
    keep, width = visible_patches(length, step.mask_ratio), model.decoder_pos_embed.shape[2]
    predicted = predicted_patches(length - keep, model.predict_ratio)
    return 3 * (keep * 2 * dim * values + depth * block(1 + keep, dim) + (1 + keep) * 2 * dim * width
                + len(model.decoder_blocks) * block(1 + keep + predicted, width) + predicted * 2 * width * values)


class Side:
    """A step with what was measured of it."""

    def __init__(self, build, args, accelerator, place):
        module = getattr(accelerator, 'module', None)       # torch.cuda or torch.npu; a CPU's memory is not measured
        module = module if hasattr(module, 'reset_peak_memory_stats') else None
        before = module.memory_allocated() if module else 0
        self.accelerator, self.images, self.paces = accelerator, args.batch_size, []
        self.step = build(args, accelerator, place)
        self.flops = flops(self.step)
        self.seconds(1)                                     # compiles
        if module:
            module.reset_peak_memory_stats()
        self.per_step = self.seconds(args.warmup) / args.warmup
        self.memory = (module.max_memory_allocated() - before) / 2 ** 20 if module else None

    def seconds(self, count):
        begun = time.perf_counter()
        for _ in range(count):
            self.step()
        self.accelerator.synchronize()
        return time.perf_counter() - begun

    def window(self, seconds):
        """Measure images/s for about these seconds."""
        count = max(1, round(seconds / self.per_step))
        self.paces.append(count * self.images / self.seconds(count))


def peak(accelerator, place):
    """Best floating-point operations per second of a few large matrix products."""
    side = PEAK_SIDE.get(accelerator.type, 8192)
    dtype = torch.bfloat16 if accelerator.is_accelerator and accelerator.supports_bf16() else (
        torch.float16 if accelerator.is_accelerator else torch.float32)
    a, b = (torch.randn(side, side, device=place).to(dtype) for _ in range(2))
    paces = []
    for _ in range(5):
        accelerator.synchronize()
        begun = time.perf_counter()
        torch.mm(a, b)
        accelerator.synchronize()
        paces.append(2 * side ** 3 / (time.perf_counter() - begun))
    return max(paces)


def memory_alone(args, accelerator, name):
    """Peak memory of this process with one side on the CPU, in MiB, beyond what it has before the model is copied."""
    built(args.task, args.model, args.input_size, **SIDES[name].options)
    with open('/proc/self/statm') as file:
        before = int(file.read().split()[1]) * resource.getpagesize()
    Side(SIDES[name], args, accelerator, accelerator.use(0))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 10 - before / 2 ** 20


def measure(args, accelerator, place, names, against='baseline'):
    """{'peak', and for each name: images/s, GFLOP, share of the peak, MiB, ratios to `against`}, or why it failed."""
    sides, found, peaks, memory = {}, {name: {} for name in names}, [], None
    for name in names:
        gc.collect()                    # memory of earlier models
        try:
            if args.fast and not accelerator.is_accelerator:
                with multiprocessing.get_context('spawn').Pool(1) as pool:
                    memory = pool.apply(memory_alone, (args, accelerator, name))
            sides[name] = Side({**SIDES, **EACH[args.task]}[name], args, accelerator, place)
            sides[name].memory = sides[name].memory or memory
        except Exception as error:      # such as no memory, or what this PyTorch or device lacks
            found[name]['failed'] = first_line(error)
    for _ in range(args.rounds):
        for side in sides.values():
            side.window(args.window)
        peaks.append(peak(accelerator, place))
    for name, side in sides.items():
        found[name].update(
            precision=side.step.precision.name, images_per_sec=statistics.median(side.paces),
            gflop_per_image=side.flops / 1e9,
            share_of_peak=statistics.median(pace * side.flops / top for pace, top in zip(side.paces, peaks)))
        if side.memory:
            found[name]['memory_mib'] = side.memory
        if against in sides:
            found[name]['ratio'] = statistics.median(map(truediv, side.paces, sides[against].paces))
            if side.memory:
                found[name]['memory_ratio'] = side.memory / sides[against].memory
    return {'device': accelerator.name, 'peak': statistics.median(peaks), 'sides': found}


def table(rows):
    """Markdown table of dicts, with a column for each key."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, ['---'] * len(names), *([row.get(name, '') for name in names] for row in rows)]
    return ''.join('| {} |\n'.format(' | '.join(
        '{:.4g}'.format(cell) if isinstance(cell, float) else str(cell) for cell in line)) for line in cells)


def parse(words=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--task', choices=('pretrain', 'finetune'), default='pretrain')
    parser.add_argument('--model', default='base_patch16', help='nano_patch16 to huge_patch14')
    parser.add_argument('--batch_size', type=int, default=256)
    parser.add_argument('--input_size', type=int, default=224)
    parser.add_argument('--device', default='auto')
    parser.add_argument('--amp_dtype', default='auto', help='precision of ours, bf16 or fp16; auto: as --amp chooses')
    parser.add_argument('--compile', action='store_true', help='also ours with --compile')
    parser.add_argument('--each', action='store_true', help='also each means alone')
    parser.add_argument('--fast', action='store_true', help='the fast recipe of pre-training against the published one')
    parser.add_argument('--grad_checkpoint', action='store_true', help='ours with --grad_checkpoint')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--window', type=float, default=3., help='seconds of a window, at least a step')
    parser.add_argument('--warmup', type=int, default=3, help='warm-up steps')
    parser.set_defaults(amp_backend='auto', seed=0)
    args = parser.parse_args(words)
    if args.fast and (args.task != 'pretrain' or args.each or args.compile):
        parser.error('--fast: needs --task pretrain, and neither --each nor --compile')
    return args


def main():
    args = parse()
    accelerator = devices.select(args.device)
    names = ['ours', *['ours --compile'] * args.compile, 'baseline', *(EACH[args.task] if args.each else ())]
    names, against = (['fast recipe', 'ours'], 'ours') if args.fast else (names, 'baseline')
    found = measure(args, accelerator, accelerator.use(0), names, against)
    print('{}, {} threads, Python {}, torch {}, timm {}'.format(
        found['device'], torch.get_num_threads(), sys.version.split()[0], torch.__version__, timm.__version__))
    print('{0.task} {0.model}, batches of {0.batch_size} at {0.input_size} x {0.input_size}; medians of {0.rounds} '
          'windows of {0.window:g} s; peak {1:.4g} TFLOP/s\n'.format(args, found['peak'] / 1e12))
    print(table([{'': name, **values} for name, values in found['sides'].items()]))


if __name__ == '__main__':
    main()
