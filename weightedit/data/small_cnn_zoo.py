"""Reading the public Small CNN Zoo (Unterthiner et al. 2020, "Predicting Neural Network Accuracy from Weights").

    folder/weights.npy       [N, 4970], one flattened checkpoint per row
    folder/metrics.csv.gz    one line per row: config.activation, modeldir, step, test_accuracy, ...
    folder/layout.csv        varname, start_idx, end_idx, shape: which columns are which variable

Its networks, as its published training code says: three convolutions of 16 filters, 3x3, stride 2, without padding, on
gray images in [-1, 1]; the activation; dropout; global average pooling; a dense layer of 10 outputs. TensorFlow keeps
convolution kernels as (height, width, in, out) and dense ones as (in, out); they come out as torch has them. Nothing is
evaluated or unpickled.
"""

from __future__ import annotations

import csv
import gzip
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from torch import Tensor

from weightedit.data.cnn_zoo import CNNZoo
from weightedit.errors import FileFormatError
from weightedit.files.reading import read_bytes, refusing, shortened, size_of
from weightedit.network.layer import Activation, Layer
from weightedit.network.spec import NetworkSpec, Params

STRIDE = 2
_SHAPE = re.compile(r"^[(\[]\s*[0-9]{1,6}(\s*,\s*[0-9]{1,6}){0,3}\s*,?\s*[)\]]$")
_LINE = 2**16  # characters
_LAYOUT_BYTES = 2**20
_LAYOUT = ("varname", "start_idx", "end_idx", "shape")
_METRICS = ("config.activation", "modeldir", "step", "test_accuracy")
_AXES = {"kernel": (2, 4), "bias": (1,)}


@dataclass(frozen=True)
class _Variable:
    """Some columns of weights.npy: `owner` is the layer, `role` its kernel or bias."""

    owner: str
    role: str
    start: int
    end: int
    shape: tuple[int, ...]


def load_small_cnn_zoo(folder: str | Path, activation: str, *, steps: Iterable[int] | None = (86,)) -> CNNZoo:
    """The checkpoints of one activation.

    Args:
        folder: of one data set (cifar10, fashion_mnist, mnist or svhn_cropped), unpacked.
        activation: "relu" or "tanh"; the symmetry differs, so they are two zoos.
        steps: epochs of the checkpoints to take; the last one is 86. None for all.

    Returns a zoo whose `network` numbers the values of modeldir in the order of their appearance.
    Raises FileFormatError on missing files or columns, other lengths, values that are no numbers where numbers are
    due, or no checkpoint chosen.
    """
    folder = Path(folder)
    weights = _weights(folder / "weights.npy")
    rows = _metrics(folder / "metrics.csv.gz", len(weights))
    if len(rows) != len(weights):
        raise FileFormatError(
            f"{folder}: weights.npy has {len(weights)} rows and metrics.csv.gz {len(rows)}; expected the same number."
        )
    wanted = None if steps is None else set(steps)
    kinds = [_kind(row, number, folder / "metrics.csv.gz") for number, row in enumerate(rows, 1)]
    chosen = [i for i, (own, step) in enumerate(kinds) if own == activation and (wanted is None or step in wanted)]
    if not chosen:
        known = sorted(set(kinds))
        raise FileFormatError(
            f"{folder} has no checkpoint of activation {activation!r} at steps {steps}; expected some of {known[:20]}."
        )
    with refusing(folder / "layout.csv", "the layout of weights.npy: copy the zoo again"):
        spec, params = _params(_layout(folder / "layout.csv"), torch.from_numpy(weights[chosen]), activation)
    numbers: dict[str, int] = {}
    network = torch.tensor([numbers.setdefault(rows[i]["modeldir"], len(numbers)) for i in chosen])
    finite = torch.stack([tensor.flatten(1).isfinite().all(1) for tensor in params.values()]).all(0)
    kept = [i for i, good in zip(chosen, finite.tolist(), strict=True) if good]
    facts = {name: _fact([rows[i][name] for i in kept]) for name in rows[0] if name}
    return CNNZoo(spec, {name: tensor[finite] for name, tensor in params.items()}, network[finite], facts)


def _weights(path: Path) -> np.ndarray:
    with refusing(path, "weights.npy of the zoo: copy it again"):
        size_of(path)
        weights = np.load(path, mmap_mode="r", allow_pickle=False)
        if weights.ndim != 2 or weights.dtype not in (np.float16, np.float32, np.float64):
            raise FileFormatError(f"{path} holds {weights.dtype} {weights.shape}; expected floats [N, parameters].")
        return weights


def _metrics(path: Path, count: int) -> list[dict[str, str]]:
    with refusing(path, "metrics.csv.gz of the zoo: copy it again"):
        size_of(path)
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            return _table(_lines(file, path, 2 * count + 10), path, _METRICS)


