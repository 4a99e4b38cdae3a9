"""Twenty training steps from the same weights, batches and masks under any PyTorch.

    python twenty_steps.py FOLDER NAME      20 steps of each task, and a checkpoint after 10, FOLDER/NAME-TASK.pth
    python twenty_steps.py FOLDER           the last 10 steps from each checkpoint in FOLDER

Prints {name: {task: losses}} as JSON. test_generations.py runs it with the interpreters of several generations.
"""
import argparse
import glob
import json
import os
import sys
import zlib

import numpy as np
import torch

import models_mae
import models_vit
from util import checkpoint, checkpoint_file
from util.device import Cpu
from util.lr_schedule import warmup_cosine
from util.param_groups import decay_groups, layer_decay_groups
from util.precision import FullPrecision
from util.timm_compat import Mixup, SoftTargetCrossEntropy
from util.updates import WeightUpdates

STEPS, SAVED_AT = 20, 10
SIZE = {'img_size': 32, 'patch_size': 8}


class Task:
    """A model in training whose losses depend on nothing but the step's number."""

    def __init__(self, path=None):
        self.model = self.build()
        self.fill()
        resumed = checkpoint.Resumed(path)
        resumed.restore_model(self.model)
        self.precision = FullPrecision()
        self.optimizer = self.precision.adamw(Cpu(), self.groups(), lr=1e-3, betas=(.9, .95))
        resumed.restore_training(self.optimizer, self.precision)
        self.updates = WeightUpdates(self.model, self.optimizer, self.precision,
                                     lambda epoch: warmup_cosine(epoch, 1e-3, 1, .25, 0.), accum_iter=2, clip_grad=1.)

    def fill(self):
        """Give each parameter values by its name: PyTorch's initialisation differs between releases, this generator of
        numpy's never does."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:         # else fixed sine-cosine positions
                values = np.random.RandomState(zlib.crc32(name.encode())).normal(0, .05, parameter.shape)
                scale = parameter.dim() == 1 and name.endswith('weight')        # of a LayerNorm, around 1
                parameter.data = torch.tensor(values + scale, dtype=torch.float32)

    def run(self, first, last):
        """The losses of steps `first` to `last` - 1."""
        losses = []
        self.model.train()
        for step in range(first, last):
            np.random.seed(step)
            torch.manual_seed(step)         # of the masks; uniform noise is the same in all releases
            images = torch.tensor(np.random.normal(0, 1, (8, 3, 32, 32)), dtype=torch.float32)
            with self.updates.iteration(step, STEPS, 0):
                loss = self.loss(images)
                self.updates.backward(loss)
            losses.append(loss.item())
        return losses

    def save(self, path):
        checkpoint_file.save(path, checkpoint.training_state(self.model, self.optimizer, self.precision, 0,
                                                        argparse.Namespace(lr=1e-3)))


class Pretraining(Task):
    """Masked pre-training with norm_pix_loss."""
    name = 'pretrain'

    def build(self):
        return models_mae.mae_vit_nano_patch16(norm_pix_loss=True, **SIZE)

    def groups(self):
        return decay_groups(self.model, .05)

    def loss(self, images):
        return self.model(images, .75)[0]


class Finetuning(Task):
    """Fine-tuning with layer decay, mixup and label smoothing (timm 0.4.5 and 1.0 round the edges of cutmix apart)."""
    name = 'finetune'
    mix = Mixup(mixup_alpha=.8, label_smoothing=.1, num_classes=8)

    def build(self):
        return models_vit.vit_nano_patch16(global_pool=True, num_classes=8, **SIZE)

    def groups(self):
        return layer_decay_groups(self.model, .05, .65)

    def loss(self, images):
        labels = torch.tensor(np.random.randint(0, 8, len(images)))
        images, labels = self.mix(images, labels)
        return SoftTargetCrossEntropy()(self.model(images), labels)


TASKS = {task.name: task for task in (Pretraining, Finetuning)}


def uninterrupted(folder, name):
    """20 steps of each task, with a checkpoint on the way."""
    losses = {}
    for task in TASKS.values():
        training = task()
        losses[task.name] = training.run(0, SAVED_AT)
        training.save(os.path.join(folder, '{}-{}.pth'.format(name, task.name)))
        losses[task.name] += training.run(SAVED_AT, STEPS)
    return {name: losses}


def resumed(folder):
    """The last steps from every checkpoint in `folder`."""
    losses = {}
    for path in sorted(glob.glob(os.path.join(folder, '*.pth'))):
        name, task = os.path.basename(path)[:-len('.pth')].split('-')
        losses.setdefault(name, {})[task] = TASKS[task](path).run(SAVED_AT, STEPS)
    return losses


if __name__ == '__main__':
    print(json.dumps((uninterrupted if len(sys.argv) > 2 else resumed)(*sys.argv[1:])))
