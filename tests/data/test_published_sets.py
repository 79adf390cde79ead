"""Folders of published weights: their own splits and classes, images numbered apart, pictures that are renderings."""

import json
from pathlib import Path

import pytest
import torch

from weightedit.data.inr_files import save_inrs
from weightedit.data.published_sets import listing, published_set
from weightedit.data.weight_sets import load_splits, save_weight_set
from weightedit.errors import FileFormatError
from weightedit.inr.convention import DWSNETS, NFN, convert
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack

SIZE = (6, 6)
NFN_NAMES = {"layers.0": "net.0.linear", "layers.1": "net.1.linear", "layers.2": "net.2"}


def an_inr(seed: int) -> dict[str, torch.Tensor]:
    """Under the convention DWSNETS, of one network."""
    params = initial_params(1, (2, 4, 4, 1), generator=torch.Generator().manual_seed(seed))
    return {name: tensor[0] for name, tensor in params.items()}


def save(params: dict[str, torch.Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(params, path)


def dwsnets(folder: Path, facts: list[tuple[str, int, int]]) -> list[str]:
    """Files as in MNIST-INRs, of (half, class, index); their paths in the folder."""
    names = []
    for seed, (half, label, index) in enumerate(facts):
        names.append(f"mnist_png_{half}_{label}_{index}/checkpoints/model_final.pth")
        save({name.replace("layers", "seq"): t for name, t in an_inr(seed).items()}, folder / names[-1])
    return names


FACTS = [("training", 2, 0), ("training", 7, 1), ("testing", 1, 0), ("testing", 2, 1), ("training", 5, 2)]


def splits_of(names: list[str], before: str = "/home/someone/data/mnist-inrs/") -> dict:
    """As generate_data_splits writes them there: paths of another machine, classes as text."""
    listed = {"train": [0], "val": [1], "test": [2, 3]}
    return {
        split: {"path": [before + names[n] for n in rows], "label": [str(FACTS[n][1]) for n in rows]}
        for split, rows in listed.items()
    }


@pytest.mark.parametrize("place", ["inside", "beside", "named"])
def test_dwsnets_with_their_splits_file(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "mnist-inrs"
    names = dwsnets(folder, FACTS)
    where = {"inside": folder / "mnist_splits.json", "beside": tmp_path / "data" / "mnist_splits.json"}
    file = where.get(place, tmp_path / "mine.json")
    file.write_text(json.dumps(splits_of(names)))
    torch.save({"mean": torch.zeros(3)}, folder / "statistics.pth")
    (tmp_path / "data" / "other_splits.json").write_text('{"of": "something else"}')
    found = published_set(folder, DWSNETS, size=SIZE, splits=file if place == "named" else None)
    stack = found.whole.stack
    assert (found.left_out, found.split) == (2, f"those of {file.name}")
    rows = {
        (int(label), int(split)): row for row, (label, split) in enumerate(zip(stack.label, stack.split, strict=True))
    }
    assert set(rows) == {(2, 0), (7, 1), (1, 2), (2, 2)}
    assert len(stack.index.unique()) == len(stack), "the halves count from 0 each; here no two images share a number"
    for number, key in enumerate([(2, 0), (7, 1), (1, 2), (2, 2)]):
        assert torch.equal(stack.params["layers.0.weight"][rows[key]], an_inr(number)["layers.0.weight"])


def test_dwsnets_without_a_splits_file_draw_their_validation_images(tmp_path: Path) -> None:
    dwsnets(tmp_path, [("training", n % 10, n) for n in range(24)] + [("testing", n % 10, n) for n in range(4)])
    found = [published_set(tmp_path, DWSNETS, size=SIZE, seed=seed).whole.stack for seed in (0, 0, 1)]
    assert [(stack.split == number).sum().item() for stack in found[:1] for number in range(3)] == [22, 2, 4]
    assert torch.equal(found[0].split, found[1].split) and not torch.equal(found[0].split, found[2].split)
    test = found[0].split == 2
    assert sorted(found[0].index[~test].tolist()) == list(range(24))
    assert found[0].index[test].tolist() == [24, 25, 26, 27]
    assert torch.equal(found[0].label[test], torch.arange(4))


def test_fashion_files_hold_their_class_and_the_splits_are_paths_alone(tmp_path: Path) -> None:
    names = ["a/0.pth", "a/1.pth", "b/0.pth"]
    for seed, name in enumerate(names):
        content = {name.replace("layers", "seq"): t for name, t in an_inr(seed).items()}
        save({**content, "label": 3 + seed}, tmp_path / name)
    (tmp_path / "splits.json").write_text(json.dumps({"train": names[:1], "val": names[1:2], "test": names[2:]}))
    stack = published_set(tmp_path, DWSNETS, size=SIZE).whole.stack
    assert stack.label.tolist() == [3, 4, 5] and stack.split.tolist() == [0, 1, 2] and stack.index.tolist() == [0, 1, 2]


def test_nfn_by_the_number_of_the_image(tmp_path: Path) -> None:
    places = ["_3s/net44999", "_1s/net45000", "_9s/net49999", "_0s/net50000", "_aug0_3s/net44999"]
    for seed, place in enumerate(places):
        own = convert(an_inr(seed), DWSNETS, NFN)
        save({NFN_NAMES[name[:8]] + name[8:]: t for name, t in own.items()}, tmp_path / f"randinit_smaller{place}.pth")
    found = published_set(tmp_path, NFN, size=SIZE)
    stack = found.whole.stack
    facts = sorted(zip(stack.index.tolist(), stack.label.tolist(), stack.split.tolist(), strict=True))
    assert facts == [(44999, 3, 0), (44999, 3, 0), (45000, 1, 1), (49999, 9, 1), (50000, 0, 2)]
    same = stack.index == 44999
    assert torch.equal(*found.whole.images[same]), "several INRs of an image have one picture"
    save_weight_set(tmp_path / "set", stack, found.whole.images)


def test_pictures_are_renderings_and_the_set_can_be_saved(tmp_path: Path) -> None:
    dwsnets(tmp_path / "inrs", [("training", n, n) for n in range(12)] + [("testing", 4, 0)])
    found = published_set(tmp_path / "inrs", DWSNETS, size=SIZE)
    rendered = found.whole.stack.render().clamp(0, 1)
    assert float((found.whole.floats() - rendered).abs().max()) <= 0.5 / 255 + 1e-6, "half a level of 8 bits"
    save_weight_set(tmp_path / "set", found.whole.stack, found.whole.images)
    assert {name: len(part) for name, part in load_splits(tmp_path / "set").items()} == {
        "train": 11,
        "validation": 1,
        "test": 1,
    }


def test_our_own_files_state_their_splits(tmp_path: Path) -> None:
    params = initial_params(3, (2, 4, 4, 1), generator=torch.Generator().manual_seed(0))
    facts = {"index": torch.tensor([4, 9, 2]), "split": torch.tensor([0, 1, 2])}
    stack = INRStack(params, DWSNETS, *SIZE, **facts)
    save_inrs(stack[:2], tmp_path / "a.safetensors")
    save_inrs(stack[2:], tmp_path / "b.safetensors")
    found = published_set(tmp_path).whole.stack
    assert found.split.tolist() == [0, 1, 2] and found.index.tolist() == [4, 9, 2] and found.label is None
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["a.safetensors"]}))
    with pytest.raises(FileFormatError, match=r"holds 2 INRs in 1 file\(s\); expected one in each"):
        published_set(tmp_path)


