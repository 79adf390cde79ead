"""Compare ways of editing INRs: error against time of every one that is here, side by side in one run.

    python tasks/compare_editors.py --weights runs/mnist-inrs --out runs/frontier

What editors make of INRs of other kinds is try_editors.py's.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import torch
import tyro
from tqdm import tqdm

from weightedit.cli.main import told_in_one_line
from weightedit.data.weight_sets import load_weight_set
from weightedit.editing.curvature import KFAC, LearnedKFAC, LevenbergMarquardt
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.one_shot import OneShotEditor
from weightedit.editing.operations import operation
from weightedit.editing.predictive_editor import PredictiveEditor
from weightedit.editing.refinement import GradientSteps, RefinementRule, refine, target_of
from weightedit.editing.training import edit_error
from weightedit.errors import WeightEditError
from weightedit.inr.fitting import fit_directly
from weightedit.inr.stack import INRStack
from weightedit.optim.hand_designed import Adam
from weightedit.plots import Curve, frontier
from weightedit.training.report import table, write_result

BUDGETS = (1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 50.0, 100.0)
"""Milliseconds per INR."""
MANY = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 40)
STEPS: dict[str, tuple[int, ...]] = {
    "Adam": (1, 3, 10, 30, 100),
    "Adam, last layer solved": (0, 1, 3, 10, 30, 100),
    "K-FAC": (1, 2, 3, 5, 8, 12, 20, 40),
    "Levenberg-Marquardt": (1, 2, 3, 5),
    "one-shot editor": (0,),
    "learned steps": MANY,
    "one-shot, then learned steps": (0, 1, 2, 3, 5, 8, 12),
    "predictive editor": MANY,
}
"""Contenders, and the numbers of steps that each is measured at."""
OWN = ("one-shot editor", "learned steps", "one-shot, then learned steps", "predictive editor")
Key = tuple[str, int]
Edit = Callable[[INRStack], INRStack]


@dataclass(frozen=True)
class Point:
    """One contender at one number of steps: how it was tuned, its test error, and milliseconds per INR by batch."""

    name: str
    steps: int
    tuned: str
    error: float
    milliseconds: dict[int, float]


@dataclass(frozen=True)
class Config:
    """Error against time of every way of editing.

    All see the INR's weights only. Rules that refine make their target from the INR's own rendering, and that is part
    of their time; a predictive editor is never told the operation. The error is taken against operation(source image).
    Numbers of hand-made rules are tuned for every number of steps on validation INRs. Contenders take turns at every
    batch (A B C A B C ...), and the median counts. Written are frontier.json, frontier.md and frontier.png.

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

    def run(self) -> list[Point]:
        """Tune, measure, print the table, and write it with the plot."""
        if self.smoke and self.test_count > 4:
            return replace(self, test_count=4, single_count=2, tune_count=2, rounds=1).run()
        if unknown := set(self.without) - set(STEPS):
            raise WeightEditError(
                f"got --without {sorted(unknown)}; expected names among {', '.join(STEPS)}: correct it."
            )
        if self.threads:
            torch.set_num_threads(self.threads)
        test = load_weight_set(self.weights, "test", self.test_count)
        wanted = operation(self.operation)(test.floats())
        tuned, jobs = self.by_hand()
        jobs |= self.own()
        jobs = {(name, steps): jobs[name, steps] for name in STEPS for steps in STEPS[name] if (name, steps) in jobs}
        results = {key: job(test.stack) for key, job in tqdm(jobs.items(), desc="errors")}
        errors = {key: float(mean_squared_errors(edited, wanted).mean()) for key, edited in results.items()}
        times = {size: self.times(jobs, test.stack, size) for size in (64, 1)}
        points = [
            Point(*key, tuned.get(key, ""), errors[key], {size: of[key] for size, of in times.items()}) for key in jobs
        ]
        nothing = edit_error(test, self.operation)
        floor = float(mean_squared_errors(fit_directly(test.stack, wanted), wanted).mean())
        text = self.report(points, nothing, floor)
        print(text)
        facts = {"config": asdict(self), "points": [asdict(p) for p in points], "do nothing": nothing, "floor": floor}
        write_result(self.out, "frontier", facts, text)
        panels = {f"batch of {size}": curves(points, size) for size in times}
        heading = f"{self.operation} by weights alone, {len(test)} INRs, {torch.get_num_threads()} threads"
        print(f"drew {frontier(panels, Path(self.out) / 'frontier.png', heading=heading, floor=floor)}")
        return points

    def wanted(self, name: str) -> tuple[int, ...]:
        """Numbers of steps of a contender."""
        return () if name in self.without else STEPS[name][: 2 if self.smoke else None]

    def by_hand(self) -> tuple[dict[Key, str], dict[Key, Edit]]:
        """Contenders that are made by hand: how each was tuned for its number of steps, and its edit of a stack."""
        tune = load_weight_set(self.weights, "validation", self.tune_count)
        known, wanted = target_of(self.operation, tune.stack), operation(self.operation)(tune.floats())

        def error(rule: RefinementRule, steps: int) -> float:
            return float(mean_squared_errors(refine(tune.stack, known, steps, rule=rule), wanted).mean())

        keys = [(name, steps) for name in STEPS if name not in OWN for steps in self.wanted(name)]
        best = {
            (name, steps): min(candidates(name, steps), key=lambda rule, steps=steps: error(rule, steps))
            for name, steps in tqdm(keys, desc="tuning")
        }
        return {key: str(rule) for key, rule in best.items()}, {
            key: self.refining(rule, key[1]) for key, rule in best.items()
        }

    def own(self) -> dict[Key, Edit]:
        """Contenders that are learned."""
        learned = LearnedKFAC.from_pretrained(self.rule or "refine-rule")
        editor = None if self.editor == "none" else OneShotEditor.from_pretrained(self.editor or "mnist-dilate")
        if editor is not None and editor.operation != self.operation:
            editor = None
        jobs: dict[Key, Edit] = {}
        jobs |= {("learned steps", n): self.refining(learned, n) for n in self.wanted("learned steps")}
        for name in ("one-shot editor", "one-shot, then learned steps") if editor is not None else ():
            jobs |= {(name, n): self.refining(learned, n, editor) for n in self.wanted(name)}
        if (edit := self.predictive_editor()) is not None:
            for n in self.wanted("predictive editor"):
                jobs["predictive editor", n] = lambda stack, n=n, edit=edit: edit(stack, self.operation, steps=n)
        return jobs

    def refining(self, rule: RefinementRule, steps: int, first: OneShotEditor | None = None) -> Edit:
        """Steps of a rule, after an editor if there is one."""

        def edit(stack: INRStack) -> INRStack:
            start = stack if first is None else first.unguarded(stack)
            # A batch of one stays a call of one INR; larger ones are chunked as users' are.
            return start if first and not steps else refine(start, target_of(self.operation, stack), steps, rule=rule)

        return edit

    def predictive_editor(self) -> PredictiveEditor | None:
        """The one that was asked for, if it knows the operation."""
        if self.predictive == "none":
            return None
        editor = PredictiveEditor.from_pretrained(self.predictive or "mnist-dilate-predictive")
        if self.operation not in editor.operations and self.predictive:
            raise WeightEditError(
                f"got --predictive {self.predictive}, which knows {', '.join(editor.operations)} and not "
                f'{self.operation}; expected one that does: name it, or "none".'
            )
        return editor if self.operation in editor.operations else None

    def times(self, jobs: Mapping[Key, Edit], stack: INRStack, size: int) -> dict[Key, float]:
        """Median milliseconds per INR over batches of `size` and rounds; contenders take turns at every batch."""
        stack = stack if size > 1 else stack[: self.single_count]
        taken: dict[Key, list[float]] = {key: [] for key in jobs}
        for _ in tqdm(range(self.rounds), desc=f"times, batch of {size}"):
            for start in range(0, len(stack), size):
                part = stack[start : start + size]
                for key, job in jobs.items():
                    job(part[:1])
                    before = time.perf_counter()
                    job(part)
                    taken[key].append((time.perf_counter() - before) / len(part))
        return {key: 1e3 * statistics.median(found) for key, found in taken.items()}

    def report(self, points: list[Point], nothing: float, floor: float) -> str:
        """Markdown: the lowest error within every budget, then every point."""
        names = list(dict.fromkeys(point.name for point in points))
        lines = [
            f"{self.operation}, {self.test_count} test INRs, mean squared error x 1e-2 against the operation of the "
            f"source image; {torch.get_num_threads()} threads. Do nothing {100 * nothing:.3f}, floor {100 * floor:.3f}."
        ]
        for size in (64, 1):
            rows = []
            for budget in BUDGETS:
                found = [best_within(points, name, size, budget) for name in names]
                best = min((e for e in found if e is not None), default=None)
                cells = ["-" if e is None else f"{'**' * (e == best)}{100 * e:.3f}{'**' * (e == best)}" for e in found]
                rows.append([f"{budget:g}", *cells])
            lines += ["", f"Lowest error within a budget, batch of {size}:", "", table(["ms per INR", *names], rows)]
        heads = ["contender", "steps", "error", "ms, batch of 64", "ms, batch of 1", "tuned"]
        rows = [
            [p.name, p.steps, f"{100 * p.error:.3f}", *(f"{p.milliseconds[size]:.2f}" for size in (64, 1)), p.tuned]
            for p in points
        ]
        return "\n".join([*lines, "", "Every point:", "", table(heads, rows)])


def candidates(name: str, steps: int) -> list[RefinementRule]:
    """What a hand-made rule is tuned among, for this number of steps."""
    if name == "Levenberg-Marquardt":
        return [LevenbergMarquardt(damping) for damping in (1e-3, 1e-2, 1e-1)]
    if name == "K-FAC":
        return [KFAC(*numbers) for numbers in product((0.2, 0.3, 0.5), (0.0, 0.3, 0.5), (0.03, 0.1, 0.3))]
    grid = product((1e-3, 2e-3, 4e-3, 8e-3, 16e-3), ((0.9, 0.999), (0.7, 0.98)))
    return [GradientSteps(Adam(rate, pair, horizon=max(steps, 1)), name != "Adam") for rate, pair in grid]


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


if __name__ == "__main__":
    sys.exit(told_in_one_line("compare_editors", lambda: tyro.cli(Config, description=__doc__).run()))
