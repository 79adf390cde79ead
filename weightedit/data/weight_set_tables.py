"""The Parquet files of a weight set: INRs and images to columns and back, without a step per row.

Here: column types as `datasets` names them, writing the rows of one split, reading the first rows of a file, checked
against the card. What the columns mean is written in weight_sets.py, the card is in weight_set_cards.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weightedit.errors import FileFormatError
from weightedit.files.reading import check_declared, refusing, shortened, size_of
from weightedit.inr.stack import INRStack
from weightedit.network.spec import NetworkSpec

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_ROW_GROUP = 5_000
_BATCH = 5_000  # rows that are unpacked at once
_BUFFER = 2**20  # bytes of a column that are read at once


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
    with refusing(path, "a whole Parquet file: copy it again"), open_parquet(path) as file:
        names = file.schema_arrow.names
        if file.metadata.num_rows != count or sorted(names) != sorted(card["columns"]):
            raise FileFormatError(
                f"{path} has {file.metadata.num_rows} rows of {shortened(names)}; expected {count} of "
                f"{shortened(card['columns'])} as the card states: copy it again."
            )
        _check_types(file.schema_arrow, card, path)
        table = first_rows(file, path, count if limit is None else min(limit, count))
    return table


def open_parquet(path: Path, text: Sequence[str] = ()) -> pq.ParquetFile:
    """A regular Parquet file, of which its footer is read; the columns `text` will come as dictionaries."""
    import pyarrow.parquet as pq

    size_of(path)
    return pq.ParquetFile(path, buffer_size=_BUFFER, read_dictionary=list(text))


def first_rows(file: pq.ParquetFile, path: Path, count: int) -> pa.Table:
    """The first `count` rows, and no more, where the file can be believed to hold them; not for strings as they are.

    Raises:
        FileFormatError: for rows that come to far more than the file, fewer of them than its footer says, and nulls.
    """
    import pyarrow as pa

    check_declared(path, count * sum(_bytes_of(field.type) for field in file.schema_arrow))
    batches, rows = [], 0
    for batch in file.iter_batches(batch_size=max(1, min(count, _BATCH))):
        batches.append(batch.slice(0, count - rows))
        rows += len(batches[-1])
        if rows == count:
            break
    if rows != count:
        raise FileFormatError(f"{path} has {rows} rows; expected {count} as it says: copy it again.")
    table = pa.Table.from_batches(batches)
    for name in table.column_names:
        listed = pa.types.is_fixed_size_list(table.schema.field(name).type)
        if any(chunk.null_count or (listed and chunk.flatten().null_count) for chunk in table[name].chunks):
            raise FileFormatError(
                f"{path} has nulls in the column {name}; expected a value in each row: write it again."
            )
    return table


def _bytes_of(kind: pa.DataType) -> int:
    """Of one value; of those whose size varies, what a reader allocates at least."""
    import pyarrow as pa

    if pa.types.is_fixed_size_list(kind):
        return kind.list_size * _bytes_of(kind.value_type)
    return max(1, kind.bit_width // 8) if pa.types.is_primitive(kind) else 16


def _check_types(schema: pa.Schema, card: dict[str, Any], path: Path) -> None:
    import pyarrow as pa

    expected = {
        "weights": (pa.float32(), sum(math.prod(shape) for _, shape in card["parameters"])),
        "image": (pa.uint8(), card["height"] * card["width"] * card["channels"]),
        "psnr": (pa.float32(), 1),
    }
    for name in schema.names:
        kind = schema.field(name).type
        found = (kind.value_type, kind.list_size) if pa.types.is_fixed_size_list(kind) else (kind, 1)
        wanted = expected.get(name, (pa.int64(), 1))
        if found != wanted:
            raise FileFormatError(
                f"{path} has the column {name} of {kind}; expected {wanted[1]} values of {wanted[0]} in each row: "
                "write the set again."
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
