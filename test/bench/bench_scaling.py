"""Weak scaling of the pre-training step: python test/bench/bench_scaling.py [--processes 2] [--model NAME]

The same batch size in each process, measured in alternating rounds:

    alone      one process, not in DistributedDataParallel, while the others wait
    together   all processes, as in training
    no_sync    all processes, without all-reduce of gradients
    exchange   only an all-reduce of the size of all gradients

alone / together is the efficiency. alone / no_sync is the part due to sharing the machine (memory, clock), and
no_sync / together the part due to the exchange, of which (together - no_sync) / exchange is not overlapped with the
backward pass. (alone and no_sync allocate gradients in each step, together keeps them in its buckets: with large models
on a CPU that can cost more than the exchange.) On a CPU each process is bound to one core and has one thread; its CPU
time shows the load of other programs. --options compares other options of DistributedDataParallel, e.g.
'{"bucket_cap_mb": 10}'.
"""
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

import util  # noqa: F401  (before torch: it keeps `import torch` from loading a broken torch_npu)

import torch
from steps import Ours, in_ddp
from torch import distributed as dist

from util.config.parser import Parser, number
from util.config.train_flags import parse_pretrain
from util.errors import run
from util.tools.launch import free_port
from util.training.session import start_session


def measure(args):
    """Run in each process; rank 0 prints the report."""
    if args.cores:
        os.sched_setaffinity(0, {args.cores[int(os.environ['RANK'])]})
        torch.set_num_threads(1)
    flags = parse_pretrain(['--data_path', ROOT, '--model', args.model, '--batch_size', str(args.batch_size),
                            '--device', args.device, '--num_workers', '0', *args.flags])
    vars(flags).update(task='pretrain', model=flags.model.replace('mae_vit_', ''))
    with start_session(flags) as session:
        report = take_turns(args, flags, session)
        if session.world.is_main:
            print(json.dumps(report), flush=True)


def take_turns(args, flags, session):
    """Report: milliseconds per step of each kind in each round, device, precision and versions."""
    build = partial(Ours, flags, session.accelerator, session.device)
    alone, together = build(), build(wrap=lambda step, model: session.wrap(model, step.precision))
    trained = [p for p in together.model.parameters() if p.requires_grad]
    buffer = torch.zeros(sum(p.numel() for p in trained), dtype=trained[0].dtype, device=session.device)

    def steps(step):
        for _ in range(args.steps):
            step()

    def without():
        with together.optimizer_step.model.no_sync():
            steps(together)

    def exchange():
        for _ in range(args.steps):
            dist.all_reduce(buffer)

    works = {'alone': lambda: session.world.is_main and steps(alone), 'together': lambda: steps(together),
             'no_sync': without, 'exchange': exchange}
    if args.options:
        other = build(wrap=partial(in_ddp, **args.options))
        works['other options'] = lambda: steps(other)
    times, processor = {name: [] for name in works}, {name: [] for name in works}
    for _ in range(args.rounds + 1):            # the first warms up
        for name, work in works.items():
            for values, seconds in zip((times[name], processor[name]), timed(work, session)):
                values.append(seconds / args.steps * 1e3)
    return {'device': session.accelerator.name, 'precision': together.precision.name, 'torch': torch.__version__,
            'megabytes': buffer.numel() * buffer.element_size() / 1e6,
            'milliseconds': {name: values[1:] for name, values in times.items()},
            'processor': {name: values[1:] for name, values in processor.items()}}


def timed(work, session):
    """Wall-clock and CPU seconds of the slowest process, from a common start."""
    session.accelerator.synchronize()
    session.all_reduce(0)
    begun, processor = time.perf_counter(), time.process_time()
    work()
    session.accelerator.synchronize()
    seconds = torch.tensor([time.perf_counter() - begun, time.process_time() - processor], device=session.device)
    return tuple(map(max, zip(*session.world.all_gather(seconds))))


def start_processes(args):
    """Run measure() in all processes; returns the report of rank 0."""
    environ = {**os.environ, 'WORLD_SIZE': str(args.processes), 'LOCAL_WORLD_SIZE': str(args.processes),
               'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port())}
    running = [subprocess.Popen([sys.executable, os.path.abspath(__file__), *sys.argv[1:]],
                                env={**environ, 'RANK': str(rank), 'LOCAL_RANK': str(rank)},
                                stdout=None if rank else subprocess.PIPE)
               for rank in range(args.processes)]
    output = running[0].communicate()[0].decode()
    status = max(process.wait() for process in running)
    if status or not output.strip():
        sys.stdout.write(output)
        sys.exit(status or 1)
    return json.loads(output.strip().splitlines()[-1])


def ratios(times):
    """Ratios of the times of a report, each as the median over the rounds."""
    rounds = list(zip(*(times[name] for name in ('alone', 'together', 'no_sync', 'exchange'))))
    return {'efficiency': statistics.median(alone / together for alone, together, _, _ in rounds),
            'efficiency without exchange': statistics.median(alone / no_sync for alone, _, no_sync, _ in rounds),
            'share of the exchange not overlapped': statistics.median(
                (together - no_sync) / exchange for _, together, no_sync, exchange in rounds)}


def show(args, report):
    """Print the tables; add the ratios to the report."""
    times, processor = report['milliseconds'], report['processor']
    report['ratios'], report['processor ratios'] = ratios(times), ratios(processor)
    print('{}, {} images in each of {} processes, {:.0f} MB of gradients; {}, {}, torch {}; medians of {}'.format(
        args.model, args.batch_size, args.processes, report['megabytes'], report['device'], report['precision'],
        report['torch'], args.rounds))
    print('\n| step | ms | fastest | slowest | CPU time, ms |\n|---|---|---|---|---|')
    for name, values in times.items():
        print('| {} | {:.1f} | {:.1f} | {:.1f} | {:.1f} |'.format(
            name, statistics.median(values), min(values), max(values), statistics.median(processor[name])))
    print('\n| | wall clock | CPU time |\n|---|---|---|')
    for name, value in report['ratios'].items():
        print('| {} | {:.1%} | {:.1%} |'.format(name, value, report['processor ratios'][name]))


def main(args):
    if 'WORLD_SIZE' in os.environ:          # started by start_processes
        measure(args)
    else:
        show(args, start_processes(args))


def parsed():
    """Parsed flags; `cores` are those to bind the processes to, none on an accelerator."""
    parser = Parser(prog='bench_scaling.py', description=__doc__.split('\n')[0])
    count = number(int, 1)
    parser.add_argument('--model', default='mae_vit_small_patch16', help='a model of main_pretrain.py')
    parser.add_argument('--batch_size', type=count, default=4, help='images in each process')
    parser.add_argument('--processes', type=number(int, 2), default=2, help='number of processes')
    parser.add_argument('--steps', type=count, default=2, help='steps per measurement')
    parser.add_argument('--rounds', type=count, default=7, help='rounds of measurements')
    parser.add_argument('--device', default='cpu', help='auto, npu, cuda or cpu')
    parser.add_argument('--options', type=json.loads, default={}, help='options of the wrapper to compare, JSON')
    parser.add_argument('flags', nargs='*', help='further flags of main_pretrain.py, after --')
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0)) if args.device == 'cpu' else []
    if args.device == 'cpu' and len(cores) < args.processes:
        parser.error('argument --processes: {} on {} cores'.format(args.processes, len(cores)))
    args.cores = cores[:args.processes]
    return args


if __name__ == '__main__':
    run(main, parsed())
