"""Operators, new ones and waits in training steps on the emulated NPU, as a table: python test/bench/npu_ops.py"""
import os
import sys
import tempfile
from contextlib import redirect_stdout
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / 'test' / 'unit')]

from conftest import finetune, pretrain
from npu_operators import FULL_RECIPE, PRECISIONS, recorded
import synthetic_dataset

TASKS = [('pre-training', pretrain, ['--model', 'mae_vit_tiny_patch16']),
         ('fine-tuning', finetune, ['--model', 'vit_tiny_patch16', *FULL_RECIPE])]


def counts(step):
    """Operators, new signatures, reads from the device, and writes to it that wait."""
    waits = [sum(count for kind, _, count in step.waits if kind == wanted) for wanted in ('read', 'write')]
    return [sum(count for *_, count in step.operators), len(step.new), *waits]


def main():
    print('| task | chip | flags | operators | new | reads | waiting writes |\n' + '|---' * 7 + '|')
    environ = {'PYTHONPATH': os.pathsep.join([str(ROOT / 'test/unit/npu'), os.environ['PYTHONPATH']])}
    with tempfile.TemporaryDirectory() as folder:
        data, record = os.path.join(folder, 'images'), Path(folder, 'record')
        with redirect_stdout(None):
            synthetic_dataset.write(data, train=96, val=8, seed=0)
        paths = ['--data_path', data, '--output_dir', os.path.join(folder, 'out')]
        for (task, run, flags), (chip, precision), clip in product(TASKS, PRECISIONS, ([], ['--clip_grad', 1.])):
            steps = recorded(run, record, 'train_one_epoch', *paths, '--epochs', 1, *flags, *precision, *clip,
                             chip=chip, **environ)
            columns = [sorted({*column}) for column in zip(*map(counts, steps[3:]))]
            print('| {} | {} | `{}` | {} |'.format(task, chip, ' '.join(map(str, [*precision, *clip])), ' | '.join(
                ' to '.join(map(str, column[::max(1, len(column) - 1)])) for column in columns)), flush=True)


if __name__ == '__main__':
    main()
