"""Cost of checkpoints during training: python test/bench/saving.py [--model NAME] [--device cpu] [--folder DIR]

Times steps alone, steps during a background save, and a synchronous save, in alternation; prints medians.
"""
import argparse
import os
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import util  # noqa: F401  (before torch: it keeps `import torch` from loading a broken torch_npu)

import torch

import models_mae
from util.checkpoints import pth_file
from util.devices import accelerator as device
from util.checkpoints.checkpointer import Checkpointer

STEPS = 3           # timed together


def steps(model, optimizer, images, synchronize):
    """Seconds for STEPS optimizer steps."""
    begun = time.perf_counter()
    for _ in range(STEPS):
        model(images)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    synchronize()
    return time.perf_counter() - begun


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--model', default='mae_vit_base_patch16')
    parser.add_argument('--device', default='auto')
    parser.add_argument('--batch_size', type=int, default=8)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--folder', help='where to save; default: folder of temporary files')
    args = parser.parse_args()
    accelerator = device.select(args.device)
    place = accelerator.use(0)
    model = getattr(models_mae, args.model)().to(place)
    optimizer = accelerator.adamw(model.parameters(), lr=1e-4)
    images = torch.randn(args.batch_size, 3, 224, 224, device=place)
    steps(model, optimizer, images, accelerator.synchronize)
    times = {name: [] for name in ('steps alone', 'save() returns', 'steps during a save', 'save is on disk',
                                   'synchronous save')}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        checkpointer = Checkpointer(folder, keep_last=1)
        for _ in range(args.rounds):
            times['steps alone'].append(steps(model, optimizer, images, accelerator.synchronize))
            state = {'model': model.state_dict(), 'optimizer': optimizer.state_dict()}
            begun = time.perf_counter()
            checkpointer.save(state, ['checkpoint-0.pth'])
            times['save() returns'].append(time.perf_counter() - begun)
            times['steps during a save'].append(steps(model, optimizer, images, accelerator.synchronize))
            assert checkpointer.wait()
            times['save is on disk'].append(time.perf_counter() - begun)
            begun = time.perf_counter()
            pth_file.save(os.path.join(folder, 'checkpoint-1.pth'), state)
            times['synchronous save'].append(time.perf_counter() - begun)
        size = os.path.getsize(os.path.join(folder, 'checkpoint-1.pth'))
    print('{} on {}, torch {}, state of {:.0f} MB; medians of {}, in seconds ({} steps):'.format(
        args.model, accelerator.name, torch.__version__, size / 1e6, args.rounds, STEPS))
    for name, values in times.items():
        print('{:24} {:7.3f}   ({:.3f} to {:.3f})'.format(name, statistics.median(values), min(values), max(values)))


if __name__ == '__main__':
    main()