def _lines(file: TextIO, path: Path, most: int) -> Iterator[str]:
    """The lines of a text, one at a time: of a packed one, nobody knows the size before."""
    number = 0
    while line := file.readline(_LINE):
        number += 1
        if number > most or len(line) == _LINE:
            raise FileFormatError(
                f"{path} has more than {most} lines, or one of {_LINE} characters; expected a line for each row of "
                "weights.npy: copy the zoo again."
            )
        yield line


def _table(lines: Iterable[str], path: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows by column; at least one, and each with a value for every column."""
    reader = csv.DictReader(lines)
    rows = list(reader)
    columns = list(reader.fieldnames or ())
    if not rows or not set(needed) <= set(columns):
        raise FileFormatError(
            f"{path} has {len(rows)} rows and the columns {shortened(columns)}; expected a row and the columns "
            f"{list(needed)}: copy the zoo again."
        )
    for number, row in enumerate(rows, 1):
        further: list[str] = row.pop(None, [])  # type: ignore[call-overload]
        count = sum(value is not None for value in row.values()) + len(further)
        if count != len(columns):
            raise FileFormatError(
                f"{path}: row {number} has {count} values; expected {len(columns)}, the last one in the column "
                f"{columns[-1]!r}: copy the zoo again."
            )
    return rows


def _kind(row: dict[str, str], number: int, path: Path) -> tuple[str, int]:
    """Activation and step of row `number`; its accuracy must be a number, too."""
    column = "step"
    try:
        step, column = int(float(row[column])), "test_accuracy"
        float(row[column])
    except (ValueError, OverflowError) as error:
        raise FileFormatError(
            f"{path}: row {number} has {shortened(row[column])} in the column {column!r}; expected a number: copy the "
            "zoo again."
        ) from error
    return row["config.activation"], step


def _fact(values: list[str]) -> Tensor | tuple[str, ...]:
    try:
        return torch.tensor([float(value) for value in values], dtype=torch.float64)
    except ValueError:
        return tuple(values)


def _layout(path: Path) -> list[_Variable]:
    lines = read_bytes(path, _LAYOUT_BYTES).decode().splitlines(keepends=True)
    rows = _table(lines, path, _LAYOUT)
    return sorted((_variable(row, path) for row in rows), key=lambda variable: variable.start)


def _variable(row: dict[str, str], path: Path) -> _Variable:
    name, start, end, shape = (row[column] for column in _LAYOUT)
    owner, _, role = name.rpartition("/")
    role = role.partition(":")[0]
    sizes = tuple(int(n) for n in re.findall("[0-9]+", shape)) if _SHAPE.match(shape.strip()) else ()
    whole = re.fullmatch("[0-9]{1,9} [0-9]{1,9}", f"{start} {end}")
    if len(sizes) not in _AXES.get(role, ()) or not whole or math.prod(sizes) != int(end) - int(start):
        raise FileFormatError(
            f"{path}: variable {shortened(name)} of shape {shortened(shape)[1:-1]} in columns {shortened(start)[1:-1]} "
            f"to {shortened(end)[1:-1]}; expected a kernel or bias whose shape fits its columns."
        )
    return _Variable(owner, role, int(start), int(end), sizes)


def _params(layout: list[_Variable], weights: Tensor, activation: str) -> tuple[NetworkSpec, Params]:
    """Kernels and biases by layer, in the order of their columns."""
    owners = list(dict.fromkeys(variable.owner for variable in layout))
    by_role = {(variable.owner, variable.role): variable for variable in layout}
    end = max(variable.end for variable in layout)
    if end > weights.shape[1] or any((owner, "kernel") not in by_role for owner in owners):
        raise FileFormatError(
            f"the layout of layers {shortened(owners)} ends at column {end}; expected a kernel each, within "
            f"{weights.shape[1]} columns."
        )
    layers, params = [], {}
    for i, owner in enumerate(owners):
        kernel, bias = by_role[owner, "kernel"], by_role.get((owner, "bias"))
        *window, fan_in, fan_out = kernel.shape
        tensor = weights[:, kernel.start : kernel.end].unflatten(1, kernel.shape)
        after = Activation("identity" if i == len(owners) - 1 else activation)
        names = f"layers.{i}.weight", f"layers.{i}.bias" if bias else None
        conv = {"kernel": (window[0], window[1]), "stride": STRIDE} if len(window) == 2 else {}
        layers.append(Layer(names[0], names[1], fan_in, fan_out, after, **conv))  # type: ignore[arg-type]
        params[names[0]] = tensor.movedim((-1, -2), (1, 2)).float().contiguous()
        if bias is not None and names[1] is not None:
            params[names[1]] = weights[:, bias.start : bias.end].float().contiguous()
    return NetworkSpec(tuple(layers)), params
