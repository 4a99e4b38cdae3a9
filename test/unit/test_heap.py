"""Memory that tensors have freed stays with the process."""
import sys

import pytest
from conftest import execute

PROGRAM = '''
import resource, torch
from util import heap
print(int({keep}))
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2 ** 24)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
'''


def pages(keep):
    """(whether it was understood, pages that the system gave for the first and the second of two equal tensors)."""
    run = execute([sys.executable, '-c', PROGRAM.format(keep=keep)])
    return list(map(int, run.output.split()))


def test_a_tensor_takes_the_memory_of_the_one_before():
    understood, first, second = pages('heap.keep_freed_memory()')
    if not understood:
        pytest.skip('this C library has no mallopt')
    assert second < first / 10
    assert pages('False')[2] > first / 10
