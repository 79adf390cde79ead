"""--weights FOLDER of a task: what is taken as it is, read once, and refused in the command line's words."""

from pathlib import Path

import pytest
import torch

from weightedit.cli.published import Published
from weightedit.data.weight_sets import load_weight_set
from weightedit.errors import FileFormatError, WeightEditError
from weightedit.inr.fitting import FitOptions, fit


@pytest.fixture(scope="module")
def inrs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three fits of 16 x 16 pixels, named as DWSNets' files."""
    folder = tmp_path_factory.mktemp("published")
    axis = torch.linspace(-1, 1, 16)
    blobs = torch.stack([torch.exp(-((axis[:, None] - x) ** 2 + (axis + x) ** 2) / 0.2) for x in (-0.4, 0.0, 0.4)])
    options = FitOptions(target_psnr=30.0)
    params = fit(
        blobs[:, None], widths=(2, 16, 16, 1), options=options, generator=torch.Generator().manual_seed(0)
    ).stack.params
    for row, name in enumerate(("training_0_0", "training_1_1", "testing_1_0")):
        place = folder / f"mnist_png_{name}" / "checkpoints"
        place.mkdir(parents=True)
        torch.save({key.replace("layers", "seq"): t[row] for key, t in params.items()}, place / "model_final.pth")
    (folder / "splits.json").write_text(
        '{"train": ["mnist_png_training_0_0/checkpoints/model_final.pth"],'
        ' "test": ["mnist_png_testing_1_0/checkpoints/model_final.pth"]}'
    )
    return folder


STATED = Published(convention="dwsnets", size="16", omega=(30.0, 30.0))


def test_a_folder_is_read_once(inrs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    place = tmp_path / "run" / "weights"
    assert STATED.weight_set(inrs, place, said.append) == str(place)
    assert (
        "2 INRs of 2 images (1 train, 0 validation, 1 test; splits: those of splits.json) and 1 files in no split"
        in said[0]
    )
    monkeypatch.setattr("weightedit.cli.published.published_set", None)  # what is called again would fail
    assert STATED.weight_set(inrs, place, said.append) == str(place) and len(said) == 1
    assert Published().weight_set(place, tmp_path / "other", said.append) == str(place), "a weight set is one already"
    with pytest.raises(FileFormatError, match="is a weight set of other files, or of these read in another way"):
        Published(convention="nfn", size="16").weight_set(inrs, place, said.append)


def test_options_of_a_weight_set_are_refused(inrs: Path, tmp_path: Path) -> None:
    STATED.weight_set(inrs, tmp_path / "set", str)
    with pytest.raises(WeightEditError, match="got --convention for .*, which is no folder of INR files"):
        STATED.weight_set(tmp_path / "set", tmp_path / "again", str)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Published(), "pass --convention dwsnets, and --size 28x32"),
        (Published(convention="dwsnets", size="wide"), "--size 'wide' is no size; expected 28, or 28x32"),
        (Published(omega=(30.0, 1.0), size="16"), "got --omega without --convention"),
        (Published(convention="dwsnets", size="16", splits="nowhere.json"), "nowhere.json"),
        (Published(convention="dwsnets", omega=(90.0,), size="16"), "that render as no pictures: contrast"),
    ],
)
def test_what_is_not_stated_or_wrong_is_told_before_anything_is_made(
    options: Published, message: str, inrs: Path, tmp_path: Path
) -> None:
    with pytest.raises(WeightEditError, match=message):
        options.weight_set(inrs, tmp_path / "weights", str)
    assert not (tmp_path / "weights").exists()


def test_splits_may_be_named(inrs: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(
        '{"val": ["model/mnist_png_training_1_1/checkpoints/model_final.pth"], "train": {"path": []}, "test": []}'
    )
    named = Published(convention="dwsnets", size="16", splits=str(tmp_path / "mine.json"))
    found = load_weight_set(named.weight_set(inrs, tmp_path / "set", str), "validation").stack
    assert found.label is not None and found.label.tolist() == [1], "the class of the folder"
