"""Our INR file format: exact round trips, a header that is held to, atomic writing, lists and folders, every error."""

import json
import re

import pytest
import safetensors
import safetensors.torch
import torch

from weightedit.data.inr_files import load_inrs, save_inrs
from weightedit.errors import FileFormatError, ParamsError
from weightedit.inr.convention import DWSNETS, NFN, Convention
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import PER_INR, INRStack


def make_stack(count: int = 3, seed: int = 0, **fields) -> INRStack:
    params = initial_params(count, (2, 8, 8, 3), generator=torch.Generator().manual_seed(seed))
    return INRStack(params, Convention(omega=20.0, coordinates="ij"), 5, 7, **fields)


def full_stack(count: int = 3, seed: int = 0) -> INRStack:
    return make_stack(
        count,
        seed,
        label=torch.arange(count) % 10,
        index=torch.arange(count) + 100 * seed,
        split=torch.zeros(count, dtype=torch.int64),
        psnr=torch.linspace(39.5, 41.0, count, dtype=torch.float64),
        provenance={"init": "siren", "optimizer": 'Adam "tuned", 5e-3 | größer'},
    )


def assert_same(one: INRStack, other: INRStack) -> None:
    assert list(one.params) == list(other.params)
    assert all(torch.equal(one.params[name], other.params[name]) for name in one.params)
    assert (one.convention, one.height, one.width) == (other.convention, other.height, other.width)
    assert one.provenance == other.provenance
    for name in PER_INR:
        mine, its = getattr(one, name), getattr(other, name)
        assert (mine is None) == (its is None) and (
            mine is None or (torch.equal(mine, its) and mine.dtype == its.dtype)
        )


