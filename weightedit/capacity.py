"""What this machine can hold: asked before work is begun whose size somebody typed.

Estimates are lower bounds, so that nothing is refused that could be done; what is refused could only have ended with
the process killed. Memory of other devices is not asked for: they refuse by themselves.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch

from weightedit.errors import WeightEditError

_CONTROL_GROUP = Path("/sys/fs/cgroup/memory.max")


def memory_of_machine() -> int:
    """Bytes of memory that this machine, or the container around this process, has; 2^63 where it does not say."""
    known = [2**63]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):  # no such group, or one without a limit
        known.append(int(_CONTROL_GROUP.read_text()))
    return min(size for size in known if size > 0)


def check_capacity(needed: int, what: str, remedy: str, device: torch.device | None = None) -> None:
    """Refuse what this machine cannot hold.

    Args:
        needed: bytes, at least.
        what: would need them.
        remedy: what to do instead.
        device: where; only a CPU's memory is asked for, which None stands for.

    Raises:
        WeightEditError: more bytes than `memory_of_machine`.
    """
    limit = memory_of_machine()
    if (device is None or device.type == "cpu") and needed > limit:
        raise WeightEditError(
            f"{what} would take at least {needed / 1e9:,.1f} GB of memory; expected at most the {limit / 1e9:,.1f} GB "
            f"of this machine: {remedy}."
        )
