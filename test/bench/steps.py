"""The training steps that bench_step.py compares: ours, with and without each means, and the baseline."""
import atexit
import copy
import sys
from functools import lru_cache, partial

import torch
from torch import distributed as dist, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import models_mae
import models_vit
from util.compat import supported
from util.data.batch_augmentation import Mixup, RandomErasing
from util.data.loader import seed_generators
from util.data.transforms import Normalize
from util.devices.compile import compile_blocks
from util.devices.precision import choose_precision
from util.models.activation_checkpointing import checkpointed
from util.models.timm_adapter import SoftTargetCrossEntropy
from util.tools.launch import free_port
from util.training.optimizer_step import OptimizerStep, decay_groups, layer_decay_groups

LR = 1e-4


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


def as_published(model):
    """`model` with ExplicitAttention in its blocks; an autoencoder also embeds and predicts all patches."""
    for block in [*model.blocks, *getattr(model, 'decoder_blocks', [])]:
        block.attn = ExplicitAttention(block.attn)
    return PublishedMae(model) if hasattr(model, 'decoder_blocks') else model


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


@lru_cache(maxsize=None)
def built(task, name, input_size, **options):
    """Model on the CPU, to be copied: initialising ViT-L takes seconds."""
    if task == 'pretrain':
        return getattr(models_mae, 'mae_vit_' + name)(img_size=input_size, norm_pix_loss=True, **options)
    return getattr(models_vit, 'vit_' + name)(global_pool=True, img_size=input_size, drop_path_rate=.1)


class Step:
    """Training step of one side; a call may return before the device has finished."""
    options, mask_ratio = {}, .75       # of the autoencoder

    def __init__(self, args, accelerator, place, changed=lambda model: model):
        self.args, self.accelerator, self.place, self.i = args, accelerator, place, 0
        seed_generators(args.seed)
        accelerator.seed(args.seed)
        pixels = torch.randint(256, (args.batch_size, args.input_size, args.input_size, 3), dtype=torch.uint8)
        self.pixels, self.labels = pixels.to(place), torch.arange(args.batch_size).to(place) % 1000
        self.normalize = Normalize()
        self.mix, self.criterion = Mixup(.8, 1.), SoftTargetCrossEntropy()
        self.model = changed(copy.deepcopy(built(args.task, args.model, args.input_size, **self.options)))
        self.model.to(place).train()

    def groups(self):
        if self.args.task == 'pretrain':
            return decay_groups(getattr(self.model, 'inner', self.model), .05), (.9, .95)
        return layer_decay_groups(self.model, .05, .65), (.9, .999)


class Ours(Step):
    """One iteration of engine_pretrain or engine_finetune.

    Args:
        changed: model -> model; adamw: instead of the precision's; wrap: (step, model) -> model to call.
    """

    def __init__(self, args, accelerator, place, changed=lambda model: model, adamw=None,
                 wrap=lambda step, model: model):
        super().__init__(args, accelerator, place, changed)
        self.precision = choose_precision(accelerator, accelerator.is_accelerator, args.amp_backend,
                                          args.amp_dtype)
        groups, betas = self.groups()
        optimizer = (adamw or partial(self.precision.adamw, accelerator))(groups, lr=LR, betas=betas)
        model, optimizer = self.precision.prepare(self.model, optimizer)
        if args.grad_checkpoint:
            model.run_block = checkpointed
        self.optimizer_step = OptimizerStep(wrap(self, model), optimizer, self.precision, lambda epoch: LR)
        self.erase = RandomErasing(.25)

    def batch(self):
        images = self.normalize(self.pixels)
        return (images, self.labels) if self.args.task == 'pretrain' else self.mix(self.erase(images), self.labels)

    def loss(self, images, labels):
        with self.precision.autocast():
            if self.args.task == 'pretrain':
                return self.optimizer_step.model(images, mask_ratio=self.mask_ratio, loss_only=True)
            logits = self.optimizer_step.model(images)
        return self.criterion(logits.float(), labels)

    def __call__(self):
        self.i += 1
        self.optimizer_step.set_lr(0, self.i, sys.maxsize)
        self.backward(*self.batch())
        self.optimizer_step.update()

    def backward(self, images, labels):
        self.optimizer_step.backward(self.loss(images, labels))


