"""The Parquet files of a weight set: INRs and images to columns and back, without a step per row.

Here: column types as `datasets` names them, writing the rows of one split, reading the first rows of a file, checked
against the card. What the columns mean is written in weight_sets.py, the card is in weight_set_cards.py.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weightedit.errors import FileFormatError
from weightedit.inr.stack import INRStack
from weightedit.spec import NetworkSpec

if TYPE_CHECKING:
    import pyarrow as pa

_ROW_GROUP = 5_000


def column_names(stack: INRStack) -> list[str]:
    """The columns of a set of these INRs; label and psnr only where they are known."""
    known = [name for name in ("label", "psnr") if getattr(stack, name) is not None]
    return ["weights", "image", "index", *known]


def _features(stack: INRStack, pixels: int) -> Any:
    """The `datasets` features of the columns."""
    import datasets

    value = datasets.Value
    # Sequence gives a List from datasets 4 on, and the same Arrow type before.
    columns: dict[str, Any] = {
        "weights": datasets.Sequence(value("float32"), length=stack.spec.parameter_count),
        "image": datasets.Sequence(value("uint8"), length=pixels),
        "index": value("int64"),
        "label": value("int64"),
        "psnr": value("float32"),
    }
    return datasets.Features({name: columns[name] for name in column_names(stack)})


def write_table(stack: INRStack, images: Tensor, path: Path) -> None:
    """Write INRs and their images (uint8 [N, C, H, W]) as one parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "weights": torch.cat([stack.params[name].flatten(1) for name in stack.spec.param_shapes()], dim=1),
        "image": images.permute(0, 2, 3, 1).flatten(1),
        **{name: getattr(stack, name) for name in column_names(stack)[2:]},
    }
    schema = _features(stack, images[0].numel()).arrow_schema
    arrays = [_array(columns[field.name], field.type) for field in schema]
    pq.write_table(
        pa.Table.from_arrays(arrays, schema=schema),
        path,
        compression="zstd",
        row_group_size=_ROW_GROUP,
        use_dictionary=False,
        column_encoding={"weights.list.element": "BYTE_STREAM_SPLIT"},  # 8 % smaller than plain floats
    )


def _array(values: Tensor, kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    flat = values.detach().cpu().contiguous().reshape(-1).numpy()
    if values.dim() == 1:
        return pa.array(flat, type=kind)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, type=kind.value_type), type=kind)


def read_table(path: Path, card: dict[str, Any], count: int, limit: int | None) -> pa.Table:
    """The first rows of a parquet file, its columns and types checked against the card."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        if file.metadata.num_rows != count or set(file.schema_arrow.names) != set(card["columns"]):
            raise FileFormatError(
                f"{path} has {file.metadata.num_rows} rows of {file.schema_arrow.names}; expected {count} of "
                f"{card['columns']} as the card states: copy it again."
            )
        groups: list[int] = []
        rows = 0
        while rows < min(limit or count, count):
            rows += file.metadata.row_group(len(groups)).num_rows
            groups.append(len(groups))
        table = file.read_row_groups(groups).slice(0, limit)
    except (pa.ArrowException, OSError) as error:
        raise FileFormatError(
            f"{path} is no readable parquet ({error}); expected a whole file: copy it again."
        ) from error
    _check_types(table, card, path)
    return table


def _check_types(table: pa.Table, card: dict[str, Any], path: Path) -> None:
    import pyarrow as pa

    expected = {
        "weights": (pa.float32(), sum(math.prod(shape) for _, shape in card["parameters"])),
        "image": (pa.uint8(), card["height"] * card["width"] * card["channels"]),
        "psnr": (pa.float32(), 1),
    }
    for name in table.column_names:
        kind = table.schema.field(name).type
        found = (kind.value_type, kind.list_size) if pa.types.is_fixed_size_list(kind) else (kind, 1)
        wanted = expected.get(name, (pa.int64(), 1))
        if found != wanted or table[name].null_count:
            raise FileFormatError(
                f"{path} has the column {name} of {kind} with {table[name].null_count} nulls; expected {wanted[1]} "
                f"values of {wanted[0]} in each row: write the set again."
            )


def as_tensor(column: pa.ChunkedArray) -> Tensor:
    """A column without nulls as a tensor [N] or [N, length] of its own memory."""
    import pyarrow as pa

    array = column.combine_chunks()
    if not pa.types.is_fixed_size_list(array.type):
        return torch.from_numpy(array.to_numpy().copy())
    return torch.from_numpy(array.flatten().to_numpy().copy()).reshape(len(array), array.type.list_size)


def unflatten(weights: Tensor, spec: NetworkSpec) -> dict[str, Tensor]:
    """[N, P] cut into parameters in the spec's order, each contiguous."""
    shapes = spec.param_shapes()
    parts = weights.split([math.prod(shape) for shape in shapes.values()], dim=1)
    pairs = zip(shapes.items(), parts, strict=True)
    return {name: part.contiguous().reshape(-1, *shape) for (name, shape), part in pairs}
