"""Every reader on hundreds of damaged files: read, or refused as a FileFormatError of one short line, in seconds."""

import gzip
import hashlib
import io
import json
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.mutations import mutate_bytes, mutate_json, mutate_safetensors, mutate_torch
from tests.networks import ACTIVATIONS, random_params
from weightedit.cli.description import describe
from weightedit.data.cnn_zoo import CNNZoo, load_zoo, save_zoo, split_by_network
from weightedit.data.images import load_images, load_picture
from weightedit.data.inr_files import load_inrs, save_inrs
from weightedit.data.small_cnn_zoo import load_small_cnn_zoo
from weightedit.data.weight_sets import load_weight_set, save_weight_set
from weightedit.editing.curvature import LearnedKFAC, LearnedKFACConfig
from weightedit.editing.editor import Editor
from weightedit.editing.one_shot import OneShotEditor
from weightedit.editing.predictive_editor import PredictiveEditor
from weightedit.editing.predictor import Predictor, PredictorConfig
from weightedit.errors import FileFormatError
from weightedit.inr.convention import DWSNETS
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack
from weightedit.metanet.registry import METANETS, make_metanet
from weightedit.network.spec import NetworkSpec
from weightedit.optim.metanet_rule import MetanetRule
from weightedit.optim.metanet_rule_config import MetanetRuleConfig
from weightedit.optim.mlp_rule import MLPRule, MLPRuleConfig
from weightedit.optim.rule_module import RuleModule
from weightedit.prediction import WeightSpacePredictor
from weightedit.training.state import load_state, read_log, save_state

MUTATIONS, SECONDS, LINE = 500, 5, 1500
FEWER = {"predictor": 300, "picture set": 300}  # of files that take a tenth of a second to read
SIREN = NetworkSpec.siren((2, 4, 1), 30.0)


class Reader(NamedTuple):
    """How one kind of file is made, damaged and read.

    `make` writes whole files into a folder; `damage` changes one of them, `read` opens it.
    """

    make: Callable[[Path], object]
    damage: Callable[[random.Random, Path, dict[Path, bytes]], None]
    read: Callable[[Path], object]


def _inrs(count: int = 6) -> INRStack:
    generator = torch.Generator().manual_seed(0)
    params = initial_params(count, (2, 4, 1), generator=generator)
    number = torch.arange(count)
    provenance = {"init": "siren"}
    return INRStack(params, DWSNETS, 4, 4, number % 3, number, number % 3, 30.0 + number, provenance)


def _images(count: int = 6) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def _damage_checkpoint(rng: random.Random, folder: Path, files: dict[Path, bytes]) -> None:
    """Structure of the config most often; bytes of it, and the weights, sometimes."""
    config, weights = folder / "config.json", folder / "model.safetensors"
    match rng.randrange(6):
        case 0:
            data = mutate_safetensors(rng, files[weights])
            weights.write_bytes(data)
            stated = {**json.loads(files[config]), "weights_sha256": hashlib.sha256(data).hexdigest()}
            config.write_text(json.dumps(stated))
        case 1:
            config.write_bytes(mutate_bytes(rng, files[config]))
        case _:
            config.write_bytes(mutate_json(rng, json.loads(files[config])))


def _make_editor(folder: Path) -> None:
    metanet = make_metanet("gauge-gmn-b", [SIREN], node_width=4, edge_width=4, layers=1, probes=2, levels=1)
    OneShotEditor(metanet, "dilate", DWSNETS).save_pretrained(folder, "card", {"figures": {"edited": 0.5}})


def _make_predictive(folder: Path) -> None:
    predictor = Predictor(PredictorConfig(width=2, blocks=1))
    training = {"figures": {"dilate": {"edited": 0.5, "do nothing": 0.6}}}
    PredictiveEditor(predictor, LearnedKFAC(LearnedKFACConfig(width=2)), 2).save_pretrained(folder, "card", training)


SMALL = {"node_width": 2, "edge_width": 2, "hidden": 2, "width": 2, "layers": 1, "heads": 2, "levels": 1, "probes": 0}


