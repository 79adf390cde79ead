"""Seeded damage to files, one change at a time: of their bytes, and of what the bytes say (JSON, safetensors, ...)."""

import copy
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import torch

# What stands in a JSON text in place of a value; the keys are written first, as strings.
_RAW = {
    "@huge": "9" * 400,
    "@beyond64": str(2**64),
    "@infinite": "1e999",
    "@nan": "NaN",
    "@deep": "[" * 3000 + "]" * 3000,
    "@nested": '{"a":' * 60 + "1" + "}" * 60,
    "@surrogate": '"\\ud800"',
}
_VALUES: list[Any] = [None, True, False, -1, 0, 1, 2, 3, 7, 0.5, 1e308, -1e-300, 10**9, 10**12, 2**62, "", "x", "1"]
_VALUES += ["line\nline", "y" * 5000, [], [1], [[1, 2], [3]], [0.5, "a"], {}, {"a": 1}, [None] * 3, list(range(2000))]
_VALUES += list(_RAW)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """A flipped, cut, repeated, zeroed or inserted part; sometimes nothing is left."""
    at, kind = rng.randrange(len(data)), rng.randrange(8)
    length = min(rng.choice([1, 2, 4, 8, 64, 1000]), len(data) - at)
    match kind:
        case 0:
            return data[:at]
        case 1:
            return data[:at] + data[at + length :]
        case 2:
            return data[:at] + rng.randbytes(length) + data[at:]
        case 3:
            return data[:at] + bytes(length) + data[at + length :]
        case 4:
            return data[:at] + b"\xff" * length + data[at + length :]
        case 5:
            other = rng.randrange(len(data))
            return data[:at] + data[other : other + length] + data[at + length :]
        case 6:
            return data + rng.randbytes(length)
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def mutate_json(rng: random.Random, value: Any) -> bytes:
    """The text of the object after one node, or one key, became something else."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    holder, key = rng.choice(places)
    match rng.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(["", "unknown", "a\nb", "layers"])] = holder.pop(key)
        case 2 if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        case 3:
            other, place = rng.choice(places)
            holder[key] = copy.deepcopy(other[place])
        case 4 if isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = rng.choice([-holder[key], holder[key] + 0.5, holder[key] * 10**7, float(holder[key]) ** 2])
        case _:
            holder[key] = rng.choice(_VALUES)
    return json_bytes(value)


def json_bytes(value: Any) -> bytes:
    """JSON text, with the values that only a hostile writer writes."""
    text = json.dumps(value)
    for name, raw in _RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode()


def _places(value: Any) -> Any:
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for key, item in items:
        yield value, key
        if isinstance(item, (dict, list)) and item:
            yield from _places(item)


def mutate_safetensors(rng: random.Random, data: bytes) -> bytes:
    """The header's JSON, a value of its metadata that is JSON itself, or any bytes."""
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    metadata = header.get("__metadata__", {})
    match rng.randrange(4):
        case 0:
            return mutate_bytes(rng, data)
        case 1 if metadata:
            name = rng.choice(sorted(metadata))
            metadata[name] = _mutated_text(rng, metadata[name])
            text = json.dumps(header).encode()
        case 2:
            shapes = [entry for name, entry in header.items() if name != "__metadata__"]
            entry = rng.choice(shapes)
            entry["dtype"] = rng.choice(["F8_E4M3", "F8_E5M2", "I8", "BOOL", "U8", "BF16", "F16", "I32", "U16", "F4"])
            size = {"F16": 2, "BF16": 2, "U16": 2, "I32": 4}.get(entry["dtype"], 1)
            entry["shape"] = [*entry["shape"], (entry["data_offsets"][1] - entry["data_offsets"][0]) // size]
            for n in range(len(entry["shape"]) - 1):
                entry["shape"][n] = 1
            text = json.dumps(header).encode()
        case _:
            text = mutate_json(rng, header)
    return struct.pack("<Q", len(text)) + text + rest


def _mutated_text(rng: random.Random, text: str) -> str:
    try:
        return mutate_json(rng, [json.loads(text)])[1:-1].decode()
    except ValueError:
        return mutate_bytes(rng, text.encode()).decode(errors="replace") if text else "x"


def mutate_torch(rng: random.Random, content: dict[str, Any]) -> bytes:
    """A state dict with one entry replaced, or the archive of torch.save with its pickle or its bytes changed."""
    kind = rng.randrange(5)
    if kind >= 3:
        name = rng.choice(sorted(content))
        content = dict(content)
        if kind == 3:
            content[name] = rng.choice(_EXOTIC)(rng)
        else:
            content[rng.choice(_NAMES)] = content.pop(name)
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=rng.random() < 0.8)
    data = buffer.getvalue()
    if kind == 0:
        return mutate_bytes(rng, data)
    return _with_mutated_pickle(rng, data) if kind < 3 and zipfile.is_zipfile(io.BytesIO(data)) else data


def _with_mutated_pickle(rng: random.Random, data: bytes) -> bytes:
    changed = io.BytesIO()
    compression = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(changed, "w", compression) as new:
        for entry in old.namelist():
            held = old.read(entry)
            new.writestr(entry, mutate_bytes(rng, held) if entry.endswith("data.pkl") else held)
    return changed.getvalue()


def shared_lists(depth: int = 60) -> list[Any]:
    """A list of two equal lists of two equal lists ...: small in memory, endless in print."""
    value: list[Any] = [1]
    for _ in range(depth):
        value = [value, value]
    return value


def shared_mappings(depth: int = 60) -> dict[str, Any]:
    """As shared_lists, of mappings."""
    value: dict[str, Any] = {"a": 1}
    for _ in range(depth):
        value = {"a": value, "b": value}
    return value


def _deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(100):
        value = [value]
    return value


_NAMES = ["", "seq.0.weight\n", "seq." + "9" * 5000 + ".weight", "seq.1000000000.bias", "net.0.weight", "label"]
_EXOTIC: list[Callable[[random.Random], Any]] = [
    lambda rng: torch.empty(4, 2, device="meta"),
    lambda rng: torch.eye(4).to_sparse(),
    lambda rng: torch.eye(4).to_sparse_csr(),
    lambda rng: torch.quantize_per_tensor(torch.eye(4), 0.1, 0, torch.qint8),
    lambda rng: torch.eye(4, dtype=torch.complex64),
    lambda rng: torch.eye(4).to(torch.float8_e4m3fn),
    lambda rng: torch.eye(4) > 0,
    lambda rng: torch.zeros(1).expand(10**9),
    lambda rng: torch.zeros(1, 1).expand(rng.choice([10**6, 10**10]), 10**4),
    lambda rng: torch.zeros(()),
    lambda rng: torch.zeros(0, 10**15),
    lambda rng: torch.full((4, 2), float("nan")),
    lambda rng: rng.choice([None, 10**5000, -1, "text", 2**64, 0.5, b"bytes", [], {}, (1,), "a\nb" * 1000]),
    lambda rng: shared_lists(),
    lambda rng: _deep(),
    lambda rng: torch.tensor(2**62),
    lambda rng: torch.nn.Parameter(torch.eye(4)),
]
