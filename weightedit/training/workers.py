"""Jobs in several processes of one thread each, started anew: nothing that torch has running is copied."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

Job = TypeVar("Job")
Found = TypeVar("Found")


def in_processes(function: Callable[[Job], Found], jobs: Sequence[Job], workers: int) -> Iterator[Found]:
    """`function` of every job, in order, as they are done.

    Args:
        function: of a module, so that another process finds it.
        jobs: what it takes, one by one.
        workers: processes; 1 works here, with as many threads as torch has.
    """
    if workers == 1:
        yield from map(function, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap(function, jobs, chunksize=1)
