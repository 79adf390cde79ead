"""Whether an edit that changes content does: what a classifier reads in INRs before and after it.

python tasks/try_content.py --editor runs/three-to-eight/editor --weights runs/threes --images ylecun/mnist
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional

from weightedit.cli.main import told_in_one_line
from weightedit.data.images import ImageSet, load_images
from weightedit.data.weight_sets import load_weight_set
from weightedit.editing.editor import Editor
from weightedit.plots import ImageColumn, sheet
from weightedit.training.report import table, write_result


@dataclass(frozen=True)
class Config:
    """What is asked of which editor.

    The classifier, a small CNN, is trained here on real pictures, and kept nowhere. It reads the test INRs, their edits
    and, as a control, the test pictures of the wanted class. Also given are mean squared errors: of how far a picture
    is from its source, and from the nearest training picture of the wanted class; real pictures of that class say how
    far such are from one another. Written: content.{json,md,png}; the picture shows the first INRs as they come.

    Attributes:
        editor: folder or name, of one operation.
        weights: folder of a weight set, whose test INRs are edited.
        images: data set with labels, splits train and test.
        wanted: the class that pictures are to become.
        steps: of the editor; none given, its own.
        count: test INRs; 0 for all.
        epochs: of the classifier.
        shown: INRs in the picture.
        out: folder of what is written.
        smoke: seconds instead of minutes.
    """

    editor: str = "mnist-three-to-eight"
    weights: str = "runs/threes"
    images: str = "ylecun/mnist"
    wanted: int = 8
    steps: tuple[int, ...] = ()
    count: int = 0
    epochs: int = 2
    shown: int = 20
    out: str = "runs/content"
    smoke: bool = False

    def run(self) -> dict[str, dict[str, float]]:
        """Train the classifier, edit, read; returns the figures."""
        if self.smoke:
            return replace(self, count=4, epochs=1, shown=2, smoke=False).run()
        train, test = (load_images(self.images, split) for split in ("train", "test"))
        reader = trained(train, self.epochs)
        right = float((read(reader, test.floats()) == test.labels).float().mean())
        editor, given = Editor.from_pretrained(self.editor), load_weight_set(self.weights, "test", self.count or None)
        edited = given.stack.render()
        known = train.of_labels((self.wanted,)).floats()
        before = edited.clamp(0, 1)
        pictures = {"INRs as they were": before}
        for steps in self.steps or (editor.steps,):
            edited = editor.unguarded(given.stack, steps=steps, progress=True).render().clamp(0, 1)
            pictures[f"edited, {steps} steps"] = edited
        others = test.of_labels((self.wanted,)).floats()
        figures = {
            name: {
                "read as wanted": float((read(reader, found) == self.wanted).float().mean()),
                "from the source": float((found - before).square().mean()),
                "from the nearest": float(nearest(found, known)[0].mean()),
            }
            for name, found in pictures.items()
        }
        figures["nearest training pictures in their place"] = {
            "read as wanted": 1.0,
            "from the source": float((known[nearest(before, known)[1]] - before).square().mean()),
            "from the nearest": 0.0,
        }
        figures["test pictures of that class"] = {
            "read as wanted": float((read(reader, others) == self.wanted).float().mean()),
            "from the source": float((others[torch.arange(len(before)) % len(others)] - before).square().mean()),
            "from the nearest": float(nearest(others, known)[0].mean()),
        }
        told = ("read as wanted", "from the source", "from the nearest")
        heads = ["pictures", f"read as {self.wanted}, %", "MSE to the source", "MSE to the nearest of training"]
        rows = [
            [name, f"{100 * row[told[0]]:.1f}", *(f"{row[kind]:.4f}" for kind in told[1:])]
            for name, row in figures.items()
        ]
        text = f"{len(before)} test INRs, a classifier that is right about {100 * right:.1f} % of the test pictures\n\n"
        print(text + table(heads, rows))
        write_result(self.out, "content", {"classifier": right, **figures}, text + table(heads, rows))
        self.draw(before, edited, known)
        return figures

    def draw(self, before: Tensor, after: Tensor, known: Tensor) -> None:
        """The first INRs before and after, and the training picture nearest to the edit, in two blocks of rows."""
        columns, half = [], max(1, min(self.shown, len(before)) // 2)
        for rows in (slice(0, half), slice(len(before[:half]), 2 * half)):
            columns += [
                ImageColumn("INR\nrendered", before[rows]),
                ImageColumn("edited INR\nonly weights changed", after[rows]),
                ImageColumn("nearest\nof training", known[nearest(after[rows], known)[1]]),
            ]
        sheet(columns, Path(self.out) / "content.png")


def nearest(pictures: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error [N] to the nearest of known pictures, and its number [N]."""
    distances = torch.cdist(pictures.flatten(1), known.flatten(1)).square() / known[0].numel()
    found = distances.min(1)
    return found.values, found.indices


def trained(images: ImageSet, epochs: int) -> nn.Module:
    """A small CNN that tells the classes."""
    torch.manual_seed(0)
    floats, size = images.floats(), images.images.shape[-1] // 4
    net = nn.Sequential(
        *(nn.Conv2d(floats.shape[1], 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(32 * size * size, 64), nn.ReLU(), nn.Linear(64, int(images.labels.max()) + 1)),
    )
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(floats)).split(128):
            optimizer.zero_grad()
            functional.cross_entropy(net(floats[rows]), images.labels[rows]).backward()
            optimizer.step()
    return net.eval()


@torch.no_grad()
def read(net: nn.Module, pictures: Tensor) -> Tensor:
    """The class [N] that each picture is read as."""
    return torch.cat([net(part).argmax(1) for part in pictures.split(1000)])


if __name__ == "__main__":
    sys.exit(told_in_one_line("try_content", lambda: tyro.cli(Config, description=__doc__).run()))
