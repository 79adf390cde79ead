"""Weight sets: exact round trips, splits without leaks, what `datasets` reads, replacement, damage, every error."""

import dataclasses
import hashlib
import json
import os

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from weightedit.data.weight_sets import (
    WeightSet,
    load_weight_set,
    read_card,
    save_weight_set,
    split_by_image,
    verify_weight_set,
)
from weightedit.errors import FileFormatError, ParamsError, WeightEditError
from weightedit.inr.convention import NFN
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import PER_INR, INRStack


def make_set(count: int = 24, per_image: int = 3, channels: int = 3, known: bool = True) -> WeightSet:
    """`count` INRs, `per_image` of each image, in a shuffled order; images 100, 101, ..."""
    generator = torch.Generator().manual_seed(0)
    which = torch.arange(count)[torch.randperm(count, generator=generator)] // per_image
    shape = (which.max() + 1, channels, 4, 5)
    pictures = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    stack = INRStack(
        initial_params(count, (2, 8, channels), generator=generator),
        NFN,
        4,
        5,
        index=which + 100,
        split=split_by_image(which, fractions=(0.5, 0.25, 0.25), seed=1),
        label=which % 10 if known else None,
        psnr=30 + 10 * torch.rand(count, generator=generator) if known else None,
        provenance={"init": "siren", "optimizer": "Adam"},
    )
    return WeightSet(stack, pictures[which])


def assert_same(one: WeightSet, other: WeightSet) -> None:
    assert torch.equal(one.images, other.images) and one.images.dtype == torch.uint8
    assert list(one.stack.params) == list(other.stack.params)
    assert all(torch.equal(one.stack.params[name], other.stack.params[name]) for name in one.stack.params)
    for name in ("convention", "height", "width", "provenance"):
        assert getattr(one.stack, name) == getattr(other.stack, name)
    for name in PER_INR:
        mine, its = getattr(one.stack, name), getattr(other.stack, name)
        assert (mine is None) == (its is None)
        assert mine is None or (torch.equal(mine, its) and mine.dtype == its.dtype)


def part_of(whole: WeightSet, split: int) -> WeightSet:
    rows = (whole.stack.split == split).nonzero()[:, 0]
    return WeightSet(whole.stack[rows], whole.images[rows])


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_round_trip_is_exact(tmp_path, channels, known):
    whole = make_set(channels=channels, known=known)
    assert save_weight_set(tmp_path / "set", whole.stack, whole.images) == tmp_path / "set"
    for number, split in enumerate(("train", "validation", "test")):
        loaded = load_weight_set(tmp_path / "set", split)
        assert_same(loaded, part_of(whole, number))
        assert all(tensor.is_contiguous() for tensor in loaded.stack.params.values())
        loaded.stack.params["layers.0.weight"].add_(1.0)  # its own, writable memory
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["set"]
    assert torch.equal(loaded.floats(), loaded.images.float() / 255) and len(loaded) == len(loaded.stack)


def test_a_limit_reads_the_first_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("weightedit.data.weight_set_tables._ROW_GROUP", 4)
    whole = make_set()
    save_weight_set(tmp_path / "set", whole.stack, whole.images)
    train = part_of(whole, 0)
    assert pq.ParquetFile(tmp_path / "set" / "train.parquet").num_row_groups == 3
    for limit in (1, 4, 5, 12, 99):
        loaded = load_weight_set(tmp_path / "set", "train", limit)
        assert_same(loaded, WeightSet(train.stack[:limit], train.images[:limit]))
    with pytest.raises(WeightEditError, match="limit=0: expected at least 1"):
        load_weight_set(tmp_path / "set", "train", limit=0)


@pytest.mark.parametrize("by_files", [False, True])
def test_datasets_reads_it(tmp_path, by_files):
    whole = make_set()
    save_weight_set(tmp_path / "set", whole.stack, whole.images)
    cache = str(tmp_path / "cache")
    if by_files:
        files = {split: str(tmp_path / "set" / f"{split}.parquet") for split in ("train", "validation", "test")}
        loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=cache)
    else:
        loaded = datasets.load_dataset(str(tmp_path / "set"), cache_dir=cache)
    assert set(loaded) == {"train", "validation", "test"}
    train = part_of(whole, 0)
    features = loaded["train"].features
    assert features["weights"] == datasets.Sequence(datasets.Value("float32"), length=51)
    assert features["image"] == datasets.Sequence(datasets.Value("uint8"), length=60)
    rows = loaded["train"].with_format("numpy")[:]
    flat = torch.cat([tensor.flatten(1) for tensor in train.stack.params.values()], dim=1)
    assert np.array_equal(rows["weights"], flat.numpy())
    assert np.array_equal(rows["image"].reshape(-1, 4, 5, 3), train.images.permute(0, 2, 3, 1).numpy())
    assert rows["index"].tolist() == train.stack.index.tolist()


