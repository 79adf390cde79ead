"""What a training run keeps on disk: run.json (what the run is), log.jsonl (its losses), state/ (where it stands).

Here: the formats, their atomic writing and strict reading, and the conversion of optimizer and random number generator
state to named tensors. Not here: when any of it happens, devices and processes (loop.py). The layout is

    run.json                        options, processes and data size; a folder belongs to one run
    log.jsonl                       one line per step
    state/step-00000100/            state.json and state.safetensors; tensor names start with model/, optimizer/,
                                    average/, best/, random/ or carried/

A state is written under another name and renamed, and the one before it is deleted after that: at every moment one of
them is complete, whenever the process is killed. One process writes here, which holds the claim on state/.
"""

import json
import os
import random
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor

from weightedit.errors import FileFormatError, WeightEditError
from weightedit.files.checkpoint import encode_json, encode_tensors, read_json, read_tensors, write_folder
from weightedit.files.reading import parse_json, read_bytes, refusing, shortened
from weightedit.files.saving import claimed, new_file
from weightedit.files.schema import Count, Within, conform

FORMAT_VERSION = 1
RUN, LOG, STATE = "run.json", "log.jsonl", "state"


class Record(TypedDict):
    """What state.json says; `training` asks for all of it, tests and older states do with less."""

    format_version: Literal[1]
    step: Count
    tensors: NotRequired[Annotated[list[str], Within(0, 2**20)]]
    device: NotRequired[str]
    log_bytes: NotRequired[Count]
    seconds: NotRequired[float]
    best_step: NotRequired[Count]
    best_validation: NotRequired[float | None]
    skipped: NotRequired[Count]
    skipped_in_row: NotRequired[Count]


@contextmanager
def held(folder: Path, main: bool) -> Iterator[None]:
    """Keep other runs out of `folder`, made if it is missing, while the block runs.

    Args:
        folder: the run's folder.
        main: whether this process is the one that writes; the others of a run need no claim.
    Raises:
        WeightEditError: naming the process that trains there.
    """
    if main:
        folder.mkdir(parents=True, exist_ok=True)
    with claimed(folder / STATE) if main else nullcontext():
        yield


def claim_folder(folder: Path, run: dict[str, Any], *, may_differ: frozenset[str], may_grow: frozenset[str]) -> None:
    """Write run.json, or hold it against the one that is there.

    Args:
        folder: the run's folder; made if it is missing.
        run: what the run is, JSON values.
        may_differ: keys that may have changed since (the file is updated).
        may_grow: keys that may have become larger (the file is updated).
    Raises:
        WeightEditError: naming every key that differs.
        FileFormatError: when the folder holds a log or a state but no run.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = {"format_version": FORMAT_VERSION, **json.loads(encode_json(run))}
    path = folder / RUN
    if not path.exists():
        found = [name for name in (LOG, STATE) if (folder / name).exists()]
        if found:
            raise FileFormatError(
                f"{folder} holds {' and '.join(found)} but no {RUN}; expected an empty folder or one that train wrote: "
                "choose another folder"
            )
    else:
        before, faults = read_json(path), []
        for key in sorted(run.keys() | before.keys()):
            was, now = before.get(key), run.get(key)
            grown = key in may_grow and isinstance(was, int) and isinstance(now, int) and now >= was
            if was != now and key not in may_differ and not grown:
                faults.append(f"{key} was {was!r} and is {now!r} now")
        if faults:
            raise WeightEditError(
                f"{folder} holds a run with other options: {'; '.join(faults)}; expected the same options (only "
                f"{', '.join(sorted(may_grow))} may grow): train with those options, or into another folder"
            )
        if before == run:
            return
    with new_file(path) as fresh:
        fresh.write_bytes(encode_json(run))


def save_state(folder: Path, step: int, tensors: Mapping[str, Tensor], record: dict[str, Any]) -> None:
    """Write the state after `step` steps as folder/state/step-<step>, then delete the others; the caller holds it."""
    root = folder / STATE
    fresh, final = root / ".saving", root / f"step-{step:08d}"
    shutil.rmtree(fresh, ignore_errors=True)
    record = {"format_version": FORMAT_VERSION, "step": step, "tensors": list(tensors), **record}
    write_folder(fresh, {"state.safetensors": encode_tensors(tensors), "state.json": encode_json(record)})
    fresh.rename(final)
    for path in root.glob("step-*"):
        if path != final:
            shutil.rmtree(path)


def load_state(folder: Path, required: Iterable[str] = ()) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest state as (tensors, record with the required keys), or None; FileFormatError when it is damaged.

    Tensors come in the order in which they were saved: what is summed over them is the same, bit for bit.
    """
    found = sorted((folder / STATE).glob("step-*"))
    if not found:
        return None
    stated = read_json(found[-1] / "state.json")
    version, step = stated.get("format_version"), stated.get("step")
    missing = [key for key in required if key not in stated]
    if version != FORMAT_VERSION or type(step) is not int or f"step-{step:08d}" != found[-1].name or missing:
        raise FileFormatError(
            f"{found[-1]} says format_version {shortened(version)} and step {shortened(step)}, and lacks {missing}; "
            f"expected {FORMAT_VERSION} and the step in its name: put the state back as it was, or train into another "
            "folder"
        )
    record: dict[str, Any] = conform(Record, stated, str(found[-1] / "state.json"))
    tensors = read_tensors(found[-1] / "state.safetensors")
    order = record.get("tensors", list(tensors))  # older states do not tell
    if sorted(order) != list(tensors):
        raise FileFormatError(
            f"{found[-1]} does not hold the tensors that its state.json names: {sorted(set(order) ^ set(tensors))[:3]} "
            "are in one of the two; put the state back as it was, or train into another folder"
        )
    return {name: tensors[name] for name in order}, record


