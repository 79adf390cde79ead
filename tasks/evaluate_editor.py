"""Test an editor on weight sets and output widths that it may never have seen.

    python tasks/evaluate_editor.py --editor checkpoints/mnist-dilate-predictive \
        --weights runs/mnist-inrs runs/mnist-48 runs/mnist-32x3 --factors 1 2 4 8 --out runs/transfer

For every weight set (tasks/fit_inrs.py, of any widths, depths and image sizes) and every factor by which the edited
INRs are wider: mean squared errors against the operation of the source image, of doing nothing, of the edit, and of the
same SIREN fitted to the target itself. Written are transfer.md and transfer.json.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from weightedit.cli.arguments import SHIPPED_PREDICTIVE, find_editor
from weightedit.cli.main import told_in_one_line
from weightedit.data.weight_sets import load_weight_set
from weightedit.editing.editor import Editor
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.loading import load_editor
from weightedit.editing.operations import operation
from weightedit.errors import WeightEditError
from weightedit.inr.fitting import fit_directly
from weightedit.inr.widening import widen


@dataclass(frozen=True)
class Config:
    """One evaluation.

    Attributes:
        weights: folders of weight sets.
        editor: folder of an editor, one-shot or predictive.
        operation: one of the editor's; empty for its first.
        strength: of the operation, for an editor that has strengths.
        factors: output widths, as multiples of the given ones; 1 for a one-shot editor.
        steps: numbers of learned steps of a predictive editor; empty for its own.
        test_limit: test INRs of each set; 0 for all.
        floor_count: of these, how many are fitted directly.
        out: folder for table and figures.
        smoke: seconds instead of minutes.
    """

    weights: tuple[str, ...] = ("runs/mnist-inrs",)
    editor: str = SHIPPED_PREDICTIVE
    operation: str = ""
    strength: float = 1.0
    factors: tuple[int, ...] = (1,)
    steps: tuple[int, ...] = ()
    test_limit: int = 256
    floor_count: int = 32
    out: str = "runs/transfer"
    smoke: bool = False


def main(config: Config) -> list[dict[str, object]]:
    """Evaluate, print and write the table; returns its rows."""
    if config.smoke:
        config = replace(config, test_limit=4, floor_count=2, factors=config.factors[:1])
    editor = load_editor(find_editor(config.editor))
    name = config.operation or editor.operations[0]
    if name not in editor.operations:
        known = ", ".join(editor.operations)
        raise WeightEditError(f"--operation {name} came; this editor knows {known}: choose one of them.")
    if isinstance(editor, Editor) and (config.factors != (1,) or config.steps or config.strength != 1.0):
        raise WeightEditError(
            f"--factors {config.factors}, --steps {config.steps}, --strength {config.strength} came with a one-shot "
            "editor; expected them with a predictive one: leave them out."
        )
    found: list[dict[str, object]] = []
    for folder in config.weights:
        test = load_weight_set(folder, "test", config.test_limit or None)
        wanted = operation(name).at(test.floats(), config.strength)
        nothing = float(mean_squared_errors(test.stack, wanted).mean())
        few = slice(config.floor_count)
        for factor in config.factors:
            own = editor.options.widen if isinstance(editor, Editor) else 1
            given = widen(test.stack[few], factor * own)
            floor = float(mean_squared_errors(fit_directly(given, wanted[few]), wanted[few]).mean())
            for steps in config.steps or (None,):
                started = time.perf_counter()
                if isinstance(editor, Editor):
                    edited = editor.edit(test.stack)
                else:
                    edited = editor.edit(test.stack, name, config.strength, steps=steps, factor=factor)
                seconds = time.perf_counter() - started
                found.append(
                    {
                        "weights": Path(folder).name,
                        "given": "-".join(map(str, test.stack.widths)),
                        "edited": "-".join(map(str, edited.widths)),
                        "image": f"{test.stack.height} x {test.stack.width}",
                        "steps": steps if steps is not None else getattr(editor, "steps", 0),
                        "INRs": len(test),
                        "do nothing": nothing,
                        "error": float(mean_squared_errors(edited, wanted).mean()),
                        "floor": floor,
                        "ms per INR": 1e3 * seconds / len(test),
                    }
                )
    text = report(config, name, found)
    print(text)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "transfer.md").write_text(text + "\n")
    (out / "transfer.json").write_text(json.dumps(found, indent=2))
    return found


def report(config: Config, name: str, found: list[dict[str, object]]) -> str:
    """Markdown: a row per weight set, output width and number of steps."""
    lines = [
        f"{name}, strength {config.strength:g}, {Path(config.editor).name}: mean squared error x 1e-2 on test INRs",
        "",
        "| given | image | edited | steps | INRs | do nothing | edited, error | floor |",
        "|---" * 8 + "|",
    ]
    for row in found:
        errors = (f"{100 * float(str(row[key])):.3f}" for key in ("do nothing", "error", "floor"))
        cells = [str(row[key]) for key in ("given", "image", "edited", "steps", "INRs")]
        lines.append(f"| {' | '.join([*cells, *errors])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    sys.exit(told_in_one_line("evaluate_editor", lambda: main(config)))
