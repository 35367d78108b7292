"""Memory that was freed is used again without a page fault."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from observatory.looking.freed_memory import keep_freed_memory
torch.set_num_threads(1)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(2**20) for _ in range(12)]  # 4 MB each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
keep_freed_memory()
faults(), faults()
print(sorted(faults() for _ in range(9))[4])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc decides so")
def test_freed_memory_stays_with_the_process():
    """In a fresh process: what a program freed before has a say, too, so there is nothing to compare with."""
    faults = int(subprocess.check_output([sys.executable, "-c", PROGRAM], text=True))
    pages = 12 * 4 * 2**20 // 4096
    assert faults < pages / 100
