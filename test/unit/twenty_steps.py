"""Twenty training steps from the same weights, batches and masks under any PyTorch.

    python twenty_steps.py write FOLDER NAME        20 steps of each task, and FOLDER/NAME-TASK.pth after 10 of them
    python twenty_steps.py resume FOLDER NAME ...   the last 10 steps from each of these checkpoints

Prints {name: {task: losses}} as JSON. test_generations.py runs it with the interpreters of several generations.
"""
import argparse
import json
import os
import sys
import zlib

import numpy as np
import torch

import models_mae
import models_vit
from util.checkpoints import pth_file
from util.checkpoints.checkpointer import Checkpointer
from util.devices.accelerator import Cpu
from util.devices.precision import FullPrecision
from util.models.timm_adapter import Mixup, SoftTargetCrossEntropy
from util.training.optimizer_step import OptimizerStep, decay_groups, layer_decay_groups, warmup_cosine
from util.training.trainer import model_state

STEPS, SAVED_AT = 20, 10
SIZE = {'img_size': 32, 'patch_size': 8}
TASKS = ('pretrain', 'finetune')


def build(task):
    """(model, parameter groups, function from images to loss) of a task."""
    if task == 'pretrain':
        model = models_mae.mae_vit_nano_patch16(norm_pix_loss=True, **SIZE)
        return model, decay_groups(model, .05), lambda images: model(images, .75)[0]
    model = models_vit.vit_nano_patch16(global_pool=True, num_classes=8, **SIZE)
    # without cutmix, whose edges timm 0.4.5 and 1.0 round apart
    mix, criterion = Mixup(mixup_alpha=.8, label_smoothing=.1, num_classes=8), SoftTargetCrossEntropy()

    def loss(images):
        images, labels = mix(images, torch.tensor(np.random.randint(0, 8, len(images))))
        return criterion(model(images), labels)
    return model, layer_decay_groups(model, .05, .65), loss


def fill(model):
    """Initialize each parameter from its name: PyTorch's initialization differs between releases, numpy's RandomState
    does not."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:         # else fixed sine-cosine positions
            values = np.random.RandomState(zlib.crc32(name.encode())).normal(0, .05, parameter.shape)
            scale = parameter.dim() == 1 and name.endswith('weight')        # of a LayerNorm, around 1
            parameter.data = torch.tensor(values + scale, dtype=torch.float32)


def losses(task, path, resumes):
    """Losses of all steps, with a checkpoint written to `path`; or of the last ones, resumed from it."""
    (model, groups, loss_of), precision, found = build(task), FullPrecision(), []
    fill(model)
    resume = Checkpointer(None, path if resumes else '')
    resume.load_model(model)
    optimizer = precision.adamw(Cpu(), groups, lr=1e-3, betas=(.9, .95))
    resume.load_training(optimizer, precision)
    optimizer_step = OptimizerStep(model, optimizer, precision, lambda epoch: warmup_cosine(epoch, 1e-3, 1, .25, 0.),
                                   accum_iter=2, clip_grad=1.)
    model.train()
    for step in range(SAVED_AT if resumes else 0, STEPS):
        if step == SAVED_AT and not resumes:
            state = {**model_state(model, optimizer, precision), 'epoch': 0, 'args': vars(argparse.Namespace(lr=1e-3))}
            pth_file.save(path, state)
        np.random.seed(step)
        torch.manual_seed(step)         # of the masks; uniform noise is the same in all releases
        images = torch.tensor(np.random.normal(0, 1, (8, 3, 32, 32)), dtype=torch.float32)
        optimizer_step.set_lr(0, step, STEPS)
        with optimizer_step.gradient_sync():
            loss = loss_of(images)
            optimizer_step.backward(loss)
        if optimizer_step.due:
            optimizer_step.update()
        found.append(loss.item())
    return found


if __name__ == '__main__':
    mode, folder, *writers = sys.argv[1:]
    print(json.dumps({name: {task: losses(task, os.path.join(folder, '{}-{}.pth'.format(name, task)), mode == 'resume')
                             for task in TASKS} for name in writers}))
