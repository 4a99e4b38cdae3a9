"""Half-precision training in one or several processes over the same batches.

    python in_processes.py RESULT ACCUM_ITER BACKEND

BACKEND is apex or native. RESULT becomes JSON: the losses, and the weights of each process. PYTHONPATH must find the
emulated npu, and the stand-in for apex.
"""
import importlib
import json
import sys

import torch

from util import device
from util.distributed import world_from_environment
from util.precision import ApexO2, NativeAmp
from util.runtime import Runtime
from util.updates import WeightUpdates


def train(runtime, accum_iter, backend, windows=6):
    """(loss of each iteration, weights)."""
    torch.manual_seed(runtime.world.rank)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 1))
    runtime.place(model)
    # A dynamic loss scale would skip other steps for other batches.
    precision = (ApexO2(importlib.import_module('apex'), 128.) if backend == 'apex'
                 else NativeAmp(runtime.accelerator, torch.float16, 128.))
    optimizer = precision.adamw(runtime.accelerator, model.parameters(), lr=.01)
    model, optimizer = precision.prepare(model, optimizer)
    updates = WeightUpdates(runtime.wrap(model, precision), optimizer, precision, lambda epoch: .01, accum_iter)
    losses, iterations, world = [], windows * accum_iter, runtime.world
    for i in range(iterations):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(i))[world.rank::world.size].to(runtime.device)
        with updates.iteration(i, iterations, 0):
            with precision.autocast():
                out = updates.model(x)
            loss = (out.float() - x.sum(dim=1, keepdim=True)).pow(2).mean()
            updates.backward(loss)
        losses.append((world.sum(loss.detach()) / world.size).item())
    return losses, torch.cat([p.flatten() for p in precision.model_state(model, optimizer).values()])


def main(path, accum_iter, backend):
    runtime = Runtime(device.select('npu'), world_from_environment())
    world = runtime.world
    world.join(runtime.accelerator)
    losses, weights = train(runtime, int(accum_iter), backend)
    everyones = torch.zeros(world.size, len(weights), device=runtime.device)
    everyones[world.rank] = weights
    world.sum(everyones)
    if world.is_main:
        with open(path, 'w') as file:
            json.dump({'losses': losses, 'weights': everyones.tolist()}, file)
    world.leave()


if __name__ == '__main__':
    main(*sys.argv[1:])
