"""The memory that a computation takes, as torch's allocator saw it: exact, and the same on every machine."""

import torch
from torch.profiler import ProfilerActivity, profile


def most_allocated(run):
    """The most bytes that torch had in use at once while `run()` ran, beyond what it had before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        kept = run()
    events = record.profiler.kineto_results.events()
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()) if e.name() == "[memory]"]
    del kept
    return int(torch.tensor([0, *sizes]).cumsum(0).max())
