"""Training step benchmark against the published implementations: python test/bench/bench_step.py [flags]

Ours: the program's step from bytes on the device to updated weights, with its models, losses, precision and
OptimizerStep. The baseline, in this file, follows the published implementations: explicit softmax attention, all
patches embedded and predicted, fp16 autocast with a gradient scaler on GPUs and fp32 on CPUs, plain AdamW, and a
synchronization per step to read the loss. Its images are already floats on the device.

Both run in their own processes and alternate; medians are shown, also of the rounds' ratios. Each round also times a
matrix product in bf16 (on a CPU, in fp32), whose speed counts as the device's peak.

FLOPs per image, the same for both, are those that the loss requires: three times the forward pass (backward takes two),
counting only matrix products, with a multiplication and an addition as two. For T tokens of width D:
    block(T, D) = T * 24 D^2 + 4 T^2 D               qkv 6, projection 2, MLP 16; attention's two products
    classifier  = L * 2 D P + depth * block(1 + L, D) + 2 D classes
    autoencoder = K * 2 D P + depth * block(1 + K, D) + (1 + K) * 2 D E + decoder depth * block(1 + L, E) + R * 2 E P
with L patches of P values, of which K are visible and R = L - K masked, and decoder width E.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

import util  # noqa: F401  (before torch: it keeps `import torch` from loading a broken torch_npu)

import timm
import torch
from torch import nn

import models_mae
import models_vit
from util.data.batch_augmentation import Mixup, RandomErasing
from util.data.loader import seed_generators
from util.data.transforms import Normalize
from util.devices import accelerator as devices
from util.devices.compile import compile_blocks
from util.devices.precision import choose_precision
from util.models.activation_checkpointing import checkpointed
from util.models.timm_adapter import SoftTargetCrossEntropy
from util.training.optimizer_step import OptimizerStep, decay_groups, layer_decay_groups

SIDES = ('ours', 'baseline')
LR = 1e-4
PEAK_SIDE = {'cpu': 2048}       # of the matrices whose product is timed; 8192 on accelerators


class ExplicitAttention(nn.Module):
    """Softmax attention with an explicit N x heads x L x L matrix, on the layers of timm's attention."""

    def __init__(self, attention):
        super().__init__()
        self.num_heads, self.qkv, self.proj = attention.num_heads, attention.qkv, attention.proj

    def forward(self, x, *_):
        n, length, dim = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * (dim // self.num_heads) ** -.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, length, dim))


def with_explicit_attention(model):
    """`model` with ExplicitAttention in its blocks."""
    for block in [*model.blocks, *getattr(model, 'decoder_blocks', [])]:
        block.attn = ExplicitAttention(block.attn)
    return model


class PublishedMae(nn.Module):
    """Loss of a masked autoencoder that embeds and predicts all patches."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, imgs, mask_ratio):
        inner = self.inner
        x = inner.patch_embed(imgs) + inner.pos_embed[:, 1:]
        n, length, dim = x.shape
        keep = int(length * (1 - mask_ratio))
        shuffle = torch.argsort(torch.rand(n, length, device=x.device), dim=1)
        restore = torch.argsort(shuffle, dim=1)
        x = torch.gather(x, 1, shuffle[:, :keep, None].expand(-1, -1, dim))
        mask = torch.gather(torch.cat([x.new_zeros(n, keep), x.new_ones(n, length - keep)], 1), 1, restore)
        x = torch.cat([(inner.cls_token + inner.pos_embed[:, :1]).expand(n, -1, -1), x], dim=1)
        for block in inner.blocks:
            x = block(x)
        x = inner.decoder_embed(inner.norm(x))
        hidden = inner.mask_token.expand(n, length - keep, -1)
        patches = torch.cat([x[:, 1:], hidden], dim=1)
        patches = torch.gather(patches, 1, restore[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, :1], patches], dim=1) + inner.decoder_pos_embed
        for block in inner.decoder_blocks:
            x = block(x)
        pred = inner.decoder_pred(inner.decoder_norm(x))[:, 1:]
        target = inner.patchify(imgs)
        if inner.norm_pix_loss:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** .5
        return (((pred - target) ** 2).mean(dim=-1) * mask).sum() / mask.sum()


class Step:
    """Training step of one side; a call may return before the device has finished."""

    def __init__(self, args, accelerator, place):
        self.args, self.accelerator = args, accelerator
        generator = torch.Generator()
        generator.manual_seed(0)
        pixels = torch.randint(256, (args.batch_size, args.input_size, args.input_size, 3), dtype=torch.uint8,
                               generator=generator)
        self.pixels, self.labels = pixels.to(place), torch.arange(args.batch_size).to(place) % 1000
        self.normalize, self.i = Normalize(), 0
        seed_generators(args.seed)
        accelerator.seed(args.seed)
        self.model = self.build(args).to(place).train()

    def build(self, args):
        if args.task == 'pretrain':
            return getattr(models_mae, 'mae_vit_' + args.model)(img_size=args.input_size, norm_pix_loss=True)
        return getattr(models_vit, 'vit_' + args.model)(global_pool=True, img_size=args.input_size, drop_path_rate=.1)

    def groups(self):
        if self.args.task == 'pretrain':
            return decay_groups(getattr(self.model, 'inner', self.model), .05), (.9, .95)
        return layer_decay_groups(self.model, .05, .65), (.9, .999)


class Ours(Step):
    """One iteration of engine_pretrain or engine_finetune."""

    def __init__(self, args, accelerator, place):
        super().__init__(args, accelerator, place)
        self.precision = choose_precision(accelerator, accelerator.is_accelerator, 'auto', args.amp_dtype)
        groups, betas = self.groups()
        optimizer = self.precision.adamw(accelerator, groups, lr=LR, betas=betas)
        model, optimizer = self.precision.prepare(self.model, optimizer)
        if args.grad_checkpoint:
            model.run_block = checkpointed
        if args.compile:
            compile_blocks(model, place)
        self.optimizer_step = OptimizerStep(model, optimizer, self.precision, lambda epoch: LR)
        self.erase, self.mix, self.criterion = RandomErasing(.25), Mixup(.8, 1.), SoftTargetCrossEntropy()

    def __call__(self):
        images, self.i = self.normalize(self.pixels), self.i + 1
        if self.args.task == 'finetune':
            images, labels = self.mix(self.erase(images), self.labels)
        self.optimizer_step.set_lr(0, self.i, sys.maxsize)
        with self.precision.autocast():
            if self.args.task == 'pretrain':
                loss = self.optimizer_step.model(images, mask_ratio=.75, loss_only=True)
            else:
                logits = self.optimizer_step.model(images)
        if self.args.task == 'finetune':
            loss = self.criterion(logits.float(), labels)
        self.optimizer_step.backward(loss)
        self.optimizer_step.update()


class Baseline(Step):
    """One iteration of the published implementations."""

    def __init__(self, args, accelerator, place):
        super().__init__(args, accelerator, place)
        groups, betas = self.groups()
        self.optimizer = torch.optim.AdamW(groups, lr=LR, betas=betas)
        half = accelerator.is_accelerator
        self.precision = choose_precision(accelerator, half, backend='native' if half else 'auto',
                                          dtype='fp16' if half else 'auto')
        self.scaler = accelerator.module.amp.GradScaler() if half else None
        self.images = self.normalize(self.pixels)
        self.mix, self.criterion = Mixup(.8, 1., label_smoothing=.1, num_classes=1000), SoftTargetCrossEntropy()

    def build(self, args):
        model = with_explicit_attention(super().build(args))
        return PublishedMae(model) if args.task == 'pretrain' else model

    def __call__(self):
        if self.args.task == 'pretrain':
            with self.precision.autocast():
                loss = self.model(self.images, .75)
        else:
            images, labels = self.mix(self.images.clone(), self.labels)
            with self.precision.autocast():
                loss = self.criterion(self.model(images), labels)
        value = loss.item()
        if not value < float('inf'):
            raise SystemExit('the loss is {}'.format(value))
        for group in self.optimizer.param_groups:
            group['lr'] = LR
        (self.scaler.scale(loss) if self.scaler else loss).backward()
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad()
        self.accelerator.synchronize()


def flops(args):
    """Floating-point operations of a training step per image; see the module docstring."""
    model = Step.build(None, args)
    length, values = model.pos_embed.shape[1] - 1, 3 * model.patch_embed.proj.kernel_size[0] ** 2
    dim, depth = model.pos_embed.shape[2], len(model.blocks)

    def block(tokens, dim):
        return tokens * 24 * dim ** 2 + 4 * tokens ** 2 * dim

    if args.task == 'finetune':
        return 3 * (length * 2 * dim * values + depth * block(1 + length, dim) + 2 * dim * 1000)
    keep, width = int(length * .25), model.decoder_pos_embed.shape[2]
    return 3 * (keep * 2 * dim * values + depth * block(1 + keep, dim) + (1 + keep) * 2 * dim * width
                + len(model.decoder_blocks) * block(1 + length, width) + (length - keep) * 2 * width * values)


def serve(args):
    """Process of one side: answers each line `N` on standard input with the seconds for N steps."""
    accelerator = devices.select(args.device)
    place = accelerator.use(0)
    step = {'ours': Ours, 'baseline': Baseline}[args.serve](args, accelerator, place)
    seconds_of(step, args.warmup, accelerator)
    print(json.dumps({'precision': step.precision.name, 'device': accelerator.name}), flush=True)
    for line in sys.stdin:
        work = line.strip()
        print(peak(accelerator, place) if work == 'peak' else memory(accelerator) if work == 'memory'
              else seconds_of(step, int(work), accelerator), flush=True)


def seconds_of(step, count, accelerator):
    begun = time.perf_counter()
    for _ in range(count):
        step()
    accelerator.synchronize()
    return time.perf_counter() - begun


def memory(accelerator):
    """Peak device memory in MiB; on a CPU of the whole process, including PyTorch itself."""
    found = accelerator.peak_memory()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 if found is None else found


def peak(accelerator, place):
    """Best floating-point operations per second of a few large matrix products."""
    side = PEAK_SIDE.get(accelerator.type, 8192)
    dtype = torch.bfloat16 if accelerator.is_accelerator and accelerator.supports_bf16() else (
        torch.float16 if accelerator.is_accelerator else torch.float32)
    a, b = (torch.randn(side, side).to(place, dtype) for _ in range(2))
    paces = []
    for _ in range(5):
        accelerator.synchronize()
        begun = time.perf_counter()
        torch.mm(a, b)
        accelerator.synchronize()
        paces.append(2 * side ** 3 / (time.perf_counter() - begun))
    return max(paces)


class Side:
    """Handle of the process of one side."""

    def __init__(self, side, words):
        self.process = subprocess.Popen([sys.executable, os.path.abspath(__file__), '--serve', side, *words],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True)
        self.info = self._answer()

    def ask(self, work):
        self.process.stdin.write('{}\n'.format(work))
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit('a side exited with status {}'.format(self.process.wait()))
            if line[0] in '{-0123456789':
                return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def measure(args, words):
    """Results for one model and task."""
    sides, needed = {name: Side(name, words) for name in SIDES}, flops(args)
    paces, peaks = {name: [] for name in SIDES}, []
    for _ in range(args.rounds):
        for name, side in sides.items():
            paces[name].append(args.steps * args.batch_size / side.ask(args.steps))
        peaks.append(sides['ours'].ask('peak'))
    found = {'device': sides['ours'].info['device'], 'peak': statistics.median(peaks), 'flops': needed,
             'ratio': statistics.median(fast / slow for fast, slow in zip(*paces.values()))}
    for name, side in sides.items():
        found[name] = {'precision': side.info['precision'], 'images_per_sec': statistics.median(paces[name]),
                       'share_of_peak': statistics.median(pace * needed / top for pace, top in zip(paces[name], peaks)),
                       'memory': side.ask('memory')}
        side.close()
    return found


def parse(words=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--task', choices=('pretrain', 'finetune'), default='pretrain')
    parser.add_argument('--model', default='base_patch16', help='nano_patch16 to huge_patch14')
    parser.add_argument('--batch_size', type=int, default=256)
    parser.add_argument('--input_size', type=int, default=224)
    parser.add_argument('--device', default='auto')
    parser.add_argument('--amp_dtype', default='auto', help='precision of ours, bf16 or fp16; auto: as --amp chooses')
    parser.add_argument('--compile', action='store_true', help='ours with --compile')
    parser.add_argument('--grad_checkpoint', action='store_true', help='ours with --grad_checkpoint')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--steps', type=int, default=10, help='steps per turn')
    parser.add_argument('--warmup', type=int, default=3, help='warm-up steps')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--json', help='output file for the results')
    parser.add_argument('--serve', choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main():
    args = parse()
    if args.serve:
        return serve(args)
    found = measure(args, sys.argv[1:])
    print('{}, {} threads, Python {}, torch {}, timm {}'.format(
        found['device'], torch.get_num_threads(), sys.version.split()[0], torch.__version__, timm.__version__))
    print('{0.task} {0.model}, batches of {0.batch_size} at {0.input_size} x {0.input_size}; medians of {0.rounds} '
          'rounds of {0.steps} steps; peak {1:.4g} TFLOP/s, {2:.4g} GFLOP per image'.format(
              args, found['peak'] / 1e12, found['flops'] / 1e9))
    print('\n| | precision | images/s | share of peak | peak memory, MiB |\n|---|---|---|---|---|')
    for name in SIDES:
        print('| {} | {precision} | {images_per_sec:.4g} | {share:.1f}% | {memory:.0f} |'.format(
            name, share=100 * found[name]['share_of_peak'], **found[name]))
    print('| ratio | | {:.2f} | | {:.2f} |'.format(
        found['ratio'], found['ours']['memory'] / found['baseline']['memory']))
    if args.json:
        with open(args.json, 'w') as file:
            json.dump({**vars(args), **found}, file, indent=1)


if __name__ == '__main__':
    main()
