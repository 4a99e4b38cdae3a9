"""ApexO2 in one or several processes over the same batches.

    python apex_in_processes.py RESULT ACCUM_ITER [naive]

RESULT becomes JSON: the losses, and the weights of each process. `naive` lets DistributedDataParallel move gradients.
PYTHONPATH must find the stand-in for apex.
"""
import json
import sys

import apex
import torch

from util.device import Cpu
from util.distributed import world_from_environment
from util.precision import ApexO2
from util.updates import WeightUpdates


def train(world, accum_iter, naive, windows=6):
    """(loss of each iteration, weights)."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 1))
    precision = ApexO2(apex, loss_scale=128.)       # the dynamic one would skip other steps for other batches
    optimizer = precision.adamw(Cpu(), model.parameters(), lr=.01)
    model, optimizer = precision.prepare(model, optimizer)
    wrapped = world.wrap(model, torch.device('cpu'), naive or precision.gradients_stay_in_model)
    updates = WeightUpdates(wrapped, optimizer, precision, lambda epoch: .01, accum_iter)
    losses, iterations = [], windows * accum_iter
    for i in range(iterations):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(i))
        x = x[world.rank::world.size]
        with updates.iteration(i, iterations, 0):
            loss = (updates.model(x) - x.sum(dim=1, keepdim=True)).pow(2).mean()
            updates.backward(loss)
        losses.append((world.sum(loss.detach()) / world.size).item())
    return losses, torch.cat([p.flatten() for p in precision.model_state(model, optimizer).values()])


if __name__ == '__main__':
    world = world_from_environment()
    world.join(Cpu())
    losses, weights = train(world, int(sys.argv[2]), 'naive' in sys.argv)
    everyones = torch.zeros(world.size, len(weights))
    everyones[world.rank] = weights
    world.sum(everyones)
    if world.is_main:
        with open(sys.argv[1], 'w') as file:
            json.dump({'losses': losses, 'weights': everyones.tolist()}, file)
    world.leave()
