"""Memory that tensors have freed stays with the process."""
import sys

import pytest
from conftest import execute

PROGRAM = '''
import resource, torch
from util.devices import accelerator
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2 ** 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
fetched = sum(pages() for _ in range(10))
understood = accelerator.keep_freed_memory()
print(int(understood), fetched, [pages() for _ in range(40)] and sum(pages() for _ in range(10)))
'''


def test_a_tensor_takes_the_memory_of_one_that_was_freed():
    understood, fetched, kept = map(int, execute([sys.executable, '-c', PROGRAM]).output.split())
    if not understood:
        pytest.skip('this C library has no mallopt')
    assert kept < fetched / 10