def _make_predictors(folder: Path) -> None:
    for name, entry in METANETS.items():
        known = {key: value for key, value in SMALL.items() if key in entry.config.__dataclass_fields__}
        metanet = make_metanet(name, [SIREN], embedding=2, **known)
        WeightSpacePredictor(metanet, 3, hidden=2, convention=DWSNETS).save_pretrained(folder / name, "card")


def _one_of(names: list[str], damage: Callable[..., None]) -> Callable[[random.Random, Path, dict[Path, bytes]], None]:
    """Damage to one of several folders; the name of it is left in `chosen`."""

    def damage_one(rng: random.Random, folder: Path, files: dict[Path, bytes]) -> None:
        name = rng.choice(names)
        damage(rng, folder / name, files)
        (folder / "chosen").write_text(name)

    return damage_one


def _chosen(folder: Path) -> Path:
    return folder / (folder / "chosen").read_text()


def _make_rules(folder: Path) -> None:
    MetanetRule(MetanetRuleConfig(hidden=2)).save_pretrained(folder / "metanet", "card")
    MLPRule(MLPRuleConfig(hidden=(2,))).save_pretrained(folder / "mlp", "card")


def _make_state(folder: Path) -> None:
    record = {"device": "cpu", "log_bytes": 0, "seconds": 1.5, "best_step": 0, "best_validation": None, "skipped": 0}
    (folder / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null}\n')
    save_state(folder, 2, {"model/a": torch.ones(3)}, {**record, "skipped_in_row": 0})


def _damage_state(rng: random.Random, folder: Path, files: dict[Path, bytes]) -> None:
    log, state = folder / "log.jsonl", folder / "state" / "step-00000002"
    match rng.randrange(4):
        case 0:
            path = state / "state.safetensors"
            path.write_bytes(mutate_safetensors(rng, files[path]))
        case 1:
            lines = [json.loads(line) for line in files[log].splitlines()]
            log.write_bytes(mutate_json(rng, [lines])[1:-1].replace(b"}, {", b"}\n{").strip(b"[]"))
        case 2:
            log.write_bytes(mutate_bytes(rng, files[log]))
        case _:
            path = state / "state.json"
            path.write_bytes(mutate_json(rng, json.loads(files[path])))


def _make_foreign(folder: Path) -> None:
    params = {name.replace("layers", "seq"): tensor[0] for name, tensor in _inrs().params.items()}
    torch.save({**params, "label": 3}, folder / "a.pth")


def _damage_foreign(rng: random.Random, folder: Path, files: dict[Path, bytes]) -> None:
    content: dict[str, Any] = torch.load(io.BytesIO(files[folder / "a.pth"]), weights_only=True)
    if rng.random() < 0.3:
        content = {"image_idx": content.pop("label"), "params": content}
    (folder / "a.pth").write_bytes(mutate_torch(rng, content))


def _damage_safetensors(rng: random.Random, folder: Path, files: dict[Path, bytes]) -> None:
    (path,) = folder.glob("*.safetensors")
    path.write_bytes(mutate_safetensors(rng, files[path]))


def _make_foreign_safetensors(folder: Path) -> None:
    import safetensors.torch

    safetensors.torch.save_file(_inrs().params, folder / "a.safetensors")


def _damage_tables(rng: random.Random, folder: Path, files: dict[Path, bytes]) -> None:
    """The card, or a table, which the card then states as it is."""
    card, path = folder / "card.json", folder / "train.parquet"
    if rng.random() < 0.6:
        card.write_bytes(mutate_json(rng, json.loads(files[card])))
        return
    data = mutate_bytes(rng, files[path]) if rng.random() < 0.5 else _other_table(rng, files[path])
    path.write_bytes(data)
    stated = json.loads(files[card])
    stated["splits"]["train"]["sha256"] = hashlib.sha256(data).hexdigest()
    if "bytes" in stated["splits"]["train"]:
        stated["splits"]["train"]["bytes"] = len(data)
    card.write_text(json.dumps(stated))