def test_a_folder_is_known_again_by_its_listing(tmp_path: Path) -> None:
    names = dwsnets(tmp_path, FACTS)
    before = listing(tmp_path)
    assert listing(tmp_path) == before
    (tmp_path / "splits.json").write_text(json.dumps(splits_of(names)))
    assert listing(tmp_path) != before
    (tmp_path / "splits.json").unlink()
    (tmp_path / names[0]).rename(tmp_path / "moved.pth")
    assert listing(tmp_path) != before


def test_what_is_not_stated_is_told_before_all_is_read(tmp_path: Path) -> None:
    names = dwsnets(tmp_path, FACTS)
    (tmp_path / names[-1]).write_bytes(b"damaged")
    with pytest.raises(FileFormatError, match="states no convention and image size.*DWSNets"):
        published_set(tmp_path)


WRONG = {
    "a file that is not there": (lambda s, n: s["val"].update(path=["x/y.pth"]), "which is not a file in"),
    "a file twice": (lambda s, n: s["test"].update(path=[n[0], n[0]]), "named twice"),
    "another class": (lambda s, n: s["val"].update(label=["8"]), "is of class 7, but the splits file says 8"),
    "no class": (lambda s, n: s["val"].update(label=["seven"]), "has the class 'seven'; expected a whole number"),
    "classes for some": (lambda s, n: s["test"].update(label=["1"]), "has 2 paths and 1 classes in test"),
    "another split": (lambda s, n: s.update(holdout=s.pop("val")), "has the split 'holdout'; expected train, val"),
    "numbers for paths": (lambda s, n: s["val"].update(path=[3]), "expected a string"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_splits_file_that_does_not_fit_is_refused(kind: str, tmp_path: Path) -> None:
    names = dwsnets(tmp_path, FACTS)
    splits = splits_of(names)
    WRONG[kind][0](splits, names)
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(FileFormatError, match=WRONG[kind][1]):
        published_set(tmp_path, DWSNETS, size=SIZE)


def test_splits_that_nothing_tells_are_asked_for(tmp_path: Path) -> None:
    save({name.replace("layers", "seq"): t for name, t in an_inr(0).items()}, tmp_path / "set" / "a.pth")
    with pytest.raises(FileFormatError, match="does not say which INRs are for training"):
        published_set(tmp_path / "set", DWSNETS, size=SIZE)
    for name in ("splits.json", "my_splits.json"):
        (tmp_path / "set" / name).write_text('{"train": ["a.pth"]}')
    with pytest.raises(FileFormatError, match=r"has the splits files .*my_splits.json, .*splits.json; expected one"):
        published_set(tmp_path / "set", DWSNETS, size=SIZE)