@pytest.mark.parametrize("stack", [make_stack(), full_stack(), make_stack(1)[:0]], ids=["bare", "full", "empty"])
def test_round_trip_is_exact(tmp_path, stack):
    save_inrs(stack, tmp_path / "inrs.safetensors")
    assert_same(load_inrs(tmp_path / "inrs.safetensors"), stack)
    assert [entry.name for entry in tmp_path.iterdir()] == ["inrs.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_type_of_the_weights_is_kept(tmp_path, dtype):
    stack = make_stack()
    stack = INRStack({name: tensor.to(dtype) for name, tensor in stack.params.items()}, DWSNETS, 4, 4)
    save_inrs(stack, tmp_path / "inrs.safetensors")
    assert_same(load_inrs(str(tmp_path / "inrs.safetensors")), stack)


def test_views_shared_tensors_and_an_odd_order_are_saved(tmp_path):
    numbers = torch.arange(2)
    whole = make_stack(5)
    part = INRStack(
        {name: whole.params[name][1:3] for name in reversed(whole.params)}, DWSNETS, 4, 4, label=numbers, index=numbers
    )
    save_inrs(part, tmp_path / "inrs.safetensors")
    loaded = load_inrs(tmp_path / "inrs.safetensors")
    assert all(torch.equal(loaded.params[name], part.params[name]) for name in part.params)
    assert torch.equal(loaded.render(), part.render()) and torch.equal(loaded.label, loaded.index)


def test_the_header_says_all_that_rendering_needs(tmp_path):
    save_inrs(full_stack(), tmp_path / "inrs.safetensors")
    with safetensors.safe_open(tmp_path / "inrs.safetensors", "pt") as file:
        header = file.metadata()
    assert header["format"] == "weightedit-inrs" and header["activation"] == "sine" and header["coordinates"] == "ij"
    numbers = {name: json.loads(header[name]) for name in ("version", "layers", "omega", "low", "high", "offset")}
    assert numbers == {"version": 1, "layers": [2, 8, 8, 3], "omega": 20.0, "low": 0.0, "high": 1.0, "offset": 0.5}
    assert (header["height"], header["width"]) == ("5", "7")
    assert json.loads(header["provenance"])["init"] == "siren"


def test_lists_and_folders_are_joined_in_natural_order(tmp_path):
    stacks = [full_stack(2, seed) for seed in (0, 1, 2)]
    names = ["part2.safetensors", "part10.safetensors", "sub/part1.safetensors"]
    (tmp_path / "sub").mkdir()
    for stack, name in zip(stacks, names, strict=True):
        save_inrs(stack, tmp_path / name)
    (tmp_path / ".hidden.safetensors").write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"")
    whole = INRStack.concatenate(stacks)
    assert_same(load_inrs(tmp_path), whole)
    assert_same(load_inrs([tmp_path / name for name in names]), whole)
    assert_same(load_inrs([tmp_path / names[1]]), stacks[1])


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "inrs.safetensors"
    save_inrs(make_stack(), path)
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(FileFormatError, match="could not be written .*no space left.*choose another"):
        save_inrs(full_stack(), path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_bad_places_and_bad_weights_are_not_written(tmp_path):
    with pytest.raises(FileFormatError, match="ends in '.pth'; INRs are written as .safetensors"):
        save_inrs(make_stack(), tmp_path / "inrs.pth")
    with pytest.raises(FileFormatError, match="could not be written"):
        save_inrs(make_stack(), tmp_path / "absent" / "inrs.safetensors")
    stack = make_stack()
    stack.params["layers.1.bias"][2, 3] = torch.inf
    with pytest.raises(ParamsError, match=r"layers\.1\.bias of INR 2 has NaN or infinite values \(1 of 3"):
        save_inrs(stack, tmp_path / "inrs.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_given_convention_or_size_must_agree(tmp_path):
    path, stack = tmp_path / "inrs.safetensors", make_stack()
    save_inrs(stack, path)
    assert_same(load_inrs(path, stack.convention, size=(5, 7)), stack)
    with pytest.raises(FileFormatError, match="coordinates='ij'.*but Convention.*was given.*convert"):
        load_inrs(path, NFN)
    with pytest.raises(FileFormatError, match=r"states the size \(5, 7\), but \(28, 28\) was given"):
        load_inrs(path, size=(28, 28))
    with pytest.raises(FileFormatError, match="never normalized"):
        load_inrs(path, normalization=([0.0] * 3, [1.0] * 3))


def test_missing_things_are_named(tmp_path):
    with pytest.raises(FileFormatError, match="there is no file or folder '.*absent.safetensors'"):
        load_inrs(tmp_path / "absent.safetensors")
    with pytest.raises(FileFormatError, match="holds no INR files; expected files ending in .safetensors, .pth"):
        load_inrs(tmp_path)
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(FileFormatError, match="looks like a weight set"):
        load_inrs(tmp_path)
    with pytest.raises(FileFormatError, match="an empty list of files"):
        load_inrs([])
    (tmp_path / "inrs.npz").write_bytes(b"")
    with pytest.raises(FileFormatError, match="ends in '.npz'; INRs are read from"):
        load_inrs(tmp_path / "inrs.npz")


def test_files_that_do_not_belong_together(tmp_path):
    save_inrs(make_stack(), tmp_path / "a.safetensors")
    save_inrs(full_stack(), tmp_path / "b.safetensors")
    with pytest.raises(FileFormatError, match="the 2 files of .* stack 1 has the fields"):
        load_inrs(tmp_path)
    safetensors.torch.save_file(make_stack().params, tmp_path / "b.safetensors")
    with pytest.raises(FileFormatError, match="mixes 1 files of weightedit with 1 others"):
        load_inrs(tmp_path)


def test_truncated_and_forged_files_are_refused(tmp_path):
    path = tmp_path / "inrs.safetensors"
    save_inrs(make_stack(), path)
    whole = path.read_bytes()
    forged = b"\xff" * 8 + whole[8:]
    for content in (b"", whole[:5], whole[: len(whole) // 2], whole[:-1], forged, b"PK\x03\x04" + whole):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match="could not be read .*a complete safetensors file: copy or write it"):
            load_inrs(path)


HEADER_FAULTS = [
    ({"version": "2"}, "version '2'; version 1 is read here"),
    ({"extra": "1"}, "the header has the unknown key 'extra'; expected the keys activation"),
    ({"omega": None}, "the header lacks omega; expected the keys"),
    ({"activation": "step"}, "activation='step': expected one of sine, relu"),
    ({"omega": "thirty"}, "omega 'thirty'; expected JSON"),
    ({"omega": "-1.0"}, "omega=-1.0: expected a positive frequency"),
    ({"omega": "NaN"}, "omega 'NaN'; expected JSON"),
    ({"coordinates": "yx"}, "coordinates='yx'"),
    ({"low": "2.0"}, r"low=2.0, high=1.0: expected low < high"),
    ({"height": "2.5"}, "height is 2.5; expected a whole number from 1"),
    ({"width": "0"}, "width is 0; expected a whole number from 1"),
    ({"height": "100000", "width": "700"}, "100000 x 700 pixels; expected at most"),
    ({"layers": "[[" * 60_000}, "the header has layers .*; expected JSON"),
    ({"layers": "[2, 8, 3]"}, r"layers \[2, 8, 3\], the tensors \[2, 8, 8, 3\]"),
    ({"provenance": "[1]"}, r"provenance is \[1\]; expected an object"),
    ({"history": '"edit"'}, "history is 'edit'; expected a list"),
]


@pytest.mark.parametrize(
    ("change", "message"), HEADER_FAULTS, ids=[next(iter(c)) + "-" + m[:9] for c, m in HEADER_FAULTS]
)
def test_wrong_headers_are_refused(tmp_path, change, message):
    path = tmp_path / "inrs.safetensors"
    save_inrs(make_stack(), path)
    with safetensors.safe_open(path, "pt") as file:
        header = file.metadata()
    header.update(change)
    header = {name: value for name, value in header.items() if value is not None}
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, header)
    with pytest.raises(FileFormatError, match=re.escape(str(path)) + ": .*" + message):
        load_inrs(path)


TENSOR_FAULTS = {
    "missing": (lambda t: t.pop("layers.1.weight"), "without a gap"),
    "unknown": (lambda t: t.update(extra=torch.ones(3)), "without 'extra'"),
    "transposed": (lambda t: t.update({"layers.0.weight": torch.ones(3, 2, 8)}), "layer 0 has weight"),
    "count": (lambda t: t.update({"layers.2.bias": torch.ones(2, 3)}), "layer 2 has weight"),
    "single": (lambda t: t.update({k: v[0].clone() for k, v in t.items()}), r"expected \(N, out, in\) in a stack"),
    "nan": (lambda t: t["layers.0.bias"][1].fill_(torch.nan), r"layers\.0\.bias of INR 1 has NaN"),
    "labels": (lambda t: t.update(label=torch.zeros(2, dtype=torch.int64)), r"label of shape \(2,\)"),
    "float labels": (lambda t: t.update(label=torch.zeros(3)), "label is of torch.float32"),
    "former of no entry": (
        lambda t: t.update({"before.1.layers.0.bias": torch.ones(3, 8)}),
        r"before\.1 for a history of 0",
    ),
    "int psnr": (lambda t: t.update(psnr=torch.zeros(3, dtype=torch.int64)), "psnr is of torch.int64"),
}


@pytest.mark.parametrize("fault", TENSOR_FAULTS)
def test_wrong_tensors_are_refused(tmp_path, fault):
    path = tmp_path / "inrs.safetensors"
    save_inrs(make_stack(), path)
    with safetensors.safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = safetensors.torch.load_file(path)
    change, message = TENSOR_FAULTS[fault]
    change(tensors)
    safetensors.torch.save_file(tensors, path, header)
    with pytest.raises(FileFormatError, match=re.escape(str(path)) + ": .*" + message):
        load_inrs(path)
