"""The program on the emulated NPU with a record of its operators, for tests and for test/bench/npu_ops.py."""
import json
from collections import namedtuple

FULL_RECIPE = ['--mixup', .8, '--cutmix', 1., '--reprob', .25, '--drop_path', .1]       # RandAugment is the default
PRECISIONS = [('910A', ['--amp_backend', 'none']), ('910A', ['--amp_backend', 'native']),
              ('910B', ['--amp_backend', 'none']), ('910B', ['--amp_backend', 'native', '--amp_dtype', 'fp16']),
              ('910B', ['--amp_backend', 'native', '--amp_dtype', 'bf16'])]
BETWEEN_STEPS = ' _log_line ', ' _check ', ' finish ', ' _enter_folder '      # every 20 iterations or once a second

# Lists of (what, place, count): operators launched, those of a signature not seen before in the run, and waits
Step = namedtuple('Step', 'operators new waits')


def recorded(run, path, loop, *flags, chip='910A', **environ):
    """Steps of a loop, a function of the program, in a run of pretrain or finetune of the tests' conftest."""
    done = run(*flags, '--device', 'npu', EMULATED_NPU_CHIP=chip, EMULATED_NPU_RECORD=str(path), **environ)
    assert done.status == 0, done.output
    seen, steps = set(), []
    for step in json.loads(path.read_text()):
        operators, waits = ([(*key.split('\t'), count) for key, count in step[part].items()
                             if loop in key and not any(word in key for word in BETWEEN_STEPS)]
                            for part in ('operators', 'waits'))
        new = [entry for entry in operators if entry[0] not in seen]
        seen.update(key.split('\t')[0] for key in step['operators'])
        if loop in step['begins']:
            steps.append(Step(operators, new, waits))
    return steps


def reads(step):
    """Places where the host reads from the npu."""
    return [place for kind, place, _ in step.waits if kind == 'read']
