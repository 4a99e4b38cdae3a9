"""Memory that tensors have freed stays with the process."""
import sys

import pytest
from conftest import execute

PROGRAM = '''
import resource, torch
from util import heap
print(int({keep}))
for _ in range(40):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2 ** 24)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
'''


def pages(keep):
    """(whether it was understood, pages that the system gave for the last 10 of 40 equal tensors, each freed)."""
    run = execute([sys.executable, '-c', PROGRAM.format(keep=keep)])
    understood, *given = map(int, run.output.split())
    return understood, sum(given[-10:])


def test_a_tensor_takes_the_memory_of_one_that_was_freed():
    understood, given = pages('heap.keep_freed_memory()')
    if not understood:
        pytest.skip('this C library has no mallopt')
    assert given < pages('False')[1] / 10       # the first few find gaps that are a little too small
