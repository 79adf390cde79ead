"""The sheets that show an edit: images before and after, what was wanted, and how the weights changed.

Here: which columns a sheet has and what stands below each picture. How a sheet is drawn is plots.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from weightedit.cli.demo import Demo
from weightedit.editing.editor import Editor
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.operations import operation
from weightedit.inr.stack import INRStack
from weightedit.plots import ChangeColumn, ImageColumn, sheet


def change_column(before: INRStack, after: INRStack) -> ChangeColumn:
    """How the largest hidden weight matrix of each INR changed, with the size of the change relative to it below."""
    count = len(before.widths) - 1
    layer = max(range(count), key=lambda i: before.params[f"layers.{i}.weight"][0].numel())
    pair = [stack.params[f"layers.{layer}.weight"].detach() for stack in (before, after)]
    rows, columns = (min(sizes) for sizes in zip(*(one.shape[1:] for one in pair), strict=True))
    weights, changed = (one[:, :rows, :columns] for one in pair)  # of INRs that were widened, what both have
    change = changed - weights
    sizes = change.flatten(1).norm(dim=1) / weights.flatten(1).norm(dim=1)
    captions = [f"{100 * size:.1f} % of the weights" for size in sizes.tolist()]
    return ChangeColumn(f"change in weights\nlayer {layer}, {rows} × {columns}", change, captions)


def draw_demo(found: Demo, name: str, path: str | Path) -> Path:
    """The demo's sheet: image, INR, edited INR, what was wanted, change in weights; one row per digit.

    Args:
        found: what run_demo returned.
        name: of the operation.
        path: of the PNG.
    """
    mean = {kind: float(values.mean()) for kind, values in found.errors.items()}
    height, width = found.images.shape[2:]
    columns: list[ImageColumn | ChangeColumn] = [
        ImageColumn(f"image\n{height} × {width}", found.images),
        ImageColumn("INR\nrendered", found.fitted.render(), _errors(found.errors["do nothing"])),
        ImageColumn("edited INR\nonly weights changed", found.edited.render(), _errors(found.errors["edited"])),
        ImageColumn(f"wanted\n{name} of the image", found.targets, _errors(found.errors["floor"], "floor ")),
        change_column(found.fitted, found.edited),
    ]
    heading = f"{name} by weights alone: mean squared error {mean['do nothing']:.4f} before, {mean['edited']:.4f} after"
    return sheet(columns, path, heading=heading, labels=[str(label) for label in found.labels.tolist()])


def draw_edit(
    name: str, before: INRStack, after: INRStack, targets: Tensor | None, path: str | Path, *, strength: float = 1.0
) -> Path:
    """The preview of an edit: INRs before and after, what was aimed at where it is known, and the change in weights.

    Args:
        name: of the operation.
        before, after: the same N INRs, of 1 or 3 channels.
        targets: [N, C, H, W] of guard.known_target, or None.
        path: of the PNG.
        strength: of the operation that was aimed at.
    """
    columns: list[ImageColumn | ChangeColumn] = [ImageColumn("INR\nrendered", before.render())]
    captions = [] if targets is None else _errors(mean_squared_errors(after, targets))
    columns.append(ImageColumn("edited INR\nonly weights changed", after.render(), captions))
    if targets is not None:
        columns.append(ImageColumn(f"wanted\n{name} of the INR", targets))
    columns.append(change_column(before, after))
    heading = f"{name} by weights alone" + (f", strength {strength:g}" if strength != 1.0 else "")
    return sheet(columns, path, heading=heading, labels=[str(n) for n in range(len(before))])


def draw_strengths(
    editor: Editor,
    stack: INRStack,
    sources: Tensor,
    path: str | Path,
    *,
    strengths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    examples: Tensor | None = None,
) -> Path:
    """The strength knob swept: a row per INR, which takes the editor's operations in turn, a column per strength.

    Args:
        editor: with one operation or several.
        stack: N INRs of 1 or 3 channels.
        sources: their images [N, C, H, W] in [0, 1]; the last column shows the operation of these.
        path: of the PNG.
        strengths: of the columns.
        examples: [N, C, H, W] for the last column, where the operation is known by examples alone.
    """
    names = [editor.operations[row % len(editor.operations)] for row in range(len(stack))]
    columns: list[ImageColumn | ChangeColumn] = [ImageColumn("INR\nrendered", stack.render())]
    for strength in strengths:
        rows = ((stack[row : row + 1], name) for row, name in enumerate(names))
        edited = [editor.unguarded(one, name, strength=strength).render() for one, name in rows]
        title = f"strength {strength:g}\n" + ("the INR itself" if strength == 0 else "edited INR")
        columns.append(ImageColumn(title, torch.cat(edited)))
    wanted, of = examples, "the nearest example"
    if wanted is None:
        of = "operation of the image"
        wanted = torch.cat([operation(name)(sources[row : row + 1]) for row, name in enumerate(names)])
    columns[-1] = ImageColumn(title, torch.cat(edited), _errors((torch.cat(edited) - wanted).square().mean((1, 2, 3))))
    columns.append(ImageColumn(f"wanted\n{of}", wanted))
    return sheet(columns, path, heading="operations by degrees, by weights alone", labels=names)


def _errors(values: Tensor, name: str = "MSE ") -> list[str]:
    return [f"{name}{value:.4f}" for value in values.tolist()]