def test_the_card_says_how_to_read_the_columns(tmp_path):
    whole = make_set()
    save_weight_set(tmp_path / "set", whole.stack, whole.images, {"seed": 7, "command": "fit_inrs --smoke"})
    card = verify_weight_set(tmp_path / "set")
    assert card == read_card(tmp_path / "set")
    assert card["parameters"][:2] == [["layers.0.weight", [8, 2]], ["layers.0.bias", [8]]]
    assert (card["widths"], card["height"], card["width"], card["channels"]) == ([2, 8, 3], 4, 5, 3)
    assert card["convention"] == NFN.to_dict() and card["provenance"]["init"] == "siren"
    assert card["facts"] == {"seed": 7, "command": "fit_inrs --smoke"}
    assert card["columns"] == ["weights", "image", "index", "label", "psnr"]
    assert {split: stated["count"] for split, stated in card["splits"].items()} == {
        "train": 12, "validation": 6, "test": 6
    }  # fmt: skip
    assert card["splits"]["train"]["images"] == 4
    histogram, psnr = card["psnr_histogram"], whole.stack.psnr
    expected, _ = np.histogram(psnr.numpy(), bins=histogram["dB"])
    assert histogram["count"] == expected.tolist() and sum(histogram["count"]) == 24


def test_psnr_that_is_not_finite_is_kept_out_of_the_histogram(tmp_path):
    whole = make_set()
    psnr = torch.full((24,), torch.inf)
    save_weight_set(tmp_path / "a", dataclasses.replace(whole.stack, psnr=psnr), whole.images)
    assert read_card(tmp_path / "a")["psnr_histogram"] is None
    assert load_weight_set(tmp_path / "a", "test").stack.psnr.isinf().all()


