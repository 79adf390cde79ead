"""Checkpoints: round trips, interrupted saves, files that are not what they say, and the hub behind its client."""

import io
import json
import math
import pickle
import struct
from pathlib import Path

import pytest
import torch

from weightedit.errors import FileFormatError, ParamsError, WeightEditError
from weightedit.files import checkpoint
from weightedit.files.checkpoint import (
    built_from,
    load_checkpoint,
    load_into,
    push_to_hub,
    save_checkpoint,
)

TENSORS = {
    "layers.0.weight": torch.arange(6.0).view(2, 3).t(),  # not contiguous
    "layers.0.bias": torch.tensor([1.0, -0.0, 1e-40]).bfloat16(),
    "count": torch.tensor(7),
    "mask": torch.tensor([True, False]),
}
CONFIG = {"widths": [2, 3], "omega": 30.1, "name": "ä", "nested": {"none": None, "yes": True}}


@pytest.fixture
def saved(tmp_path):
    return save_checkpoint(tmp_path / "made" / "model", TENSORS, CONFIG, "# Card\n")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)


def test_round_trip(saved, no_network):
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    tensors, config = load_checkpoint(str(saved), required=["widths", "omega"])
    assert config == CONFIG and tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype and torch.equal(tensors[name], value)
    assert (saved / "README.md").read_text() == "# Card\n"
    first = (saved / "model.safetensors").read_bytes()
    save_checkpoint(saved, tensors, config, "# Card\n")
    assert (saved / "model.safetensors").read_bytes() == first


def test_replaces_a_checkpoint(saved):
    save_checkpoint(saved, {"a": torch.ones(1)}, {"widths": (2, 3)}, "new")
    tensors, config = load_checkpoint(saved)
    assert list(tensors) == ["a"] and config == {"widths": [2, 3]}
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_loaded_tensors_outlive_their_file(saved):
    tensors, _ = load_checkpoint(saved)
    (saved / "model.safetensors").write_bytes(b"")
    assert torch.equal(tensors["layers.0.weight"], TENSORS["layers.0.weight"])


@pytest.mark.parametrize("point", ["write_folder", "first rename", "second rename"])
def test_an_interrupted_save_loses_nothing(saved, monkeypatch, point):
    write, rename, renames = checkpoint.write_folder, Path.rename, []

    def broken_write(folder, files):
        write(folder, dict(list(files.items())[:1]))
        raise KeyboardInterrupt

    def broken_rename(path, target):
        renames.append(path)
        if len(renames) == (1 if point == "first rename" else 2):
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        if point == "write_folder":
            patch.setattr(checkpoint, "write_folder", broken_write)
        else:
            patch.setattr(Path, "rename", broken_rename)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(saved, {"a": torch.ones(1)}, {}, "new")
    assert load_checkpoint(saved)[1] == CONFIG
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    save_checkpoint(saved, {"a": torch.ones(1)}, {"new": 1}, "new")
    assert load_checkpoint(saved)[1] == {"new": 1}


def test_weights_of_another_save_are_refused(saved):
    other = save_checkpoint(saved.parent / "other", {**TENSORS, "count": torch.tensor(8)}, CONFIG, "")
    (other / "model.safetensors").replace(saved / "model.safetensors")
    with pytest.raises(
        FileFormatError, match="has SHA-256 .*, but config.json states .*; expected them to agree: one of the two"
    ):
        load_checkpoint(saved)


def test_a_checkpoint_of_before_states_no_hash(saved):
    config = json.loads((saved / "config.json").read_text())
    assert len(config.pop("weights_sha256")) == 64
    (saved / "config.json").write_text(json.dumps(config))
    assert load_checkpoint(saved)[1] == CONFIG


def test_words_that_older_checkpoints_spell_otherwise(tmp_path):
    older = {"rule": {"levelling": 256, "output": "normalised"}, "note": "a levelling editor"}
    _, config = load_checkpoint(save_checkpoint(tmp_path / "older", TENSORS, older, "# Card\n"))
    assert config["rule"] == {"leveling": 256, "output": "normalized"} and config["note"] == older["note"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path, monkeypatch, value, dtype):
    tensors = {**TENSORS, "layers.1.bias": torch.tensor([1.0, value]).to(dtype)}
    with pytest.raises(ParamsError, match="NaN or infinite numbers in 'layers.1.bias'; expected finite numbers"):
        save_checkpoint(tmp_path / "model", tensors, CONFIG, "")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_not_finite", lambda tensors: "")
        save_checkpoint(tmp_path / "model", tensors, CONFIG, "")
    with pytest.raises(FileFormatError, match="NaN or infinite numbers in 'layers.1.bias'; expected finite weights"):
        load_checkpoint(tmp_path / "model")


