"""Training that takes a moment: a small network, and a nano masked autoencoder trained as main_pretrain.py does it."""
import argparse

import torch

import models_mae
from util import checkpoint, checkpoint_file
from util.device import Cpu
from util.param_groups import decay_groups
from util.updates import WeightUpdates


class Net(torch.nn.Module):
    """Two layers in a row, the second of which may be left out."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.LayerNorm(16), torch.nn.GELU())
        self.second, self.head = torch.nn.Linear(16, 16), torch.nn.Linear(16, 1)

    def forward(self, x, whole=True):
        x = self.first(x)
        return self.head(self.second(x) if whole else x)


def computes_in_half():
    """Whether this torch trains in fp16 on the CPU."""
    try:
        Net().half()(torch.ones(1, 8).half()).sum().backward()
    except RuntimeError:
        return False
    return True


def batch(i, size=16):
    """(inputs, targets) of step `i`."""
    x = torch.randn(size, 8, generator=torch.Generator().manual_seed(i))
    return x, x.sum(dim=1, keepdim=True)


def small_net():
    torch.manual_seed(0)
    return Net()


def train_naively(apex, steps, optimizer_class=None, overflow=None, **options):
    """(model, optimizer) after `steps` with apex as its own manual has it; `overflow` is a step to overflow."""
    model = small_net()
    optimizer = (optimizer_class or apex.optimizers.NpuFusedAdamW)(model.parameters(), lr=.01)
    model, optimizer = apex.amp.initialize(model, optimizer, opt_level='O2', combine_grad=True, verbosity=0, **options)
    for i in range(steps):
        x, y = batch(i)
        loss = (model(x) - y).pow(2).mean() * (1e30 if i == overflow else 1.)
        optimizer.zero_grad()
        with apex.amp.scale_loss(loss, optimizer) as scaled:
            scaled.backward()
        optimizer.step()
    return model, optimizer


class Training:
    """What main_pretrain.train does, on drawn images: a nano masked autoencoder, restored from `path` if given."""

    def __init__(self, precision, path=None, ema=None):
        torch.manual_seed(0)
        self.precision, resumed = precision, checkpoint.Resumed(path)
        model = models_mae.mae_vit_nano_patch16(img_size=32, patch_size=8)
        resumed.restore_model(model)
        optimizer = precision.adamw(Cpu(), decay_groups(model, .05), lr=1e-3, betas=(.9, .95))
        self.model, self.optimizer = precision.prepare(model, optimizer)
        resumed.restore_training(self.optimizer, precision)
        self.average = resumed.average(ema, precision.trained_weights(self.model, self.optimizer))
        self.updates = WeightUpdates(self.model, self.optimizer, precision, lambda epoch: 1e-3, clip_grad=1.,
                                     average=self.average)

    def steps(self, first, end, overflow=None):
        """Losses of steps `first` to `end` - 1; the gradients of step `overflow` are not finite."""
        losses = []
        for i in range(first, end):
            torch.manual_seed(i)
            images = torch.rand(4, 3, 32, 32)
            with self.updates.iteration(i, end, epoch=0):
                loss, _, _ = self.model(images)
                self.updates.backward(loss * 1e30 if i == overflow else loss)
            losses.append(loss.item())
        return losses

    def save(self, path, **changes):
        """A checkpoint at `path`; gives `path`."""
        state = checkpoint.training_state(self.model, self.optimizer, self.precision, 0, argparse.Namespace(),
                                          self.average)
        checkpoint_file.save(str(path), {**state, **changes})
        return str(path)

    def state(self):
        """All that training goes on from, as one flat dict."""
        held = checkpoint.training_state(self.model, self.optimizer, self.precision, 0, argparse.Namespace(),
                                         self.average)
        average = {('average', name): value for name, value in held.get('model_ema', {}).items()}
        moments = {(key, name): value for key, state in held['optimizer']['state'].items()
                   for name, value in state.items()}
        return {**held['model'], **moments, **average, 'scaler': held['scaler']}


def differing(one, other):
    """Names of the values that are not the same to the last bit."""
    assert one.keys() == other.keys()
    return [name for name, value in one.items()
            if not (torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name])]
