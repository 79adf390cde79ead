"""What a run says of itself when it is done: its facts as plain JSON, the machine, and Markdown tables.

Quiet: files are written here, printing is the program's.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from weightedit.training.loop import TrainResult


def hardware(*, cpu: bool = False) -> str:
    """One line about this machine: processor, cores, threads in use, and the GPU unless `cpu` says it is not used."""
    said = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return said + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() and not cpu else "")


def run_facts(config: Any, model: torch.nn.Module, result: TrainResult, **more: Any) -> dict[str, Any]:
    """What is told of a training, as JSON data; numbers that are not finite become None, which JSON has.

    Args:
        config: the dataclass that describes the experiment; its `training` is a TrainOptions.
        model: what was trained.
        result: how it went.
        more: figures, counts and the like.
    """
    facts = {
        **more,
        "config": asdict(config),
        "steps": result.steps,
        "best_step": result.best_step,
        "best_validation": result.best_validation,
        "seconds": result.seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "hardware": hardware(cpu=config.training.cpu),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "finished": result.finished,
    }
    return plain(facts)


def plain(facts: Any) -> Any:
    """JSON data: tuples as lists, what JSON does not know as text, NaN and infinity as None."""
    return json.loads(json.dumps(facts, default=str), parse_constant=lambda _: None)


def write_result(folder: str | Path, name: str, facts: Any, text: str = "") -> None:
    """Write folder/name.json, and folder/name.md where there is a text; the folder is made if it is missing."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(plain(facts), indent=1))
    if text:
        (folder / f"{name}.md").write_text(text + "\n")


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table.

    >>> print(table(["rule", "steps"], [["adam", 30]]))
    | rule | steps |
    |---|---|
    | adam | 30 |
    """
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def spread(values: Sequence[float | None], digits: int) -> str:
    """Mean and, of two values or more, standard deviation; "-" of none, "nan" where one is NaN, in JSON data None.

    >>> spread([0.25, 0.75], 1)
    '0.5 ± 0.4'
    """
    if not values:
        return "-"
    numbers = [math.nan if value is None else value for value in values]
    if any(map(math.isnan, numbers)):
        return "nan"
    deviation = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.{digits}f}{deviation}"