def _other_table(rng: random.Random, data: bytes) -> bytes:
    """The table with a column, or rows, of another kind."""
    table = pq.read_table(io.BytesIO(data))
    at = rng.randrange(table.num_columns)
    name, column = table.column_names[at], table.column(at).combine_chunks()
    rows = len(column)
    others = [
        pa.array([None] * rows, column.type),
        pa.array([None] * rows),
        pa.array(["text"] * rows),
        pa.array([True] * rows),
        pa.array([2**63] * rows, pa.uint64()),
        pa.array([[1.0]] * rows),
        pa.array([b"bytes"] * rows),
        pa.array([{"a": 1}] * rows),
        pa.array(["a"] * rows).dictionary_encode(),
        pa.array([float("nan")] * rows),
        pa.FixedSizeListArray.from_arrays(pa.array([float("inf")] * (3 * rows), pa.float32()), 3),
        pa.array([0] * rows, pa.timestamp("s")),
        pa.array([0] * rows, pa.decimal128(5)),
        pa.array([1.5] * rows, pa.float16()),
    ]
    match rng.randrange(6):
        case 0:
            table = table.drop_columns([name])
        case 1:
            table = table.rename_columns({name: rng.choice(["", "other", "weights"])})
        case 2:
            table = table.slice(0, rng.randrange(rows))
        case 3:
            table = pa.concat_tables([table, table])
        case _:
            table = table.set_column(at, name, rng.choice(others))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _make_zoo(folder: Path) -> None:
    spec = NetworkSpec.cnn((1, 2, 3), ACTIVATIONS["relu"])
    facts = {"step": torch.arange(6.0, dtype=torch.float64), "config.optimizer": ("adam",) * 6}
    zoo = CNNZoo(spec, random_params(spec, count=6, dtype=torch.float32), torch.arange(6), facts)
    save_zoo(folder, split_by_network(zoo), {"images": "blobs"})


def _make_public_zoo(folder: Path) -> None:
    layout = 'varname,start_idx,end_idx,shape\nconv/kernel:0,0,18,"(3, 3, 1, 2)"\nconv/bias:0,18,20,"(2,)"\n'
    (folder / "layout.csv").write_text(layout + 'dense/kernel:0,20,26,"(2, 3)"\ndense/bias:0,26,29,"(3,)"\n')
    rows = "".join(f"relu,model{n},{86 * (n % 2)},0.{n}\n" for n in range(6))
    text = "config.activation,modeldir,step,test_accuracy\n" + rows
    (folder / "metrics.csv.gz").write_bytes(gzip.compress(text.encode()))
    np.save(folder / "weights.npy", np.random.default_rng(0).normal(size=(6, 29)).astype(np.float32))


def _damage_public_zoo(rng: random.Random, folder: Path, files: dict[Path, bytes]) -> None:
    layout, metrics, weights = (folder / name for name in ("layout.csv", "metrics.csv.gz", "weights.npy"))
    match rng.randrange(6):
        case 0:
            layout.write_bytes(mutate_bytes(rng, files[layout]))
        case 1:
            metrics.write_bytes(mutate_bytes(rng, files[metrics]))
        case 2:
            text = mutate_bytes(rng, gzip.decompress(files[metrics]))
            metrics.write_bytes(gzip.compress(text))
        case 3:
            data = files[weights]
            weights.write_bytes(mutate_bytes(rng, data[:128]) + data[128:])
        case 4:
            kind = rng.choice(["<i8", ">f4", "<f2", "<c8", "|S5", "<U3", "|b1", "<f8", "<M8[s]", "|O", "<f16"])
            shape = rng.choice(["(6, 29)", "(29,)", "(10000000000, 29)", "(6, 0)", "(-6, 29)", "(6, 29, 1)", "()"])
            header = f"{{'descr': '{kind}', 'fortran_order': {rng.random() < 0.5}, 'shape': {shape}, }}"
            weights.write_bytes(files[weights][:10] + header.ljust(117).encode() + b"\n" + files[weights][128:])
        case _:
            words = files[layout].decode().replace("\n", " \n ").split(" ")
            at = rng.randrange(len(words))
            words[at] = rng.choice(["", "x,1", '"(2,)"', "99999999999999999999,", "-1,2,", "²,", '"', "\0", "9" * 5000])
            layout.write_text(" ".join(words).replace(" \n ", "\n"), encoding="utf-8")


FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")


def _encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


def _damage_picture(rng: random.Random, folder: Path, files: dict[Path, bytes]) -> None:
    (folder / "a.png").write_bytes(mutate_bytes(rng, _encoded(rng.choice(FORMATS))))


