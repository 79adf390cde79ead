"""Whatever is written or read here comes back by its path alone, as its own loader gives it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from weightedit.data.cnn_zoo import CNNZoo, save_zoo
from weightedit.data.images import ImageSet
from weightedit.data.inr_files import save_inrs
from weightedit.data.sample_files import save_sound
from weightedit.data.weight_sets import WeightSet, save_weight_set
from weightedit.editing.curvature import LearnedKFAC
from weightedit.errors import FileFormatError, WeightEditError
from weightedit.inr.convention import DWSNETS
from weightedit.inr.samples import Samples
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack
from weightedit.loading import KINDS, kind_of, load
from weightedit.network.spec import NetworkSpec


def stack(count: int = 2) -> INRStack:
    return INRStack(initial_params(count, (2, 4, 1)), DWSNETS, 5, 6)


def weight_set(place: Path) -> None:
    known = stack(4)
    rows = {"index": torch.arange(4), "split": torch.tensor([0, 0, 1, 2])}
    save_weight_set(place, INRStack(known.params, DWSNETS, 5, 6, **rows), torch.zeros(4, 1, 5, 6, dtype=torch.uint8))


def zoo(place: Path, splits: tuple[str, ...] = ("train",)) -> None:
    spec, facts = NetworkSpec.siren((3, 4, 2)), {"test_accuracy": torch.tensor([0.5, 0.25], dtype=torch.float64)}
    params = {name: torch.randn(2, *shape) for name, shape in spec.param_shapes().items()}
    made = {name: CNNZoo(spec, params, torch.arange(2) + 2 * row, facts) for row, name in enumerate(splits)}
    save_zoo(place, made, {"seed": 0})


def pictures(place: Path) -> None:
    place.mkdir()
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(place / "0.png")


def foreign(place: Path) -> None:
    torch.save({name.replace("layers", "seq"): tensor[0] for name, tensor in stack().params.items()}, place)


WRITTEN = {
    "checkpoint": ("rule", LearnedKFAC().save_pretrained, {}, LearnedKFAC),
    "INRs": ("inrs.safetensors", lambda place: save_inrs(stack(), place), {}, INRStack),
    "foreign INRs": ("net.pth", foreign, {"convention": DWSNETS, "size": (5, 6)}, INRStack),
    "weight set": ("set", weight_set, {"split": "train", "limit": 1}, WeightSet),
    "CNN zoo": ("zoo", zoo, {}, CNNZoo),
    "pictures": ("pictures", pictures, {"size": (3, 3)}, ImageSet),
    "picture": ("one.png", lambda place: Image.new("L", (6, 5)).save(place), {"channels": 3}, torch.Tensor),
    "samples": ("sound.wav", lambda place: save_sound(torch.zeros(5, 1), 8000, place), {}, Samples),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_was_written_comes_back(tmp_path: Path, name: str) -> None:
    place, write, options, expected = WRITTEN[name]
    write(tmp_path / place)
    found = load(tmp_path / place, **options)
    assert isinstance(found, expected) and kind_of(tmp_path / place).name == name.removeprefix("foreign ")
    assert isinstance(load(str(tmp_path / place), **options), expected)
    with pytest.raises(WeightEditError, match="got an unexpected keyword argument 'color'; expected options among"):
        load(tmp_path / place, **options, color=1)


def test_every_kind_is_tried() -> None:
    assert {kind.name for kind in KINDS} - {"Small CNN Zoo"} == {name.removeprefix("foreign ") for name in WRITTEN}


def test_a_set_of_several_splits_needs_one(tmp_path: Path) -> None:
    weight_set(tmp_path / "set")
    zoo(tmp_path / "zoo", ("train", "test"))
    for place in ("set", "zoo"):
        with pytest.raises(WeightEditError, match="of the splits train.*, test.*; expected one: split="):
            load(tmp_path / place)
        assert len(load(tmp_path / place, split="test"))


def test_a_small_cnn_zoo_is_known_by_its_weights(tmp_path: Path) -> None:
    (tmp_path / "weights.npy").touch()
    assert kind_of(tmp_path).name == "Small CNN Zoo"
    with pytest.raises(WeightEditError, match="missing a required argument: 'activation'"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda place: place.write_text("?"), "is a nameless file"),
        (lambda place: place.mkdir(), "a folder with nothing in it"),
        (lambda place: (place.mkdir(), (place / "a.txt").touch()), "a folder with .txt in it"),
        (lambda place: (place.mkdir(), (place / "card.json").write_text("{}")), "card.json states another format"),
        (
            lambda place: (place.mkdir(), (place / "card.json").write_text('{"format": [1]}')),
            "another format",
        ),
        (lambda place: LearnedKFAC().save_pretrained(place / "rule"), "around checkpoints .*rule"),
    ],
)
def test_what_is_not_known_is_told_the_kinds(tmp_path: Path, make, what: str) -> None:
    make(tmp_path / "thing")
    with pytest.raises(
        FileFormatError, match=f"{what}.*; expected one of these kinds: checkpoint .*; INRs .*; pictures"
    ):
        load(tmp_path / "thing")


def test_what_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, message in (("mnist-mutli", "the name of a shipped one .*mnist-multi"), ("a.png", "no picture file")):
        with pytest.raises(FileFormatError, match=message):
            load(name)
    for wrong in (3, None, ""):
        with pytest.raises(FileFormatError, match=f"got {wrong!r}; expected a path, or the name of a checkpoint"):
            load(wrong)  # type: ignore[arg-type]
    with pytest.raises(FileFormatError, match="there is no file or folder"):
        load("a.safetensors")


def test_a_folder_named_as_a_shipped_checkpoint_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "refine-rule")
    assert isinstance(load("refine-rule"), LearnedKFAC) and isinstance(load(tmp_path / "refine-rule"), ImageSet)