class Fast(Ours):
    """The fast recipe, as in test/lib/recipes.sh."""
    options, mask_ratio = {'decoder_depth': 2, 'predict_ratio': .5}, .8


class Graph(Ours):
    """Forward and backward pass as one CUDA graph; without a loss scale."""

    def __init__(self, *words):
        super().__init__(*words)
        self.inputs, stream = self.batch(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):                 # what is allocated once, before the capture
            for _ in range(3):
                self.loss(*self.inputs).backward()
        torch.cuda.current_stream().wait_stream(stream)
        self.model.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.captured = self.loss(*self.inputs)
            self.captured.backward()
        self.gradients = [(p, p.grad) for p in self.model.parameters()]

    def backward(self, *inputs):
        for old, new in zip(self.inputs, inputs):
            old.copy_(new)
        self.graph.replay()
        for parameter, gradient in self.gradients:      # the update takes them away
            parameter.grad = gradient
        self.optimizer_step.non_finite_steps.record_iteration(0, self.i, self.captured)


class ByElement(Ours):
    """torch.gather, with an index for each element, where ours gathers rows."""

    def backward(self, *inputs):
        by_row, models_mae.gather_tokens = models_mae.gather_tokens, lambda x, ids: torch.gather(
            x.expand(len(ids), -1, -1), 1, ids[..., None].expand(-1, -1, x.shape[-1]))
        super().backward(*inputs)
        models_mae.gather_tokens = by_row


def with_product_embedding(model):
    """The patch embedding as a matrix product of the pixels instead of a convolution."""
    def product(x):
        n, c, height, width = x.shape
        x = x.reshape(n, c, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5).reshape(n, -1, c * p * p)
        return F.linear(x, proj.weight.flatten(1), proj.bias)

    proj = model.patch_embed.proj
    p, model.patch_embed.forward = proj.kernel_size[0], product
    return model


def not_fused(groups, **options):
    return torch.optim.AdamW(groups, **options, **supported(torch.optim.AdamW, fused=False))


def compiled(step, model):
    getattr(getattr(torch, 'compiler', None), 'reset', int)()       # compilations in a process are limited
    compile_blocks(model, step.place)
    return model


def in_ddp(step, model, **options):
    """In DistributedDataParallel, with other options than in training; alone, where there is no process group."""
    accelerator, place = step.accelerator, step.place
    if not dist.is_initialized():
        accelerator.prepare_network('127.0.0.1', 60.)
        dist.init_process_group(accelerator.backend, init_method='tcp://127.0.0.1:{}'.format(free_port()), rank=0,
                                world_size=1)
        atexit.register(dist.destroy_process_group)
    may_move = step.precision.supports_bucket_view and accelerator.supports_bucket_view
    options = {**supported(DistributedDataParallel, gradient_as_bucket_view=may_move), **options}
    return DistributedDataParallel(model, device_ids=None if place.type == 'cpu' else [place.index],
                                   broadcast_buffers=False, **options)


class Baseline(Step):
    """One iteration of the published implementations."""

    def __init__(self, args, accelerator, place):
        super().__init__(args, accelerator, place, as_published)
        groups, betas = self.groups()
        self.optimizer = torch.optim.AdamW(groups, lr=LR, betas=betas)
        half = accelerator.is_accelerator
        self.precision = choose_precision(accelerator, half, backend='native' if half else 'auto',
                                          dtype='fp16' if half else 'auto')
        self.scaler = accelerator.module.amp.GradScaler() if half else None
        self.images = self.normalize(self.pixels)

    def __call__(self):
        if self.args.task == 'pretrain':
            with self.precision.autocast():
                loss = self.model(self.images, self.mask_ratio)
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


SIDES = {'ours': Ours, 'ours --compile': partial(Ours, wrap=compiled), 'baseline': Baseline, 'fast recipe': Fast}
EACH = {'AdamW not fused': partial(Ours, adamw=not_fused), 'DDP of one': partial(Ours, wrap=in_ddp),
        'DDP of one, static_graph': partial(Ours, wrap=partial(in_ddp, static_graph=True))}
EACH = {'pretrain': {**EACH, 'gather by element': ByElement, 'CUDA graph': Graph},
        'finetune': {**EACH, 'patch embedding as a product': partial(Ours, changed=with_product_embedding),
                     'CUDA graph': Graph}}