def _make_picture_set(folder: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    columns = {"image": [{"bytes": _encoded("PNG"), "path": None}] * 4, "label": [0, 1, 2, 3]}
    pq.write_table(pa.table(columns, schema=features.arrow_schema), folder / "train.parquet")


def _damage_picture_set(rng: random.Random, folder: Path, files: dict[Path, bytes]) -> None:
    path = folder / "train.parquet"
    change = mutate_bytes if rng.random() < 0.5 else _other_table
    path.write_bytes(change(rng, files[path]))


def _read_kept(folder: Path) -> None:
    load_state(folder)
    read_log(folder)


READERS = {
    "editor": Reader(
        _make_editor, _damage_checkpoint, lambda folder: (Editor.from_pretrained(folder), describe(folder))
    ),
    "predictive editor": Reader(
        _make_predictive, _damage_checkpoint, lambda folder: (Editor.from_pretrained(folder), describe(folder))
    ),
    "predictor": Reader(
        _make_predictors,
        _one_of(list(METANETS), _damage_checkpoint),
        lambda folder: WeightSpacePredictor.from_pretrained(_chosen(folder)),
    ),
    "update rule": Reader(
        _make_rules,
        _one_of(["metanet", "mlp"], _damage_checkpoint),
        lambda folder: RuleModule.from_pretrained(_chosen(folder)),
    ),
    "refinement rule": Reader(
        lambda folder: LearnedKFAC(LearnedKFACConfig(width=2)).save_pretrained(folder, "card"),
        _damage_checkpoint,
        LearnedKFAC.from_pretrained,
    ),
    "run state": Reader(_make_state, _damage_state, _read_kept),
    "INRs": Reader(lambda folder: save_inrs(_inrs(), folder / "a.safetensors"), _damage_safetensors, load_inrs),
    "foreign torch": Reader(
        _make_foreign, _damage_foreign, lambda folder: load_inrs(folder / "a.pth", DWSNETS, size=(4, 4))
    ),
    "foreign safetensors": Reader(
        _make_foreign_safetensors, _damage_safetensors, lambda folder: load_inrs(folder, DWSNETS, size=(4, 4))
    ),
    "weight set": Reader(
        lambda folder: save_weight_set(folder, _inrs(), _images(), {"seed": 1}),
        _damage_tables,
        lambda folder: (load_weight_set(folder, "train"), describe(folder)),
    ),
    "CNN zoo": Reader(_make_zoo, _damage_tables, lambda folder: load_zoo(folder, "train")),
    "public CNN zoo": Reader(
        _make_public_zoo, _damage_public_zoo, lambda folder: load_small_cnn_zoo(folder, "relu", steps=None)
    ),
    "picture": Reader(
        lambda folder: (folder / "a.png").write_bytes(_encoded("PNG")),
        _damage_picture,
        lambda folder: load_picture(folder / "a.png", size=(8, 8), channels=3),
    ),
    "picture set": Reader(
        _make_picture_set,
        _damage_picture_set,
        lambda folder: load_images(folder / "train.parquet", size=(8, 8), channels=3),
    ),
}


@pytest.fixture
def alarm():
    """SIGPROF, sent after seconds of work (not of waiting for a busy machine), raises."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, late)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


def _fault(read: Callable[[Path], object], folder: Path) -> str | None:
    """What is wrong with how a damaged file was treated."""
    try:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        read(folder)
    except FileFormatError as error:
        text = str(error)
        return None if "\n" not in text and len(text) <= LINE else "a message that is no short line"
    except BaseException as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path, name, alarm):
    reader = READERS[name]
    folder = tmp_path / "files"
    folder.mkdir()
    reader.make(folder)
    reader.read(folder) if not name.startswith(("predictor", "update")) else None
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    faults: Counter[str] = Counter()
    mutations = FEWER.get(name, MUTATIONS)
    for number in range(mutations):
        for path, data in files.items():
            path.write_bytes(data)
        reader.damage(random.Random(f"{name} {number}"), folder, files)
        if fault := _fault(reader.read, folder):
            faults[fault] += 1
    assert not faults, f"{faults.total()} of {mutations}: {faults.most_common(40)}"
