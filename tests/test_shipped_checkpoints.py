"""Every checkpoint in the repository loads, is small, and reproduces the figure that its config states.

The figure here is the one on the demo's digits, which need no download: the figures on MNIST are on the card, with the
command that makes them.
"""

from pathlib import Path

import pytest
import torch

from weightedit.checkpoint import load_checkpoint
from weightedit.demo import digit_images, run_demo
from weightedit.editing.curvature import KFAC, LearnedKFAC
from weightedit.editing.editor import Editor
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.operations import operation
from weightedit.editing.refinement import refine, target_of
from weightedit.inr.fitting import fit

FOLDERS = sorted(path.parent for path in (Path(__file__).parent.parent / "checkpoints").glob("*/config.json"))


def of_kind(kind: str) -> list[Path]:
    return [folder for folder in FOLDERS if load_checkpoint(folder)[1]["kind"] == kind]


def test_there_are_checkpoints() -> None:
    assert {"mnist-dilate", "refine-rule"} <= {folder.name for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_is_small_and_names_no_machine(folder: Path) -> None:
    assert all(path.stat().st_size <= 5 * 2**20 for path in folder.iterdir())
    assert not Path(load_checkpoint(folder)[1]["training"]["config"]["weights"]).is_absolute()


@pytest.mark.parametrize("folder", of_kind("editor"), ids=lambda folder: folder.name)
def test_editor_reproduces_its_figure(folder: Path) -> None:
    stated = load_checkpoint(folder)[1]["training"]["digits"]
    found = run_demo(Editor.from_pretrained(folder), int(stated["count"]), seed=int(stated["seed"]))
    for row in ("do nothing", "edited", "floor"):
        # The fits, and hence the figures, depend on rounding.
        assert float(found.errors[row].mean()) == pytest.approx(stated[row], rel=0.05), row
    assert stated["edited"] < stated["do nothing"]


@pytest.mark.parametrize("folder", of_kind("refinement rule"), ids=lambda folder: folder.name)
def test_rule_reproduces_its_figure_and_beats_the_one_set_by_hand(folder: Path) -> None:
    stated = load_checkpoint(folder)[1]["training"]["digits"]
    images = digit_images(stated["count"])[0]
    stack = fit(images, generator=torch.Generator().manual_seed(stated["seed"])).stack
    known, wanted = target_of("dilate", stack), operation("dilate")(images)
    errors = [
        float(mean_squared_errors(refine(stack, known, stated["steps"], rule=rule), wanted).mean())
        for rule in (LearnedKFAC.from_pretrained(folder), KFAC())
    ]
    assert errors[0] == pytest.approx(stated["refined"], rel=0.05)
    assert errors[0] < 0.8 * errors[1]
