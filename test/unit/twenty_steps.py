"""Twenty steps of pre-training from the same weights, images and masks under any PyTorch.

    python twenty_steps.py write CHECKPOINT         20 steps, and the checkpoint after 10 of them
    python twenty_steps.py resume CHECKPOINT ...    the last 10 steps from each of these

Prints their losses as JSON, a list for each checkpoint. test_generations.py runs it with several interpreters.
"""
import json
import sys
import zlib

import numpy as np
import torch

import models_mae
from util.checkpoints import pth_file
from util.checkpoints.checkpointer import Checkpointer
from util.devices.accelerator import Cpu
from util.devices.precision import FullPrecision
from util.training.optimizer_step import OptimizerStep, decay_groups, warmup_cosine
from util.training.trainer import model_state

STEPS, SAVED_AT = 20, 10


def fill(model):
    """Initialize each parameter from its name: PyTorch's initialization differs between releases, numpy's RandomState
    does not."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:         # else fixed sine-cosine positions
            values = np.random.RandomState(zlib.crc32(name.encode())).normal(0, .05, parameter.shape)
            scale = parameter.dim() == 1 and name.endswith('weight')        # of a LayerNorm, around 1
            parameter.data = torch.tensor(values + scale, dtype=torch.float32)


def losses(path, resumes):
    """Losses of all steps, with a checkpoint written to `path`; or of the last ones, resumed from it."""
    model = models_mae.mae_vit_nano_patch16(norm_pix_loss=True, img_size=32, patch_size=8)
    precision, found = FullPrecision(), []
    fill(model)
    resume = Checkpointer(None, path if resumes else '')
    resume.load_model(model)
    optimizer = precision.adamw(Cpu(), decay_groups(model, .05), lr=1e-3, betas=(.9, .95))
    resume.load_training(optimizer, precision)
    optimizer_step = OptimizerStep(model, optimizer, precision, lambda epoch: warmup_cosine(epoch, 1e-3, 1, .25, 0.),
                                   accum_iter=2, clip_grad=1.)
    for step in range(SAVED_AT if resumes else 0, STEPS):
        if step == SAVED_AT and not resumes:
            pth_file.save(path, {**model_state(model, optimizer, precision), 'epoch': 0, 'args': {}})
        np.random.seed(step)
        torch.manual_seed(step)         # of the masks; uniform noise is the same in all releases
        images = torch.tensor(np.random.normal(0, 1, (8, 3, 32, 32)), dtype=torch.float32)
        optimizer_step.set_lr(0, step, STEPS)
        with optimizer_step.gradient_sync():
            loss = model(images, .75)[0]
            optimizer_step.backward(loss)
        if optimizer_step.due:
            optimizer_step.update()
        found.append(loss.item())
    return found


if __name__ == '__main__':
    print(json.dumps([losses(path, sys.argv[1] == 'resume') for path in sys.argv[2:]]))