def part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of one part of a state, without the `name/` in front."""
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's per-parameter state as `<parameter>.<entry>` -> tensor; every entry must be a tensor."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`: dtypes are kept as they were saved, devices follow the parameters."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for name, value in tensors.items():
        owner, key = name.rsplit(".", 1)
        if owner not in parameters:
            raise FileFormatError(
                f"the saved optimizer state has {name!r}, but the model has no parameter {owner!r}; expected the model "
                "of the saved run: train with that model, or into another folder"
            )
        optimizer.state[parameters[owner]][key] = value.to(parameters[owner].device)


def seed_random(seed: int) -> None:
    """Seed the global generators of torch (all devices), Python and NumPy, for what draws on them (dropout)."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def random_tensors(device: torch.device) -> dict[str, Tensor]:
    """The state of those generators as tensors of fixed shapes, on the CPU; `cuda` only on a CUDA device."""
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([float("nan") if gauss is None else gauss], dtype=torch.float64),
        "numpy": torch.tensor([*np.asarray(keys).tolist(), position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def load_random_tensors(state: Mapping[str, Tensor], device: torch.device) -> None:
    """The inverse of `random_tensors`."""
    # Not views: torch.set_rng_state crashes the process (2.13) when it is given one that does not start its storage.
    state = {name: value.clone() for name, value in state.items()}
    torch.set_rng_state(state["torch"])
    gauss = state["python_gauss"].item()
    random.setstate((3, tuple(state["python"].tolist()), None if gauss != gauss else gauss))
    *keys, position, has_gauss = state["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, state["numpy_gauss"].item()))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def preserved_random(device: torch.device) -> Iterator[None]:
    """Leave the global generators as they were found."""
    before = random_tensors(device)
    try:
        yield
    finally:
        load_random_tensors(before, device)


class RunLog:
    """log.jsonl: opened at a length in bytes, cut there, and appended to.

    Args:
        folder: the run's folder.
        length: bytes to keep, as `sync` returned them for the state that is resumed; 0 starts anew.
    Raises:
        FileFormatError: when the file is shorter than that.
    """

    def __init__(self, folder: Path, length: int):
        path = folder / LOG
        size = path.stat().st_size if path.exists() else 0
        if size < length:
            raise FileFormatError(
                f"{path} has {size} bytes; expected at least the {length} that the saved state counts: "
                "put the log back, or train into another folder"
            )
        self._stream = path.open("ab")
        self._stream.truncate(length)

    def append(self, records: list[dict[str, Any]]) -> None:
        """Write one line per record and hand them to the operating system, so that they can be followed."""
        self._stream.write(b"".join(json.dumps(record, allow_nan=False).encode() + b"\n" for record in records))
        self._stream.flush()

    def sync(self) -> int:
        """See everything through to the disk; the length in bytes."""
        os.fsync(self._stream.fileno())
        return os.fstat(self._stream.fileno()).st_size

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's log, one per step, in order; FileFormatError when a line cannot be read."""
    path = folder / LOG
    with refusing(path, "one JSON object per line: put the log back, or train elsewhere"):
        lines = read_bytes(path).decode().splitlines()
        return [conform(dict[str, Any], parse_json(line), f"line {n} of the log") for n, line in enumerate(lines, 1)]