def test_an_image_is_never_in_two_splits():
    generator = torch.Generator().manual_seed(3)
    index = torch.randint(0, 1_000, (5_000,), generator=generator) * 7
    split = split_by_image(index, fractions=(0.8, 0.1, 0.1), seed=5)
    parts = [set(index[split == number].tolist()) for number in range(3)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    total = len(index.unique())
    bounds = [0, round(0.8 * total), round(0.9 * total), total]
    assert [len(part) for part in parts] == [bounds[n + 1] - bounds[n] for n in range(3)]
    assert torch.equal(split, split_by_image(index, fractions=(0.8, 0.1, 0.1), seed=5))
    assert not torch.equal(split, split_by_image(index, fractions=(0.8, 0.1, 0.1), seed=6))
    order = torch.randperm(5_000, generator=generator)
    assert torch.equal(split[order], split_by_image(index[order], fractions=(0.8, 0.1, 0.1), seed=5))


def test_split_by_counts():
    index = torch.arange(20) // 2
    split = split_by_image(index, counts=(7, 0, 3), seed=0)
    assert split.bincount(minlength=3).tolist() == [14, 0, 6]
    assert split_by_image(index[:0], counts=(0, 0, 0), seed=0).tolist() == []


def test_bad_shares_are_refused():
    index = torch.arange(10)
    for arguments in ({}, {"fractions": (0.8, 0.1, 0.1), "counts": (8, 1, 1)}):
        with pytest.raises(WeightEditError, match="expected exactly one of them"):
            split_by_image(index, seed=0, **arguments)
    for counts in ((8, 1, 2), (11, -1, 0), (5, 5)):
        with pytest.raises(WeightEditError, match=r"sum to 10 \(there are 10 distinct"):
            split_by_image(index, counts=counts, seed=0)
    with pytest.raises(WeightEditError, match="sum to 1 "):
        split_by_image(index, fractions=(0.8, 0.1, 0.2), seed=0)


def test_the_same_set_may_be_written_again_another_only_if_told(tmp_path):
    whole, other = make_set(), make_set(known=False)
    folder = tmp_path / "set"
    save_weight_set(folder, whole.stack, whole.images)
    save_weight_set(folder, whole.stack, whole.images)
    with pytest.raises(FileFormatError, match="holds a different weight set.*overwrite=True"):
        save_weight_set(folder, other.stack, other.images)
    assert_same(load_weight_set(folder, "test"), part_of(whole, 2))
    save_weight_set(folder, other.stack, other.images, overwrite=True)
    assert_same(load_weight_set(folder, "test"), part_of(other, 2))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileFormatError, match=r"holds notes\.txt, which is no part of a weight set"):
        save_weight_set(folder, whole.stack, whole.images, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_nothing_is_left_of_a_failed_write(tmp_path, monkeypatch):
    whole = make_set()
    with pytest.raises(WeightEditError, match="facts .* are no JSON"):
        save_weight_set(tmp_path / "set", whole.stack, whole.images, {"seed": float("nan")})
    with pytest.raises(WeightEditError, match="facts .* are no JSON"):
        save_weight_set(tmp_path / "set", whole.stack, whole.images, {"seed": torch.ones(1)})

    def full_disk(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(pq, "write_table", full_disk)
    with pytest.raises(FileFormatError, match="could not be written .*no space left"):
        save_weight_set(tmp_path / "set", whole.stack, whole.images)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(FileFormatError, match="file is a file; expected a folder"):
        save_weight_set(tmp_path / "file", whole.stack, whole.images)


def dies_in(save, point: int) -> bool:
    """Whether another process that is killed at its `point`-th change of a name or removal of a file got so far."""
    left = [point]

    def mortal(function):
        def call(*arguments, **options):
            left[0] -= 1
            return os._exit(9) if left[0] < 0 else function(*arguments, **options)

        return call

    child = os.fork()
    if child == 0:
        try:
            for name in ("rename", "replace", "unlink", "rmdir"):
                setattr(os, name, mortal(getattr(os, name)))
            save()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_whenever_a_process_is_killed_one_set_is_whole(tmp_path):
    """At every change of a name or removal of a file while a set replaces another: the folder holds one of the two, if
    need be put back, and the next process writes as if nothing had been."""
    old, new = make_set(), make_set(known=False)

    def save(which: WeightSet) -> None:
        save_weight_set(folder, which.stack, which.images, overwrite=True)

    for point in range(20):
        folder = tmp_path / str(point) / "set"
        folder.parent.mkdir()
        save(old)
        killed = dies_in(lambda: save(new), point)
        card = verify_weight_set(folder)
        expected = part_of(old if "psnr" in card["columns"] else new, 2)
        assert_same(load_weight_set(folder, "test"), expected)
        save(new)
        assert_same(load_weight_set(folder, "test"), part_of(new, 2))
        assert [entry.name for entry in folder.parent.iterdir()] == ["set"]
        if not killed:
            break
    assert point > 2


def test_sets_that_leak_or_do_not_fit_are_refused(tmp_path):
    whole = make_set()
    stack, images = whole.stack, whole.images

    def refused(message, error=WeightEditError, images=images, **changes):
        with pytest.raises(error, match=message):
            save_weight_set(tmp_path / "set", dataclasses.replace(stack, **changes), images)

    refused("without index or split", index=None)
    refused("without index or split", split=None)
    refused("source image 10[0-7] occurs in two splits", split=torch.arange(24) % 3)
    refused("occurs with two different images", index=torch.zeros(24), split=torch.zeros(24))
    pixel = images.clone()
    pixel[5, 0, 0, 0] ^= 1
    refused("occurs with two different images", images=pixel)
    refused("splits other than 0, 1, 2", split=torch.full((24,), 3))
    refused(r"images of shape \(24, 3, 4, 5\) and type torch.float32: expected uint8", images=images.float())
    refused(r"expected uint8 \(24, 3, 4, 5\), one source image per INR", images=images[:8])
    doubles = {name: tensor.double() for name, tensor in stack.params.items()}
    refused("weights of torch.float64: expected torch.float32", ParamsError, params=doubles)
    broken = {**stack.params, "layers.1.bias": torch.full((24, 3), torch.nan)}
    refused("weights that are NaN or infinite", ParamsError, params=broken)
    with pytest.raises(WeightEditError, match="no INRs"):
        save_weight_set(tmp_path / "set", stack[:0], images[:0])
    save_weight_set(tmp_path / "one", stack[:1], images[:1])
    assert not (tmp_path / "set").exists() and list(read_card(tmp_path / "one")["splits"]) == ["train"]
    with pytest.raises(FileFormatError, match="split 'test' was asked of .*, which has train; pass one"):
        load_weight_set(tmp_path / "one", "test")


CARD_FAULTS = {
    "format": ({"format": "other"}, "is not of the format 'weightedit-weight-set', version 1"),
    "version": ({"version": 2}, "is not of the format"),
    "missing": ({"widths": None}, "lacks widths; expected the keys"),
    "unknown": ({"extra": 1}, "has the unknown key 'extra'"),
    "omega": ({"convention": {**NFN.to_dict(), "omega": -1}}, "omega=-1.0: expected a positive frequency"),
    "widths": ({"widths": [2, 9, 3]}, r"states the parameters .* for widths \[2, 9, 3\]"),
    "channels": ({"channels": 1}, "and 1 channels; expected"),
    "height": ({"height": "4"}, "height is '4'; expected a whole number from 1"),
    "pixels": ({"height": 10**6, "width": 10**6}, "1000000 x 1000000 pixels; expected at most"),
    "splits": ({"splits": ["train"]}, r"splits is \['train'\]; expected an object"),
    "path": ({"splits": {"../train": {}}}, "splits key is '../train'; expected 'train' or"),
    "parameters": ({"parameters": 3}, "parameters is 3; expected a list"),
}


@pytest.mark.parametrize("fault", CARD_FAULTS)
def test_wrong_cards_are_refused(tmp_path, fault):
    whole = make_set()
    save_weight_set(tmp_path / "set", whole.stack, whole.images)
    path = tmp_path / "set" / "card.json"
    change, message = CARD_FAULTS[fault]
    card = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({name: value for name, value in card.items() if value is not None or name[0] == "p"}))
    with pytest.raises(FileFormatError, match=message):
        load_weight_set(tmp_path / "set", "train")


def test_damaged_files_are_refused(tmp_path):
    whole = make_set()
    save_weight_set(tmp_path / "set", whole.stack, whole.images)
    folder, path = tmp_path / "set", tmp_path / "set" / "train.parquet"
    good = path.read_bytes()
    path.write_bytes(good[:-9])
    with pytest.raises(FileFormatError, match=r"train\.parquet has \d+ bytes; expected \d+ as the card states"):
        load_weight_set(folder, "train")
    for bit in range(0, 8 * len(good), len(good) // 5):
        byte, place = bit // 8, bit % 8
        path.write_bytes(good[:byte] + bytes([good[byte] ^ 1 << place]) + good[byte + 1 :])
        for read in (lambda: verify_weight_set(folder), lambda: load_weight_set(folder, "train", 1)):
            with pytest.raises(FileFormatError, match="has SHA-256 .*, but the card states .*copy it again"):
                read()
    path.write_bytes(b"x" * len(good))
    state_anew(path)
    with pytest.raises(FileFormatError, match="could not be read .*expected a whole Parquet file: copy it again"):
        load_weight_set(folder, "train")
    path.unlink()
    with pytest.raises(FileFormatError, match=r"train\.parquet is missing; expected \d+"):
        load_weight_set(folder, "train")
    (folder / "card.json").write_text("{")
    with pytest.raises(FileFormatError, match="is not valid JSON"):
        load_weight_set(folder, "train")
    with pytest.raises(FileFormatError, match=r"there is no .*absent.*card\.json"):
        load_weight_set(tmp_path / "absent", "train")


def rewrite(folder, change) -> None:
    """Change the table of the train split, and the card accordingly."""
    path = folder / "train.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    state_anew(path)


def state_anew(path) -> None:
    """Let the card state a file as it is."""
    card = json.loads(path.with_name("card.json").read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    card["splits"][path.stem] |= {"bytes": path.stat().st_size, "sha256": digest}
    path.with_name("card.json").write_text(json.dumps(card))


TABLE_FAULTS = {
    "rows": (lambda t: t.slice(0, 5), "has 5 rows of .*; expected 12 of"),
    "columns": (lambda t: t.drop_columns(["label"]), "expected 12 of .*'label'"),
    "type": (lambda t: t.set_column(3, "label", t["psnr"]), "the column label of float; expected 1 v"),
    "nulls": (
        lambda t: t.set_column(2, "index", pa.array([None] * len(t), pa.int64())),
        "has nulls in the column index",
    ),
    "length": (lambda t: t.set_column(0, "weights", t["image"]), "the column weights of .*expected 51 values of float"),
}


@pytest.mark.parametrize("fault", TABLE_FAULTS)
def test_tables_that_do_not_fit_the_card_are_refused(tmp_path, fault):
    whole = make_set()
    save_weight_set(tmp_path / "set", whole.stack, whole.images)
    change, message = TABLE_FAULTS[fault]
    rewrite(tmp_path / "set", change)
    with pytest.raises(FileFormatError, match=message):
        load_weight_set(tmp_path / "set", "train")


def test_weights_that_are_not_finite_are_refused(tmp_path, monkeypatch):
    whole = make_set()
    stack = dataclasses.replace(whole.stack, params={k: v * torch.nan for k, v in whole.stack.params.items()})
    monkeypatch.setattr("weightedit.data.weight_sets._check", lambda whole: None)
    save_weight_set(tmp_path / "set", stack, whole.images)
    with pytest.raises(FileFormatError, match=r"test\.parquet has NaN or infinite weights"):
        load_weight_set(tmp_path / "set", "test")
