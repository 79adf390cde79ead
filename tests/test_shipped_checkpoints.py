"""Every checkpoint in the repository loads, is small, and reproduces the figure that its config states.

The figure here is the one on the demo's digits, which need no download: the test figure on MNIST is on the card, with
the command that makes it.
"""

from pathlib import Path

import pytest

from weightedit.checkpoint import load_checkpoint
from weightedit.demo import run_demo
from weightedit.editing.editor import Editor

FOLDERS = sorted(path.parent for path in (Path(__file__).parent.parent / "checkpoints").glob("*/config.json"))


def test_there_are_checkpoints() -> None:
    assert "mnist-dilate" in {folder.name for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_reproduces_its_figure(folder: Path) -> None:
    assert all(path.stat().st_size <= 5 * 2**20 for path in folder.iterdir())
    _, config = load_checkpoint(folder)
    stated = config["training"]["digits"]
    found = run_demo(Editor.from_pretrained(folder), int(stated["count"]), seed=int(stated["seed"]))
    for row in ("do nothing", "edited", "floor"):
        # The fits, and hence the figures, depend on rounding.
        assert float(found.errors[row].mean()) == pytest.approx(stated[row], rel=0.05), row
    assert stated["edited"] < stated["do nothing"]
