"""Try editors on INRs of other kinds than those that they were trained on.

    python tasks/try_editors.py transfer --editor checkpoints/mnist-dilate-predictive \
        --weights runs/mnist-inrs runs/mnist-48 runs/mnist-32x3 --factors 1 2 4 8 --out runs/transfer
    python tasks/try_editors.py pictures --editors varied-multi mnist-multi --images ylecun/mnist photographs

transfer: an editor on weight sets and output widths that it may never have seen.
pictures: editors beside each other on pictures of several kinds: of how many INRs they make something better.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from weightedit.cli.main import told_in_one_line
from weightedit.cli.preview import draw_strengths
from weightedit.data.inr_fitting import ImageSource
from weightedit.data.photographs import PHOTOGRAPHS
from weightedit.data.weight_sets import load_weight_set
from weightedit.editing.editor import Editor
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.guard import guard
from weightedit.editing.operations import operation
from weightedit.editing.predictor import lightness
from weightedit.editing.refinement import target_of
from weightedit.errors import WeightEditError
from weightedit.inr.fitting import fit, fit_directly
from weightedit.inr.widening import widen
from weightedit.training.report import table, write_result


@dataclass(frozen=True)
class Transfer:
    """Test an editor on weight sets and output widths that it may never have seen.

    For every weight set (tasks/fit_inrs.py, of any widths, depths and image sizes) and every factor by which the edited
    INRs are wider: mean squared errors against the operation of the source image, of doing nothing, of the edit, and of
    the same SIREN fitted to the target itself. Written are transfer.md and transfer.json.

    Attributes:
        weights: folders of weight sets.
        editor: folder of an editor, one-shot or predictive.
        operation: one of the editor's; empty for its first.
        strength: of the operation, for an editor that has strengths.
        factors: output widths, as multiples of the given ones, for an editor that widens.
        steps: numbers of learned steps; empty for the editor's own.
        test_limit: test INRs of each set; 0 for all.
        floor_count: of these, how many are fitted directly.
        out: folder for table and figures.
        smoke: seconds instead of minutes.
    """

    weights: tuple[str, ...] = ("runs/mnist-inrs",)
    editor: str = "mnist-dilate-predictive"
    operation: str = ""
    strength: float = 1.0
    factors: tuple[int, ...] = (1,)
    steps: tuple[int, ...] = ()
    test_limit: int = 256
    floor_count: int = 32
    out: str = "runs/transfer"
    smoke: bool = False

    def run(self) -> list[dict[str, Any]]:
        """Evaluate, print and write the table; returns its rows."""
        if self.smoke:
            return replace(self, test_limit=4, floor_count=2, factors=self.factors[:1], smoke=False).run()
        editor = Editor.from_pretrained(self.editor)
        name = self.operation or editor.operations[0]
        if name not in editor.operations:
            known = ", ".join(editor.operations)
            raise WeightEditError(f"got --operation {name}; this editor knows {known}: choose one of them.")
        found: list[dict[str, Any]] = []
        for folder in self.weights:
            test = load_weight_set(folder, "test", self.test_limit or None)
            wanted = operation(name).at(test.floats(), self.strength)
            nothing, few = float(mean_squared_errors(test.stack, wanted).mean()), slice(self.floor_count)
            for factor in self.factors:
                wide = widen(
                    test.stack[few], editor(test.stack[:1], name, widen=factor).widths[1] // test.stack.widths[1]
                )
                floor = float(mean_squared_errors(fit_directly(wide, wanted[few]), wanted[few]).mean())
                for steps in self.steps or (None,):
                    started = time.perf_counter()
                    edited = editor.unguarded(test.stack, name, strength=self.strength, steps=steps, widen=factor)
                    seconds = time.perf_counter() - started
                    found.append(
                        {
                            "weights": Path(folder).name,
                            "given": "-".join(map(str, test.stack.widths)),
                            "image": f"{test.stack.height} x {test.stack.width}",
                            "edited": "-".join(map(str, edited.widths)),
                            "steps": editor.steps if steps is None else steps,
                            "INRs": len(test),
                            "do nothing": nothing,
                            "error": float(mean_squared_errors(edited, wanted).mean()),
                            "floor": floor,
                            "ms per INR": 1e3 * seconds / len(test),
                        }
                    )
        kinds, errors = ("given", "image", "edited", "steps", "INRs"), ("do nothing", "error", "floor")
        rows = [[*(row[k] for k in kinds), *(f"{100 * row[k]:.3f}" for k in errors)] for row in found]
        text = (
            f"{name}, strength {self.strength:g}, {Path(self.editor).name}: mean squared error x 1e-2 on test INRs\n\n"
        )
        text += table([*kinds, "do nothing", "edited, error", "floor"], rows)
        print(text)
        write_result(self.out, "transfer", found, text)
        return found


@dataclass(frozen=True)
class Pictures:
    """Editors beside each other on unseen pictures of several kinds, color and gray, as `weightedit fit` fits them.

    Per kind, operation and editor, as the edit comes, at full strength: the median error, the share of INRs that are
    better than they were against the operation of the source image, and against that of their own rendering, by which
    an editor's guard keeps them. pictures.png shows the first editor's operations by degrees, a picture each.

    Attributes:
        editors: names or folders; each is asked for its own operations, where it takes the number of channels.
        images: hub names, folders of images, or "photographs"; their test splits.
        sizes: of photographs, in pixels.
        hidden: hidden widths; empty for those that fit the size.
        count: pictures of each kind.
        out: folder for table and figures.
        smoke: seconds instead of minutes.
    """

    editors: tuple[str, ...] = ("varied-multi",)
    images: tuple[str, ...] = ("photographs",)
    sizes: tuple[int, ...] = (28, 64)
    hidden: tuple[int, ...] = ()
    count: int = 128
    out: str = "runs/pictures"
    smoke: bool = False

    def run(self) -> list[dict[str, Any]]:
        """Evaluate, print and write the table; returns its rows."""
        if self.smoke:
            return replace(self, count=2, sizes=self.sizes[:1], smoke=False).run()
        editors = {Path(name).name: Editor.from_pretrained(name) for name in self.editors}
        found = [row for kind, images in self.kinds() for row in self.rows(kind, images, editors)]
        columns = list(found[0])
        lines = [[told(name, row[name]) for name in columns] for row in found]
        text = table([name.replace("median ", "") for name in columns], lines)
        text = f"Median errors x 1e-3, {self.count} unseen pictures of each kind\n\n{text}"
        print(text)
        write_result(self.out, "pictures", found, text)
        return found

    def kinds(self) -> Iterator[tuple[str, Tensor]]:
        """Names and pictures [N, C, H, W], and where they have colors the same in gray."""
        for source in self.images:
            for size in self.sizes if source == PHOTOGRAPHS else (0,):
                chosen = ImageSource(source, limit=max(2, self.count), validation=1, test_limit=self.count, size=size)
                images, split = chosen.read()
                pictures = images[split == 2].floats()
                kind = f"{Path(source).name} {pictures.shape[-1]}"
                if pictures.shape[1] == 3:
                    yield f"{kind} color", pictures
                yield f"{kind} gray", lightness(pictures)

    def rows(self, kind: str, images: Tensor, editors: Mapping[str, Editor]) -> Iterator[dict[str, Any]]:
        """A row per operation and editor."""
        channels, generator = images.shape[1], torch.Generator().manual_seed(0)
        widths = (2, *self.hidden, channels) if self.hidden else None
        result = fit(images, widths=widths, generator=generator)
        place = Path(self.out) / "pictures.png"
        for label, editor in editors.items():
            if editor.channels not in (channels, None):
                continue
            if not place.exists():
                shown = slice(len(editor.operations))
                place.parent.mkdir(parents=True, exist_ok=True)
                draw_strengths(editor, result.stack[shown], images[shown], place)
            for name in tqdm(editor.operations, desc=f"{label}, {kind}"):
                wanted, known = operation(name)(images), target_of(name, result.stack)
                nothing = mean_squared_errors(result.stack, wanted)
                edited = editor.unguarded(result.stack, name)
                errors = mean_squared_errors(edited, wanted)
                yield {
                    "kind": kind,
                    "dB": float(result.psnr.median()),
                    "operation": name,
                    "editor": label,
                    "median do nothing": float(nothing.median()),
                    "median edited": float(errors.median()),
                    "better": float((errors < nothing).double().mean()),
                    "kept": float((guard(result.stack, edited, known).part == 1).double().mean()),
                }


def told(name: str, value: str | float) -> str:
    """A cell of the table of `Pictures`."""
    if isinstance(value, str):
        return value
    if name == "dB":
        return f"{value:.1f}"
    return f"{1e3 * value:.2f}" if name.startswith("median") else f"{100 * value:.1f} %"


Config = Transfer | Pictures


if __name__ == "__main__":
    sys.exit(told_in_one_line("try_editors", lambda: tyro.cli(Config, description=__doc__).run()))
