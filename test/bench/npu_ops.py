"""Operators and host waits of training steps on the emulated NPU, as a table: python test/bench/npu_ops.py

Uses the test suite's emulator and a model of 12 blocks. See results/npu_ops.md.
"""
import os
import sys
import tempfile
from contextlib import redirect_stdout
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / 'test' / 'unit'), str(ROOT / 'test' / 'lib')]

from conftest import finetune, pretrain         # of the tests
import synthetic_dataset
from npu.operators import FULL_RECIPE, PRECISIONS, recorded

TASKS = [('pre-training', pretrain, ['--model', 'mae_vit_tiny_patch16']),
         ('fine-tuning', finetune, ['--model', 'vit_tiny_patch16', *FULL_RECIPE])]


COLUMNS = [('operators', lambda step: sum(count for *_, count in step.operators)),
           ('new signatures', lambda step: len({signature for signature, *_ in step.new})),
           ('reads', lambda step: sum(count for kind, _, count in step.waits if kind == 'read')),
           ('blocking writes', lambda step: sum(count for kind, _, count in step.waits if kind == 'write'))]


def table(*cells):
    print('| {} |'.format(' | '.join(map(str, cells))), flush=True)


def main():
    table('task', 'chip', 'flags', *(name for name, _ in COLUMNS))
    table(*['---'] * 7)
    with tempfile.TemporaryDirectory() as folder:
        with redirect_stdout(None):
            synthetic_dataset.write(os.path.join(folder, 'images'), train=96, val=8, seed=0)
        paths = ['--data_path', os.path.join(folder, 'images'), '--output_dir', os.path.join(folder, 'out')]
        environ = {'PYTHONPATH': os.pathsep.join([str(ROOT / 'test/unit/npu'), os.environ['PYTHONPATH']])}
        for (task, run, flags), (chip, precision), clip in product(TASKS, PRECISIONS, ([], ['--clip_grad', 1.])):
            steps = recorded(run, Path(folder, 'record'), 'train_one_epoch', '--epochs', 1, *paths, *flags, *precision,
                             *clip, chip=chip, **environ)[3:]
            counts = [[count(step) for step in steps] for _, count in COLUMNS]
            table(task, chip, '`{}`'.format(' '.join(map(str, [*precision, *clip]))), *(
                min(column) if len(set(column)) == 1 else '{} to {}'.format(min(column), max(column))
                for column in counts))


if __name__ == '__main__':
    main()
