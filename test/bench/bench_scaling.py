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

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

import util  # noqa: F401  (before torch: it keeps `import torch` from loading a broken torch_npu)

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from util.devices.precision import choose_precision
from util.models.build import build_autoencoder
from util.training.session import start_session
from util.config.train_flags import parse_pretrain
from util.config.parser import number, Parser
from util.errors import run
from util.compat import supported
from util.tools.launch import free_port
from util.data.transforms import Normalize
from util.training.optimizer_step import decay_groups, OptimizerStep


class Training:
    """Model, optimizer and precision as in main_pretrain.py.

    Args:
        wrap: (model, precision) -> model to call, e.g. in DistributedDataParallel.
    """

    def __init__(self, flags, session, wrap):
        session.seed(flags.seed, epoch=-1)
        model = build_autoencoder(vars(flags))
        session.place(model)
        precision = choose_precision(session.accelerator, flags.amp, flags.amp_backend, flags.amp_dtype,
                                     flags.loss_scale)
        optimizer = precision.adamw(session.accelerator, decay_groups(model, flags.weight_decay), lr=1e-4,
                                    betas=(.9, .95))
        model, optimizer = precision.prepare(model, optimizer)
        self.precision, self._flags, self._session = precision, flags, session
        self.optimizer_step = OptimizerStep(wrap(model, precision), optimizer, precision, lambda epoch: 1e-4)
        self._normalize = Normalize(flags.in_chans)
        self._images = torch.randint(256, (flags.batch_size, flags.input_size, flags.input_size, flags.in_chans),
                                     dtype=torch.uint8, device=session.device)

    def steps(self, count):
        for i in range(count):
            self._session.seed(0, 0, i)
            images = self._normalize(self._images)
            self.optimizer_step.set_lr(0, i, count)
            with self.optimizer_step.gradient_sync():
                with self.precision.autocast():
                    loss = self.optimizer_step.model(images, mask_ratio=self._flags.mask_ratio, loss_only=True)
                self.optimizer_step.backward(loss)
            if self.optimizer_step.due:
                self.optimizer_step.update()

    def gradients(self):
        """A tensor of the size and type of all gradients."""
        trained = [p for p in self.optimizer_step.model.parameters() if p.requires_grad]
        return torch.zeros(sum(p.numel() for p in trained), dtype=trained[0].dtype, device=trained[0].device)


def other_wrap(session, options):
    """As Session.wrap, with these options of DistributedDataParallel."""
    def wrap(model, precision):
        may_move = precision.supports_bucket_view and session.accelerator.supports_bucket_view
        chosen = {**supported(DistributedDataParallel, gradient_as_bucket_view=may_move), **options}
        ids = None if session.device.type == 'cpu' else [session.device.index]
        return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False, **chosen)
    return wrap


def measure(args):
    """Run in each process; rank 0 prints the report."""
    if args.cores:
        os.sched_setaffinity(0, {args.cores[int(os.environ['RANK'])]})
        torch.set_num_threads(1)
    flags = parse_pretrain(['--data_path', ROOT, '--model', args.model, '--batch_size', str(args.batch_size),
                            '--device', args.device, '--num_workers', '0', *args.flags])
    with start_session(flags) as session:
        report = take_turns(args, flags, session)
        if session.world.is_main:
            print(json.dumps(report), flush=True)


def take_turns(args, flags, session):
    """Report: milliseconds per step of each kind in each round, device, precision and versions."""
    alone, together = Training(flags, session, lambda model, _: model), Training(flags, session, session.wrap)
    buffer = together.gradients()

    def without():
        with together.optimizer_step.model.no_sync():
            together.steps(args.steps)

    def exchange():
        for _ in range(args.steps):
            dist.all_reduce(buffer)

    works = {'alone': lambda: session.world.is_main and alone.steps(args.steps),
             'together': lambda: together.steps(args.steps), 'no_sync': without, 'exchange': exchange}
    if args.options:
        other = Training(flags, session, other_wrap(session, args.options))
        works['other options'] = lambda: other.steps(args.steps)
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
        return
    report = start_processes(args)
    show(args, report)
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(report, file, indent=1)


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
    parser.add_argument('--json', help='output file for the results')
    parser.add_argument('flags', nargs='*', help='further flags of main_pretrain.py, after --')
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0)) if args.device == 'cpu' else []
    if args.device == 'cpu' and len(cores) < args.processes:
        parser.error('argument --processes: {} on {} cores'.format(args.processes, len(cores)))
    args.cores = cores[:args.processes]
    return args


if __name__ == '__main__':
    run(main, parsed())