def test_refuses_to_overwrite_what_is_not_a_checkpoint(saved, tmp_path):
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(FileFormatError, match=r"is not a checkpoint folder \(notes.txt\); expected nothing there"):
        save_checkpoint(saved, {}, {}, "")
    assert (saved / "notes.txt").read_text() == "mine" and load_checkpoint(saved)[1] == CONFIG
    (tmp_path / "readme" / "README.md").parent.mkdir()
    (tmp_path / "readme" / "README.md").write_text("a project's")
    with pytest.raises(FileFormatError, match=r"is not a checkpoint folder \(README.md\)"):
        save_checkpoint(tmp_path / "readme", {}, {}, "")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileFormatError, match="not a folder"):
        save_checkpoint(tmp_path / "file", {}, {}, "")
    (tmp_path / "empty").mkdir()
    save_checkpoint(tmp_path / "empty", TENSORS, CONFIG, "")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"format_version": 1}, "config holds 'format_version'; save_checkpoint writes that key itself"),
        ({"weights_sha256": ""}, "config holds 'weights_sha256'; save_checkpoint writes that key itself"),
        ({"a": torch.ones(1)}, "a value that JSON cannot hold: .*Tensor.*; expected str"),
        ({"a": float("nan")}, "a value that JSON cannot hold"),
        ({1: "a"}, "a dict that JSON does not give back as it is"),
    ],
)
def test_configs_that_json_cannot_hold(tmp_path, config, message):
    with pytest.raises(WeightEditError, match=message):
        save_checkpoint(tmp_path / "model", TENSORS, config, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON.*expected one object"),
        ("[1]", "holds a JSON list; expected an object"),
        ('{"a": 1, "a": 2}', r"a key stands twice in \['a', 'a'\]"),
        ('{"a": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("\udcff", "is not valid JSON"),
        ('{"widths": [1]}', "has no key 'format_version'; expected a config written by save_checkpoint"),
        ('{"format_version": 2}', "has format_version 2; this version of weightedit reads 1"),
        ('{"format_version": 1, "other": 1}', "lacks 'widths', 'omega'; it has 'other'"),
    ],
)
def test_configs_that_are_refused(saved, text, message):
    (saved / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(FileFormatError, match=message):
        load_checkpoint(saved, required=["widths", "omega"])


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def forged(header, body=b""):
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(data)) + data + body


def zipped():
    stream = io.BytesIO()
    torch.save({"a": torch.ones(2)}, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"\(0 bytes\) is not a safetensors file"),
        (struct.pack("<Q", 2**62), "is not a safetensors file"),
        (forged(b"{}  ")[:-1], "is not a safetensors file"),
        (forged({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 8), "not a safetensors file"),
        (forged({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 16]}}, b"\0" * 16), "not a safetensors file"),
        (forged({"a": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 16), "not a safetensors file"),
        (forged({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 0]}}), "not a safetensors file"),
        (zipped(), "looks like a pickle, which is never opened here"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a git-lfs pointer .run `git lfs pull`"),
    ],
)
def test_weights_that_are_refused(saved, data, message):
    (saved / "model.safetensors").write_bytes(data)
    with pytest.raises(FileFormatError, match=message):
        load_checkpoint(saved)


def test_truncated_anywhere(saved):
    whole = (saved / "model.safetensors").read_bytes()
    for length in range(0, len(whole), 7):
        (saved / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match="expected a complete safetensors file: fetch or save it again"):
            load_checkpoint(saved)


def test_a_pickle_is_not_executed(saved, tmp_path):
    (saved / "model.safetensors").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    with pytest.raises(FileFormatError, match="looks like a pickle"):
        load_checkpoint(saved)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_missing_files(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileFormatError, match=f"{name} cannot be read .*check that the folder is complete"):
        load_checkpoint(saved)


def test_a_hub_name_goes_through_the_client(saved, monkeypatch, tmp_path):
    """Which names are the hub's is test_location.py's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(saved))
    assert load_checkpoint("owner/name", revision="v1")[1] == CONFIG


def test_push_to_hub(saved, monkeypatch):
    calls = []

    class Api:
        def __init__(self, token):
            calls.append(("token", token))

        def create_repo(self, repo_id, **options):
            calls.append(("create", repo_id, options["private"], options["exist_ok"]))

        def upload_folder(self, **options):
            calls.append(("upload", options["repo_id"], options["folder_path"], options["allow_patterns"]))
            return type("Commit", (), {"commit_url": "https://hub/commit"})()

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert push_to_hub(saved, "owner/name", private=True, token="t") == "https://hub/commit"
    files = list(checkpoint.FILES)
    assert calls == [("token", "t"), ("create", "owner/name", True, True), ("upload", "owner/name", saved, files)]
    (saved / "model.safetensors").write_bytes(b"")
    with pytest.raises(FileFormatError):
        push_to_hub(saved, "owner/name")
    assert len(calls) == 3


def test_load_into_round_trip():
    source, target = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3).double()
    source(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    load_into(target, source.state_dict())
    assert torch.equal(target.running_mean, source.running_mean.double()) and target.num_batches_tracked == 1


def test_load_into_names_every_difference_at_once():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tensors = dict(before) | {
        "0.weight": torch.zeros(3, 3),
        "extra": torch.zeros(1),
        "1.num_batches_tracked": torch.ones(()),
    }
    del tensors["0.bias"]
    with pytest.raises(ParamsError) as caught:
        load_into(model, tensors)
    for part in (
        "the tensors do not fit Sequential: ",
        "0.weight has shape (3, 3), expected (3, 2)",
        "1.num_batches_tracked has dtype torch.float32, expected torch.int64",
        "missing 0.bias (3,)",
        "unexpected extra (1,)",
        "Build the module from the checkpoint's own config",
    ):
        assert part in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_config_builds_no_more_than_its_tensors_explain():
    tensors = {"a": torch.ones(10)}
    with built_from("folder", tensors, "rule"):
        torch.nn.Linear(1000, 1000), torch.eye(1000)
    for build in (
        lambda: torch.nn.Linear(10**7, 10**7),
        lambda: torch.eye(10**6),
        lambda: torch.randn(10**5, 10**5),
        lambda: [torch.nn.Linear(1, 1) for _ in range(10**9)],
    ):
        message = r"folder holds no rule \(ValueError: its config asks for far more numbers than its tensors have\)"
        with pytest.raises(FileFormatError, match=message), built_from("folder", tensors, "rule"):
            build()
