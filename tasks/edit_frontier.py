"""Error against time: every way of editing that is here, side by side in one run (also: edit_inrs.py --frontier).

    python tasks/edit_frontier.py --weights runs/mnist-inrs --out runs/frontier

All see the INR's weights only. Rules that refine make their target from the INR's own rendering, and that is part of
their time; a predictive editor is never told the operation. The error is taken against operation(source image). Numbers
of hand-made rules are tuned for every number of steps on validation INRs. Contenders take turns at every batch (A B C A
B C ...), and the median counts. Written are frontier.json, frontier.md and frontier.png.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import tyro
from tqdm import tqdm

from weightedit.cli.arguments import SHIPPED_PREDICTIVE, find_editor, find_rule
from weightedit.cli.main import told_in_one_line
from weightedit.data.weight_sets import load_weight_set
from weightedit.editing.curvature import KFAC, LearnedKFAC, LevenbergMarquardt
from weightedit.editing.editor import Editor
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.operations import operation
from weightedit.editing.predictive_editor import PredictiveEditor
from weightedit.editing.refinement import GradientSteps, RefinementRule, refine, target_of
from weightedit.errors import WeightEditError
from weightedit.inr.fitting import fit_directly
from weightedit.inr.stack import INRStack
from weightedit.optim.hand_designed import Adam
from weightedit.plots import Curve, frontier

BUDGETS = (1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 50.0, 100.0)
"""Milliseconds per INR."""


@dataclass(frozen=True)
class Config:
    """One run.

    Attributes:
        weights: folder of a weight set (tasks/fit_inrs.py).
        out: folder for table, figures and plot.
        operation: what the edit is; the editor is asked only if it is its own.
        editor: a one-shot editor; empty is the shipped one, "none" is none.
        predictive: a predictive editor that knows the operation; empty is the shipped one, "none" is none.
        rule: a learned refinement rule; empty is the shipped one.
        without: contenders to leave out, such as Levenberg-Marquardt, whose cost grows with the cube of the pixels.
        test_count: test INRs, in batches of 64.
        single_count: of these, how many are timed one by one.
        tune_count: validation INRs on which the hand-made rules are tuned.
        rounds: turns that every contender takes at every batch.
        threads: of torch; 0 as torch chooses.
        smoke: seconds instead of minutes.
    """

    weights: str = "runs/mnist-inrs"
    out: str = "runs/frontier"
    operation: str = "dilate"
    editor: str = ""
    predictive: str = ""
    rule: str = ""
    without: tuple[str, ...] = ()
    test_count: int = 256
    single_count: int = 8
    tune_count: int = 64
    rounds: int = 2
    threads: int = 0
    smoke: bool = False


STEPS: dict[str, tuple[int, ...]] = {
    "Adam": (1, 3, 10, 30, 100),
    "Adam, last layer solved": (0, 1, 3, 10, 30, 100),
    "K-FAC": (1, 2, 3, 5, 8, 12, 20, 40),
    "Levenberg-Marquardt": (1, 2, 3, 5),
    "one-shot editor": (0,),
    "learned steps": (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 40),
    "one-shot, then learned steps": (0, 1, 2, 3, 5, 8, 12),
    "predictive editor": (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 40),
}
OWN = ("one-shot editor", "learned steps", "one-shot, then learned steps", "predictive editor")


@dataclass(frozen=True)
class Point:
    """One contender at one number of steps: how it was tuned, its test error, and milliseconds per INR by batch."""

    name: str
    steps: int
    tuned: str
    error: float
    milliseconds: dict[int, float]


def candidates(name: str, steps: int) -> list[RefinementRule]:
    """What a hand-made rule is tuned among, for this number of steps."""
    if name == "Levenberg-Marquardt":
        return [LevenbergMarquardt(damping) for damping in (1e-3, 1e-2, 1e-1)]
    if name == "K-FAC":
        numbers = [(r, m, d) for r in (0.2, 0.3, 0.5) for m in (0.0, 0.3, 0.5) for d in (0.03, 0.1, 0.3)]
        return [KFAC(*three) for three in numbers]
    rates, solved = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3), name != "Adam"
    betas = ((0.9, 0.999), (0.7, 0.98))
    return [GradientSteps(Adam(rate, pair, horizon=max(steps, 1)), solved) for rate in rates for pair in betas]


def main(config: Config) -> list[Point]:
    """Tune, measure, print the table, and write it with the plot."""
    config = replace(config, test_count=4, single_count=2, tune_count=2, rounds=1) if config.smoke else config
    if config.threads:
        torch.set_num_threads(config.threads)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    test = load_weight_set(config.weights, "test", config.test_count)
    wanted = operation(config.operation)(test.floats())
    jobs, tuned = contenders(config)
    results = {key: job(test.stack) for key, job in tqdm(jobs.items(), desc="errors")}
    errors = {key: float(mean_squared_errors(edited, wanted).mean()) for key, edited in results.items()}
    batches = {size: take_turns(jobs, test.stack, size, config) for size in (64, 1)}
    points = [
        Point(
            name,
            steps,
            tuned.get((name, steps), ""),
            errors[name, steps],
            {b: t[name, steps] for b, t in batches.items()},
        )
        for name, steps in jobs
    ]
    nothing = float(mean_squared_errors(test.stack, wanted).mean())
    floor = float(mean_squared_errors(fit_directly(test.stack, wanted), wanted).mean())
    text = report(config, points, nothing, floor)
    print(text)
    (out / "frontier.md").write_text(text + "\n")
    facts = {"config": asdict(config), "points": [asdict(p) for p in points], "do nothing": nothing, "floor": floor}
    (out / "frontier.json").write_text(json.dumps(facts, indent=2))
    panels = {f"batch of {size}": curves(points, size) for size in batches}
    heading = f"{config.operation} by weights alone, {len(test)} INRs, {torch.get_num_threads()} threads"
    print(f"drew {frontier(panels, out / 'frontier.png', heading=heading, floor=floor)}")
    return points


Key = tuple[str, int]


def contenders(config: Config) -> tuple[dict[Key, Callable[[INRStack], INRStack]], dict[Key, str]]:
    """(name, steps) -> edit of a stack, and how the hand-made ones were tuned."""
    learned = LearnedKFAC.from_pretrained(find_rule(config.rule or None))
    editor = None if config.editor == "none" else Editor.from_pretrained(find_editor(config.editor or None))
    if editor is not None and editor.operation != config.operation:
        editor = None
    predictive = _predictive(config)
    tune = load_weight_set(config.weights, "validation", config.tune_count)
    known, wanted = target_of(config.operation, tune.stack), operation(config.operation)(tune.floats())

    def by(rule: RefinementRule, steps: int, first: Editor | None = None) -> Callable[[INRStack], INRStack]:
        def edit(stack: INRStack) -> INRStack:
            start = stack if first is None else first.edit(stack)
            # A batch of one stays a call of one INR; larger ones are chunked as users' are.
            return start if first and not steps else refine(start, target_of(config.operation, stack), steps, rule=rule)

        return edit

    def foresee(by: PredictiveEditor, steps: int) -> Callable[[INRStack], INRStack]:
        return lambda stack: by.edit(stack, config.operation, steps=steps)

    jobs: dict[Key, Callable[[INRStack], INRStack]] = {}
    tuned: dict[Key, str] = {}
    unknown = set(config.without) - set(STEPS)
    if unknown:
        raise WeightEditError(f"--without {sorted(unknown)} came; expected names among {', '.join(STEPS)}: correct it.")
    for name in (name for name in STEPS if name not in config.without):
        all_steps = STEPS[name]
        for steps in tqdm(all_steps[:2] if config.smoke else all_steps, desc=name):
            if name in OWN:
                if name == "predictive editor":
                    if predictive is not None:
                        jobs[name, steps] = foresee(predictive, steps)
                    continue
                if name.startswith("one-shot") and editor is None:
                    continue
                jobs[name, steps] = by(learned, steps, editor if name.startswith("one-shot") else None)
                continue
            found = [
                (float(mean_squared_errors(refine(tune.stack, known, steps, rule=rule), wanted).mean()), number)
                for number, rule in enumerate(candidates(name, steps))
            ]
            best = candidates(name, steps)[min(found)[1]]
            tuned[name, steps], jobs[name, steps] = str(best), by(best, steps)
    return jobs, tuned


def _predictive(config: Config) -> PredictiveEditor | None:
    if config.predictive == "none":
        return None
    folder = find_editor(config.predictive or SHIPPED_PREDICTIVE)
    editor = PredictiveEditor.from_pretrained(folder)
    if config.operation not in editor.operations and config.predictive:
        raise WeightEditError(
            f"--predictive {config.predictive} came, which knows {', '.join(editor.operations)} and not "
            f'{config.operation}; expected one that does: name it, or "none".'
        )
    return editor if config.operation in editor.operations else None


def take_turns(
    jobs: Mapping[Key, Callable[[INRStack], INRStack]], stack: INRStack, size: int, config: Config
) -> dict[Key, float]:
    """Median milliseconds per INR over batches of `size` and rounds; contenders take turns at every batch."""
    stack = stack if size > 1 else stack[: config.single_count]
    taken: dict[Key, list[float]] = {key: [] for key in jobs}
    for _ in tqdm(range(config.rounds), desc=f"times, batch of {size}"):
        for start in range(0, len(stack), size):
            part = stack[start : start + size]
            for key, job in jobs.items():
                job(part[:1])
                before = time.perf_counter()
                job(part)
                taken[key].append((time.perf_counter() - before) / len(part))
    return {key: 1e3 * statistics.median(found) for key, found in taken.items()}


def curves(points: list[Point], size: int) -> list[Curve]:
    """One per contender."""
    names = list(dict.fromkeys(point.name for point in points))
    chosen = {name: [point for point in points if point.name == name] for name in names}
    return [
        Curve(name, [p.milliseconds[size] for p in of], [p.error for p in of], own=name in OWN)
        for name, of in chosen.items()
    ]


def best_within(points: list[Point], name: str, size: int, budget: float) -> float | None:
    """The lowest error of a contender that keeps the budget, None if none does."""
    return min((p.error for p in points if p.name == name and p.milliseconds[size] <= budget), default=None)


def report(config: Config, points: list[Point], nothing: float, floor: float) -> str:
    """Markdown: the lowest error within every budget, then every point."""
    names = list(dict.fromkeys(point.name for point in points))
    lines = [
        f"{config.operation}, {config.test_count} test INRs, mean squared error x 1e-2 against the operation of the "
        f"source image; {torch.get_num_threads()} threads. Do nothing {100 * nothing:.3f}, floor {100 * floor:.3f}."
    ]
    for size in (64, 1):
        lines += ["", f"Lowest error within a budget, batch of {size}:", ""]
        lines.append("| ms per INR | " + " | ".join(names) + " |")
        lines.append("|---" * (1 + len(names)) + "|")
        for budget in BUDGETS:
            found = [best_within(points, name, size, budget) for name in names]
            known = [e for e in found if e is not None]
            cells = ["-" if e is None else f"**{100 * e:.3f}**" if e == min(known) else f"{100 * e:.3f}" for e in found]
            lines.append(f"| {budget:g} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Every point:",
        "",
        "| contender | steps | error | ms, batch of 64 | ms, batch of 1 | tuned |",
        "|---" * 6 + "|",
    ]
    for p in points:
        times = " | ".join(f"{p.milliseconds[size]:.2f}" for size in (64, 1))
        lines.append(f"| {p.name} | {p.steps} | {100 * p.error:.3f} | {times} | {p.tuned} |")
    return "\n".join(lines)


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    sys.exit(told_in_one_line("edit_frontier", lambda: main(config)))
