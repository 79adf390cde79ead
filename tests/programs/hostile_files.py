"""Reads small files that ask for much, made in a folder; writes what each cost, at last the peak memory, to told.jsonl.

usage: hostile_files.py FOLDER
"""

import gzip
import json
import os
import resource
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tests.mutations import shared_lists
from weightedit.data.images import load_picture
from weightedit.data.inr_files import load_inrs, save_inrs
from weightedit.data.small_cnn_zoo import load_small_cnn_zoo
from weightedit.data.weight_set_tables import first_rows, open_parquet
from weightedit.editing.one_shot import OneShotEditor
from weightedit.errors import FileFormatError
from weightedit.inr.convention import DWSNETS
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack
from weightedit.metanet.registry import make_metanet
from weightedit.network.spec import NetworkSpec


def foreign(path: Path, content: object) -> Callable[[], object]:
    torch.save(content, path)
    return lambda: load_inrs(path, DWSNETS, size=(4, 4))


def deflated(path: Path) -> Callable[[], object]:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/data.pkl", "w") as entry:
        for _ in range(256):
            entry.write(bytes(2**20))
    return lambda: load_inrs(path, DWSNETS, size=(4, 4))


def tall(path: Path) -> Callable[[], object]:
    save_inrs(INRStack(initial_params(1, (2, 4, 1)), DWSNETS, 100_000, 100_000), path)
    return lambda: load_inrs(path).render()


def bomb(path: Path) -> Callable[[], object]:
    header = b"IHDR" + struct.pack(">IIBBBBB", 13_000, 13_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT")
    return lambda: load_picture(path)


def packed(folder: Path) -> Callable[[], object]:
    folder.mkdir()
    np.save(folder / "weights.npy", np.zeros((6, 29), np.float32))
    (folder / "metrics.csv.gz").write_bytes(128 * gzip.compress(bytes(2**25)))  # 4 GB, one line
    return lambda: load_small_cnn_zoo(folder, "relu")


def editors(folder: Path) -> dict[str, Callable[[], object]]:
    """Editors whose configs were changed by hand."""
    metanet = make_metanet("gauge-gmn", [NetworkSpec.siren((2, 4, 1))], layers=1, probes=0, node_width=4, edge_width=4)
    found: dict[str, Callable[[], object]] = {}
    for change in ({"layers": 10**9}, {"layers": 10**6}, {"node_width": 10**6}, {"channels": 10**6}, {"levels": 10**6}):
        place = folder / "-".join(map(str, next(iter(change.items()))))
        OneShotEditor(metanet, "dilate").save_pretrained(place, "card")
        config = json.loads((place / "config.json").read_text())
        config["metanet"]["config"].update(change)
        (place / "config.json").write_text(json.dumps(config))
        found[place.name] = lambda place=place: OneShotEditor.from_pretrained(place)
    return found


def rows(path: Path, count: int) -> Callable[[], object]:
    """The first rows of a table of 120 MB that takes 13 kB on the disk."""
    kind = pa.list_(pa.float32(), 600)
    pq.write_table(
        pa.table({"weights": pa.FixedSizeListArray.from_arrays(np.zeros(3 * 10**7, np.float32), type=kind)}), path
    )
    return lambda: first_rows(open_parquet(path), path, count)


def main(folder: Path) -> None:
    os.mkfifo(folder / "pipe.pth")
    cases = {
        "tall": tall(folder / "tall.safetensors"),
        "stride 0": foreign(folder / "stride.pth", {"seq.0.weight": torch.zeros(1).expand(10**10)}),
        "deflated": deflated(folder / "deflated.pth"),
        "shared lists": foreign(folder / "lists.pth", {"seq.0.weight": shared_lists(), "label": shared_lists()}),
        "picture": bomb(folder / "bomb.png"),
        "packed": packed(folder / "zoo"),
        "pipe": lambda: load_inrs(folder / "pipe.pth", DWSNETS, size=(4, 4)),
        "device": lambda: load_picture("/dev/zero"),
        "rows": rows(folder / "rows.parquet", 50_000),
        **editors(folder),
    }
    told: list[dict[str, object]] = []
    for name, read in cases.items():
        started, message = time.process_time(), "read"
        try:
            read()
        except FileFormatError as error:
            message = str(error)
        told.append({"name": name, "seconds": time.process_time() - started, "message": message})
    (row,) = first_rows(open_parquet(folder / "rows.parquet"), folder / "rows.parquet", 1)["weights"].to_pylist()
    told.append({"row": len(row), "peak": peak()})
    (folder / "told.jsonl").write_text("\n".join(map(json.dumps, told)))


def peak() -> int:
    """The most memory that this program has held, in bytes; ru_maxrss begins at that of the one that started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
