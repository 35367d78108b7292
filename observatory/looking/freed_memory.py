"""What becomes of the memory that a look frees."""

from __future__ import annotations

from functools import cache

import torch

LARGEST = 2**25 - 2**16  # bytes; of larger blocks glibc takes no notice (DEFAULT_MMAP_THRESHOLD_MAX)


@cache
def keep_freed_memory() -> None:
    """Ask for 32 MB and free them untouched, once in a process: freed memory then stays with the process.

    glibc hands freed memory back to the kernel above limits that grow to the largest block freed so far
    (mallopt(3), M_MMAP_THRESHOLD). Until a program happens to free a large one, the activations of every
    training step and of every look are handed back and faulted in again page by page, which is up to a tenth
    of a look. The price is that up to 64 MB of freed memory are kept. Other allocators take no notice.
    """
    torch.empty(LARGEST, dtype=torch.uint8, device="cpu")
