"""What a piece of work costs: seconds with contenders taking turns, products of matrices, peak memory.

On a shared machine only ratios that were measured together mean something, so contenders take turns (A B C A B C ...)
and medians are reported.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

K = TypeVar("K")


@dataclass(frozen=True)
class Timing:
    """Median seconds on the wall clock, and of processor time of the whole process."""

    wall: float
    processor: float


def take_turns(jobs: Mapping[K, Callable[[], object]], rounds: int, *, warmup: int = 1) -> dict[K, Timing]:
    """Medians over `rounds` rounds in which every job runs once, after `warmup` rounds that do not count."""
    seconds: dict[K, list[tuple[float, float]]] = {name: [] for name in jobs}
    for turn in range(warmup + rounds):
        for name, job in jobs.items():
            before = time.perf_counter(), time.process_time()
            job()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            if turn >= warmup:
                seconds[name].append((time.perf_counter() - before[0], time.process_time() - before[1]))
    return {
        name: Timing(*(statistics.median(column) for column in zip(*rows, strict=True)))
        for name, rows in seconds.items()
    }


def gigaflop(job: Callable[[], object]) -> float:
    """Products of matrices and convolutions as torch counts them: two operations per multiply and add."""
    with FlopCounterMode(display=False) as counter:
        job()
    return counter.get_total_flops() / 1e9


def peak_megabytes(job: Callable[[], object], device: str = "cpu") -> float:
    """What two calls take at their peak beyond what was held before: of the process on Linux (elsewhere 0), or of a
    CUDA device."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        for _ in range(2):
            job()
        return (torch.cuda.max_memory_allocated(device) - held) / 1e6
    if not Path("/proc/self/clear_refs").exists():
        return 0.0
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # what was freed before and is kept would be taken anew without being seen
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: loading files takes more than it keeps
    before = _peak()
    for _ in range(2):
        job()
    return (_peak() - before) / 1e3


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
