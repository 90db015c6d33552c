"""Work on long vectors a block of coordinates at a time, on as many threads as torch has."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache

import torch

BLOCK = 1 << 15
"""Numbers worked on at once on a CPU: temporaries stay in the cache, and torch starts no threads of its own."""
COMPILED_BLOCK = 1 << 17
"""The same where the work is a compiled loop, which has tiles of its own."""
DEVICE_BLOCK = 1 << 22
"""The same on other devices, where every block costs launches."""


def in_blocks(dim: int, work: Callable[[slice], object], device: torch.device, size: int = BLOCK) -> None:
    """Call `work` for slices that cover range(dim); on a CPU several at a time, so it writes in its slice alone.

    Parameters
    ----------
    dim
        Number of coordinates.
    work
        Takes a slice.
    device
        Where the vectors lie; for other devices than a CPU slices are longer.
    size
        Length of a slice on a CPU, about: threads get equal shares.
    """
    here = device.type == "cpu"
    threads = min(torch.get_num_threads(), -(-dim // size)) if here else 1
    count = -(-dim // (size * threads)) * threads if here else -(-dim // DEVICE_BLOCK)
    slices = [slice(dim * i // count, dim * (i + 1) // count) for i in range(count)]
    if threads == 1:
        for at in slices:
            work(at)
        return
    running = [_pool(threads, os.getpid()).submit(work, at) for at in slices]
    wait(running)
    for done in running:
        done.result()


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that are kept: starting them takes as long as a block. A forked process has none of its parent's."""
    return ThreadPoolExecutor(threads, f"matu-blocks-{process}")
