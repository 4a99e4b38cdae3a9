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
from util.training.ema import EMA
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


class Training:
    """main_pretrain.train in short: a nano masked autoencoder, resumed from `path` if given."""

    def __init__(self, precision, path='', accum_iter=1, ema=None):
        model = models_mae.mae_vit_nano_patch16(norm_pix_loss=True, img_size=32, patch_size=8)
        resumed = Checkpointer(None, path)
        fill(model)
        resumed.load_model(model)
        optimizer = precision.adamw(Cpu(), decay_groups(model, .05), lr=1e-3, betas=(.9, .95))
        self.precision, (self.model, self.optimizer) = precision, precision.prepare(model, optimizer)
        resumed.load_training(self.optimizer, precision)
        self.ema = ema and EMA(ema, precision.trained_weights(self.model, self.optimizer))
        self.step = OptimizerStep(self.model, self.optimizer, precision,
                                  lambda epoch: warmup_cosine(epoch, 1e-3, 1, .25, 0.), accum_iter, 1., ema=self.ema)

    def steps(self, first, end, overflow=None):
        """Losses of steps `first` to `end` - 1; the gradients of step `overflow` are not finite."""
        losses = []
        for i in range(first, end):
            np.random.seed(i)
            torch.manual_seed(i)        # of the masks; uniform noise is the same in all releases
            images = torch.tensor(np.random.normal(0, 1, (8, 3, 32, 32)), dtype=torch.float32)
            self.step.set_lr(0, i, STEPS)
            with self.step.gradient_sync():
                with self.precision.autocast():
                    loss = self.model(images, .75)[0]
                self.step.backward(loss * 1e30 if i == overflow else loss)
            if self.step.due:
                self.step.update()
            losses.append(loss.item())
        return losses

    def save(self, path):
        """Save a checkpoint."""
        state = model_state(self.model, self.optimizer, self.precision, self.ema)
        pth_file.save(path, {**state, 'epoch': 0, 'args': {}})


def losses(path, resumes):
    """Losses of all steps, with a checkpoint written to `path`; or of the last ones, resumed from it."""
    training, found = Training(FullPrecision(), path if resumes else '', accum_iter=2), []
    if not resumes:
        found = training.steps(0, SAVED_AT)
        training.save(path)
    return found + training.steps(SAVED_AT, STEPS)


if __name__ == '__main__':
    print(json.dumps([losses(path, sys.argv[1] == 'resume') for path in sys.argv[2:]]))
