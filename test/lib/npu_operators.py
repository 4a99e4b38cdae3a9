"""Steps of the program on the emulated NPU, for test_operators_on_npus.py and test/bench/npu_ops.py."""
import json
from collections import namedtuple

FULL_RECIPE = ['--mixup', .8, '--cutmix', 1., '--reprob', .25, '--drop_path', .1]       # RandAugment is the default
PRECISIONS = [('910A', ['--amp_backend', 'none']), ('910A', ['--amp_backend', 'native']),
              ('910B', ['--amp_backend', 'none']), ('910B', ['--amp_backend', 'native', '--amp_dtype', 'fp16']),
              ('910B', ['--amp_backend', 'native'])]
BETWEEN_STEPS = ' _log_line ', ' _check ', ' finish ', ' _enter_folder '       # now and then, or at an epoch's end

# (what, place, count) of the operators launched, of those that the process had not launched before, and of the waits
Step = namedtuple('Step', 'operators new waits')


def recorded(run, path, loop, *flags, chip='910A', **environ):
    """Steps of a loop, which is a function of the program, in a `run` by pretrain or finetune of the tests."""
    done = run(*flags, '--device', 'npu', EMULATED_NPU_CHIP=chip, EMULATED_NPU_RECORD=str(path), **environ)
    assert done.status == 0, done.output
    seen, steps = set(), []
    for step in json.loads(path.read_text()):
        operators, waits = ([(*key.split('\t'), count) for key, count in step[kind].items()
                             if loop in key and not any(word in key for word in BETWEEN_STEPS)]
                            for kind in ('operators', 'waits'))
        if loop in step['begins']:
            steps.append(Step(operators, [entry for entry in operators if entry[0] not in seen], waits))
        seen.update(key.split('\t')[0] for key in step['operators'])
    return steps
