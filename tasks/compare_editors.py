"""Compare ways of editing INRs, and of fitting them by the same steps.

    python tasks/compare_editors.py frontier --weights runs/mnist-inrs --out runs/frontier
    python tasks/compare_editors.py study --weights runs/mnist-inrs --repeated runs/mnist-inrs-x4 --out runs/study
    python tasks/compare_editors.py transfer --editor checkpoints/mnist-dilate-predictive \
        --weights runs/mnist-inrs runs/mnist-48 runs/mnist-32x3 --factors 1 2 4 8 --out runs/transfer
    python tasks/compare_editors.py fits --rule checkpoints/refine-rule --out runs/fits
    python tasks/compare_editors.py sizes --out runs/sizes
    python tasks/compare_editors.py promises --images ../data --out runs/promises

frontier: error against time of every way of editing that is here, side by side in one run.
study: what each ingredient of a one-shot editor buys, at equal training compute.
transfer: an editor on weight sets and output widths that it may never have seen.
fits: how many steps, and how much time, a SIREN needs from its random initialization to an image.
sizes: what `weightedit fit` makes of a photograph of every size, beside Adam in the same time.
promises: whether steps ever raise an error, whatever the picture, the operation and the rule.

The file is long because it is six commands, one class each.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import tyro
from PIL import Image, ImageOps
from torch.nn import functional
from tqdm import tqdm

from weightedit.cli.main import told_in_one_line
from weightedit.data.images import load_images
from weightedit.data.weight_sets import load_splits, load_weight_set
from weightedit.editing.curvature import KFAC, LearnedKFAC, LevenbergMarquardt
from weightedit.editing.editor import Editor
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.guard import known_target
from weightedit.editing.one_shot import EditorOptions, OneShotEditor
from weightedit.editing.operations import OPERATIONS, operation
from weightedit.editing.predictive_editor import PredictiveEditor
from weightedit.editing.refinement import GradientSteps, RefinementRule, refine, target_of
from weightedit.editing.training import augmented_loss, edit_error, edit_examples, edit_loss, make_editor, train_editor
from weightedit.errors import WeightEditError
from weightedit.inr.convention import Convention
from weightedit.inr.fitting import FitOptions, fit, fit_directly
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack
from weightedit.inr.widening import widen
from weightedit.metanet.gauge_gmn.network import GaugeGMNConfig
from weightedit.optim.hand_designed import Adam
from weightedit.optim.rule_module import RuleModule
from weightedit.plots import Curve, frontier
from weightedit.training.loop import TrainOptions
from weightedit.training.measured import Measured
from weightedit.training.report import table, write_result
from weightedit.training.timing import gigaflop, peak_megabytes, take_turns
from weightedit.training.workers import in_processes

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
"""Contenders of the frontier, and the numbers of steps that each is measured at."""
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
class Frontier:
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


@dataclass(frozen=True)
class Row:
    """One small editor of the study: what differs from the base."""

    metanet: GaugeGMNConfig
    around: EditorOptions = field(default_factory=EditorOptions)
    augment: bool = False
    weights: str = ""
    train_limit: int | None = None


@dataclass(frozen=True)
class Study:
    """What each ingredient of a one-shot editor buys: one small training per ingredient and seed.

    Every row changes one thing of the base (the options of train_editor.py one-shot) and trains for as many steps as
    the base's matrix products, counted forwards and backwards, pay for. Finished runs are kept: started again, it goes
    on. The table is written to study.md, the figures to study.json.

    Attributes:
        weights: folder of a weight set (tasks/fit_inrs.py).
        repeated: folder of one with several INRs per image (--repeats 4); empty leaves the two rows about it out.
        out: folder for the runs, study.md and study.json.
        operation: what is learned.
        only: rows to run; empty for all.
        seeds: runs per row.
        steps: training steps of the base.
        train_limit, validation_limit, test_limit: INRs of each split.
        workers: processes, each on one thread.
        smoke: seconds instead of an hour.
    """

    weights: str = "runs/mnist-inrs"
    repeated: str = ""
    out: str = "runs/study"
    operation: str = "dilate"
    only: tuple[str, ...] = ()
    seeds: int = 3
    steps: int = 600
    train_limit: int = 20_000
    validation_limit: int = 200
    test_limit: int = 1000
    workers: int = 2
    smoke: bool = False

    def run(self) -> dict[str, list[dict[str, float]]]:
        """Train what is not there yet; print and write the table."""
        if self.smoke:
            few = {"train_limit": 8, "validation_limit": 4, "test_limit": 4}
            return replace(self, seeds=1, steps=2, workers=1, smoke=False, **few).run()
        known = self.rows()
        unknown = set(self.only) - set(known)
        if unknown or self.seeds < 1 or self.workers < 1:
            raise WeightEditError(
                f"got --only {sorted(unknown)}, seeds {self.seeds}, workers {self.workers}; expected rows among "
                f"{list(known)} and at least 1 of each: correct them."
            )
        chosen = [name for name in known if not self.only or name in self.only]
        jobs = [(self, name, seed) for seed in range(self.seeds) for name in chosen]
        results: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
        for (_, name, _), found in zip(jobs, in_processes(study_run, jobs, self.workers), strict=True):
            results[name].append(found)
        text = self.report(results)
        print(text)
        write_result(self.out, "study", results, text)
        return results

    def rows(self) -> dict[str, Row]:
        """Every row by its name; the first is the base."""
        start = GaugeGMNConfig(node_width=24, edge_width=8, layers=2, probes=16, forecast=64, initial_scale=0.03)

        def net(**changes: Any) -> Row:
            return Row(replace(start, **changes))

        def around(**changes: Any) -> Row:
            return Row(start, EditorOptions(**changes))

        blind = {"symmetry": "permutation", "neuron_codes": 64}
        found = {
            "base: permutation + sign + phase, 16 probes": Row(start),
            "no symmetry": net(**blind),
            "no symmetry, augmented by random group elements": replace(net(**blind), augment=True),
            "permutation only": net(symmetry="permutation"),
            "permutation + sign": net(symmetry="sign"),
            "no probes": net(probes=0),
            "64 probes": net(probes=64),
            "no forecast": net(forecast=0),
            "closed-form last layer towards the forecast": net(refit=True),
            "64 probes, closed-form last layer towards the forecast": net(probes=64, refit=True),
            "gradient features": around(guides=("gradient",)),
            "K-FAC features": around(guides=("kfac",)),
            "closed-form last layer towards the known target": around(solve_last=True),
            "gradient features, closed-form last layer": around(guides=("gradient",), solve_last=True),
            "K-FAC features, closed-form last layer": around(guides=("kfac",), solve_last=True),
            "no rank-one term": net(rank_one=False),
            "relative signs dropped": net(relative_signs=False),
            "messages one way only": net(bidirectional=False),
            "no edge skip": net(edge_skip=False),
            "output 2 times as wide": around(widen=2),
            "output 4 times as wide": around(widen=4),
        }
        if self.repeated:
            found["2,000 images, 4 INRs each"] = Row(start, weights=self.repeated, train_limit=0)
            found["2,000 images, 1 INR each"] = Row(start, train_limit=2000)
        return found

    def facts(self, name: str, seed: int, folder: Path) -> dict[str, float]:
        """Train an editor, and look at it on the test INRs."""
        row, base = self.rows()[name], next(iter(self.rows().values()))
        splits = load_splits(self.weights, train=1, validation=self.validation_limit, test=self.test_limit)
        limit = self.train_limit if row.train_limit is None else row.train_limit
        splits["train"] = load_weight_set(row.weights or self.weights, "train", limit or None)
        options = TrainOptions.cosine(
            max(2, round(self.cost(base) / self.cost(row) * self.steps)),
            batch_size=32,
            learning_rate=3e-3,
            warmup_steps=30,
            ema_decay=0.99,
            seed=seed,
            validate_every=100,
            checkpoint_every=1000,
        )
        editor = self.editor(replace(row, metanet=replace(row.metanet, seed=seed)), splits["test"].stack)
        about = {"weights": row.weights or self.weights}
        result = train_editor(editor, splits, folder, options, augment=row.augment, about=about)
        return {
            "error": edit_error(splits["test"], self.operation, editor, progress=True),
            "validation": result.best_validation,
            "steps": result.steps,
            "best_step": result.best_step,
            "seconds": result.seconds,
            "parameters": sum(p.numel() for p in editor.parameters()),
            "train_inrs": len(splits["train"]),
            "tested": len(splits["test"]),
        }

    def editor(self, row: Row, stack: INRStack) -> OneShotEditor:
        """An untrained editor of a row."""
        return make_editor(self.operation, stack, gauge_gmn=row.metanet, around=row.around)

    def cost(self, row: Row) -> float:
        """GFLOP of the matrix products of one training step, of two INRs."""
        few = load_weight_set(row.weights or self.weights, "validation", 2)
        editor, batch = self.editor(row, few.stack), edit_examples(few, self.operation)[torch.arange(2)]
        if row.augment:
            return gigaflop(lambda: augmented_loss(editor, batch, torch.Generator().manual_seed(0)).backward())
        return gigaflop(lambda: edit_loss(editor, batch).backward())

    def report(self, results: Mapping[str, list[dict[str, float]]]) -> str:
        """Markdown: a row per ingredient, mean and range over the seeds."""
        tested, rows = next(iter(results.values()))[0]["tested"], []
        for name, found in results.items():
            errors = [100 * one["error"] for one in found]
            spread = f"{statistics.mean(errors):.2f} ({min(errors):.2f} to {max(errors):.2f})"
            rows.append([name, spread, f"{found[0]['parameters']:,.0f}", f"{found[0]['steps']:,.0f}"])
        return (
            f"{self.operation}, one shot, {tested:,} test INRs, mean squared error x 1e-2, mean over "
            f"{self.seeds} seeds (lowest to highest); equal training compute, {self.steps} steps of 32 for the base\n\n"
            + table(["editor", "MSE x 1e-2", "parameters", "steps"], rows)
        )


def study_run(job: tuple[Study, str, int]) -> dict[str, float]:
    """One row with one seed, or its facts where it has been done."""
    study, name, seed = job
    short = "".join(letter if letter.isalnum() else "-" for letter in name.split(":")[0])
    folder = Path(study.out) / f"{short}-{seed}"
    about = {**asdict(study.rows()[name]), "steps": study.steps, "weights": study.weights, "operation": study.operation}
    about |= {"limits": [study.train_limit, study.validation_limit, study.test_limit]}
    return Measured(folder.with_suffix(".json"), about)("facts", lambda: study.facts(name, seed, folder))


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


ADAM = [Adam(rate, betas) for rate, betas in product((1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), ((0.9, 0.999), (0.7, 0.98)))]
GRIDS: dict[str, list[RefinementRule]] = {
    "Adam": [GradientSteps(rule) for rule in ADAM],
    "Adam, last layer solved": [GradientSteps(rule, solve_last=True) for rule in ADAM],
    "K-FAC": [KFAC(*numbers) for numbers in product((0.2, 0.3, 0.5), (0.3, 0.5, 0.7), (0.03, 0.1, 0.3))],
}
COUNTS = (*range(1, 41), *range(42, 101, 2))
"""Steps that a fit may take."""


@dataclass(frozen=True)
class Start:
    """Fresh INRs and the images that they are to become."""

    stack: INRStack
    targets: torch.Tensor

    @classmethod
    def of(cls, images: torch.Tensor, hidden: Sequence[int], seed: int) -> Start:
        """One INR per image, under the default convention."""
        convention, (count, channels, height, width) = Convention(), images.shape
        generator = torch.Generator().manual_seed(seed)
        params = initial_params(count, (2, *hidden, channels), omega=convention.frequency, generator=generator)
        return cls(INRStack(params, convention, height, width), images)

    def psnr(self, rule: RefinementRule, steps: int) -> torch.Tensor:
        """In dB, one per image, after so many steps."""
        return -10 * mean_squared_errors(refine(self.stack, self.targets, steps, rule=rule), self.targets).log10()


@dataclass(frozen=True)
class Fits:
    """How many steps, and how much time, a SIREN needs from its random initialization to an image.

    Contenders: Adam, Adam with the last layer solved, K-FAC (each tuned on a grid over other images for the fewest
    steps to the higher level), and a learned rule as it is. Counted is the least number of steps after which the share
    `share` of all images has reached a level of PSNR; a rule that is told its number of steps is run anew for every
    number. Times are medians per INR in batches of 64, contenders taking turns. Written: fits.json, fits.md.

    Attributes:
        images: a hub name, or a data set that load_images reads.
        split: of it; its first images are the test, the following ones the tuning images.
        rule: folder of a refinement rule.
        update_rules: folders of update rules (meta_train.py --problems mnist-siren), which see gradients only.
        hidden: widths of the sine layers.
        count: test images per seed.
        tune_count: images that hand-designed rules are tuned on.
        seeds: sets of initial weights.
        levels: PSNR in dB to be reached.
        share: of all images.
        rounds: turns of the timing.
        out: folder of what is written.
        smoke: seconds instead of minutes, to see that everything runs.
    """

    images: str = "ylecun/mnist"
    split: str = "test"
    rule: str = "refine-rule"
    update_rules: tuple[str, ...] = ()
    hidden: tuple[int, ...] = (32, 32)
    count: int = 128
    tune_count: int = 32
    seeds: int = 3
    levels: tuple[float, float] = (30.0, 40.0)
    share: float = 0.95
    rounds: int = 5
    out: str = "runs/fits"
    smoke: bool = False

    def run(self) -> dict[str, Any]:
        """Tune, count, time; write fits.{json,md}; returns what is in the first."""
        budgets: Sequence[int] = (1, 2) if self.smoke else COUNTS
        if self.smoke and self.count > 2:
            return replace(self, count=2, tune_count=2, seeds=1, rounds=1, levels=(5.0, 6.0)).run()
        total = self.count * self.seeds + self.tune_count
        images = load_images(self.images, self.split, limit=total).floats()
        if len(images) < total or not 0 < self.share <= 1:
            raise WeightEditError(
                f"got {len(images)} images and a share of {self.share}; expected {total} images and a share in (0, 1]: "
                "lower count, seeds or tune_count."
            )
        *tests, tuning = images.split([self.count] * self.seeds + [self.tune_count])
        starts = [Start.of(part, self.hidden, seed) for seed, part in enumerate(tests)]
        rules = {name: self.tuned(name, Start.of(tuning, self.hidden, 1000), budgets) for name in GRIDS}
        rules["learned"] = LearnedKFAC.from_pretrained(self.rule)
        rules |= {Path(folder).name: GradientSteps(RuleModule.from_pretrained(folder)) for folder in self.update_rules}
        counts = {name: self.least_steps(starts, rule, budgets) for name, rule in tqdm(rules.items(), desc="counting")}
        batch = Start(starts[0].stack[:64], starts[0].targets[:64])
        times = [
            self.milliseconds({name: (rules[name], of[i] or 0) for name, of in counts.items() if of[i]}, batch)
            for i in range(len(self.levels))
        ]
        found = {
            name: {"steps": counts[name], "ms": [of.get(name) for of in times], "rule": str(rules[name])}
            for name in rules
        }
        result = {"config": asdict(self), "threads": torch.get_num_threads(), "rules": found}
        heads = [text for level in self.levels for text in (f"steps to {level:g} dB", "ms per INR")]
        rows = [
            [
                name,
                *(
                    cell
                    for steps, ms in zip(row["steps"], row["ms"], strict=True)
                    for cell in (steps or f"over {COUNTS[-1]}", "-" if ms is None else f"{ms:.2f}")
                ),
            ]
            for name, row in found.items()
        ]
        text = f"{self.share:.0%} of {self.count * self.seeds} images, {self.seeds} seeds\n\n"
        text += table(["rule", *heads], rows)
        write_result(self.out, "fits", result, text)
        print(text)
        return result

    def least_steps(self, starts: Sequence[Start], rule: RefinementRule, budgets: Sequence[int]) -> list[int | None]:
        """Per level, the least of `budgets` after which the share of the images is there."""
        found: list[int | None] = []
        for level in self.levels:
            first = None
            for steps in budgets[budgets.index(found[-1]) if found and found[-1] else 0 :]:
                if found and found[-1] is None:
                    break
                reached = torch.cat([start.psnr(rule, steps) for start in starts]) >= level
                if float(reached.double().mean()) >= self.share:
                    first = steps
                    break
            found.append(first)
        return found

    def tuned(self, name: str, start: Start, budgets: Sequence[int]) -> RefinementRule:
        """The member of the grid that needs the fewest steps to the higher level; by PSNR where none gets there."""

        def merit(rule: RefinementRule) -> tuple[float, float]:
            low, high = 1, len(budgets)  # by bisection: PSNR rises with steps, near enough for tuning
            while low < high:
                middle = (low + high) // 2
                reached = (start.psnr(rule, budgets[middle - 1]) >= self.levels[-1]).double().mean()
                low, high = (low, middle) if float(reached) >= self.share else (middle + 1, high)
            last = start.psnr(rule, budgets[low - 1]).quantile(1 - self.share)
            return (budgets[low - 1] if last >= self.levels[-1] else math.inf), -float(last)

        return min(tqdm(GRIDS[name], desc=f"tuning {name}", leave=False), key=merit)

    def milliseconds(self, contenders: Mapping[str, tuple[RefinementRule, int]], start: Start) -> dict[str, float]:
        """Median time per INR of so many steps, contenders taking turns."""

        def steps(rule: RefinementRule, count: int) -> Callable[[], INRStack]:
            return lambda: refine(start.stack, start.targets, count, rule=rule)

        timed = take_turns({name: steps(*chosen) for name, chosen in contenders.items()}, self.rounds)
        return {name: 1e3 * timing.wall / len(start.stack) for name, timing in timed.items()}


@dataclass(frozen=True)
class Sizes:
    """What the default fit makes of one photograph, by its size and channels, beside plain Adam in the same time.

    The picture is scikit-learn's china.jpg, the middle square of it, resized; Adam's rate is the best of `rates` on its
    flower.jpg, at the same size (at most `tune_size`) and time. Given are dB on the pixels and between them (against
    bicubic interpolation at four times the size, the pixels themselves left out), seconds of the processor, steps, and
    megabytes beyond what the process held. A fit of a row that was stopped starts anew, rows done are kept. Written:
    sizes.json, sizes.md.

    Attributes:
        sizes: sides in pixels.
        channels: 1 is gray, 3 is RGB.
        rates: of Adam.
        tune_size: side of the largest picture that Adam is tuned on; larger ones take the rate of this one.
        target_psnr: dB at which the default fit ends; None is its default for the size.
        out: folder of what is written.
        smoke: seconds instead of minutes, to see that everything runs.
    """

    sizes: tuple[int, ...] = (28, 64, 128, 256)
    channels: tuple[int, ...] = (1, 3)
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3)
    tune_size: int = 128
    target_psnr: float | None = None
    out: str = "runs/sizes"
    smoke: bool = False

    def run(self) -> list[dict[str, Any]]:
        """Measure what is not there yet; write sizes.{json,md}; returns the rows."""
        if self.smoke and len(self.sizes) > 1:
            return replace(self, sizes=(16,), rates=self.rates[:2], target_psnr=15.0).run()
        about = {name: value for name, value in asdict(self).items() if name not in ("sizes", "channels", "out")}
        measured, rows = Measured(Path(self.out) / "measured.json", about), []
        for size, channels in product(self.sizes, self.channels):
            rows.append(self.smooth(measured, size, channels))
            rate = self.rate(measured, min(size, self.tune_size), channels)
            chosen = "china", size, channels, rate, rows[-1]["seconds"]
            rows.append(measured(f"{size} x {size} x {channels}, adam", partial(self.adam, *chosen)))
        heads = list(rows[0])
        text = table(heads, [[f"{row[k]:.1f}" if isinstance(row[k], float) else row[k] for k in heads] for row in rows])
        print(text)
        write_result(self.out, "sizes", rows, text)
        return rows

    def smooth(self, measured: Measured, size: int, channels: int) -> dict[str, Any]:
        """The default fit of china.jpg."""
        job = partial(self.row, "china", size, channels, FitOptions(target_psnr=self.target_psnr), "default")
        return measured(f"{size} x {size} x {channels}, smooth", job)

    def rate(self, measured: Measured, size: int, channels: int) -> float:
        """Adam's best on flower.jpg, in the time that the default fit of china.jpg took."""
        seconds = self.smooth(measured, size, channels)["seconds"]

        def reached(rate: float) -> float:
            return self.adam("flower", size, channels, rate, seconds)["dB"]

        return measured(f"{size} x {size} x {channels}, rate", lambda: max(self.rates, key=reached))

    def adam(self, name: str, size: int, channels: int, rate: float, seconds: float) -> dict[str, Any]:
        """Adam for about so many seconds of the processor."""
        image, few = photograph(name, size, channels), FitOptions(method="adam", retries=0, max_steps=4)
        fit(image, options=few)
        started = time.process_time()
        fit(image, options=few)
        steps = max(1, round(4 * seconds / (time.process_time() - started)))
        options = replace(few, learning_rate=rate, max_steps=steps, target_psnr=90.0)
        return self.row(name, size, channels, options, f"adam, rate {rate:g}")

    def row(self, name: str, size: int, channels: int, options: FitOptions, told: str) -> dict[str, Any]:
        """One fit, measured."""
        image, generator = photograph(name, size, channels), torch.Generator().manual_seed(0)
        megabytes = peak_megabytes(lambda: fit(image, options=replace(options, max_steps=5, retries=0)))
        started = time.process_time()
        found = fit(image, options=options, generator=generator)
        seconds = time.process_time() - started
        return {
            "pixels": f"{size} x {size} x {channels}",
            "network": "-".join(map(str, found.stack.widths)),
            "fit": told,
            "dB": float(found.psnr),
            "dB between": psnr_between(found.stack, image),
            "steps": int(found.steps),
            "seconds": seconds,
            "MB": round(megabytes),
        }


def photograph(name: str, size: int, channels: int) -> torch.Tensor:
    """The middle square of a photograph that scikit-learn brings, [1, channels, size, size] in [0, 1]."""
    from sklearn.datasets import load_sample_image

    image = ImageOps.fit(Image.fromarray(load_sample_image(f"{name}.jpg")), (size, size), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image if channels == 3 else image.convert("L"))).reshape(size, size, channels)
    return pixels.permute(2, 0, 1)[None].float() / 255


def psnr_between(stack: INRStack, images: torch.Tensor, factor: int = 4) -> float:
    """Mean PSNR in dB against bicubic interpolation at `factor` times the size, without the pixels themselves."""
    size = tuple((length - 1) * factor + 1 for length in images.shape[2:])
    errors = (stack.render(*size) - functional.interpolate(images, size, mode="bicubic", align_corners=True)).square()
    among = torch.zeros(size)
    among[::factor, ::factor] = 1
    return float(-10 * errors[:, :, among == 0].mean((1, 2)).log10().mean())


KINDS = ("dots", "lines", "photographs", "mnist", "fashion_mnist", "cifar10")
"""Of the pictures that steps are tried on."""
RULES: dict[str, Callable[[str], RefinementRule]] = {
    "learned": LearnedKFAC.from_pretrained,
    "K-FAC by hand": lambda name: KFAC(),
    "Adam": lambda name: GradientSteps(Adam(4e-3)),
}


@dataclass(frozen=True)
class Promises:
    """Whether any INR is worse after any number of steps than it was before: refinement promises that none is.

    Pictures with one white pixel, with one thin line, crops of scikit-learn's two photographs, and test images of data
    sets; every operation that is known by name; three rules; every number of steps from the start anew. An error that
    rose is one that rose by more than rounding, RISE times itself and TINY. Also shown are the medians of the error
    before and after the most steps. What is measured is kept: started again, it goes on. Written: promises.{json,md}.

    Attributes:
        images: folder of data sets (mnist, fashion_mnist, cifar10), one folder each; empty leaves them out.
        kinds: of pictures, see KINDS; empty for all.
        operations: empty for all.
        rules: names of RULES.
        rule: the learned one.
        count: pictures of each kind; 0 for the whole protocol (100 dots and lines, 20 photographs, 128 of each set).
        steps: numbers of steps.
        out: folder of what is written.
        smoke: seconds instead of hours.
    """

    RISE: ClassVar[float] = 1e-5
    TINY: ClassVar[float] = 1e-9

    images: str = ""
    kinds: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    rules: tuple[str, ...] = tuple(RULES)
    rule: str = "refine-rule"
    count: int = 0
    steps: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100)
    out: str = "runs/promises"
    smoke: bool = False

    def run(self) -> dict[str, dict[str, Any]]:
        """Fit, take steps, compare; returns what was found by kind and rule."""
        if self.smoke:
            return replace(self, count=2, steps=(1, 3), operations=("dilate", "invert"), smoke=False).run()
        kinds = self.kinds or (KINDS if self.images else KINDS[:3])
        if unknown := [*(set(kinds) - set(KINDS)), *(set(self.rules) - set(RULES))]:
            raise WeightEditError(f"got {unknown}; expected kinds {', '.join(KINDS)} and rules {', '.join(RULES)}.")
        asked = {name: value for name, value in asdict(self).items() if name in ("images", "rule", "count", "steps")}
        measured = Measured(Path(self.out) / "measured.json", asked)
        found: dict[str, dict[str, Any]] = {}
        with tqdm(total=len(kinds) * len(self.rules) * len(self.operations or OPERATIONS)) as bar:
            for kind in kinds:
                stack = self.stack(kind)
                names = [name for name in self.operations or OPERATIONS if known_target(name, stack[:1]) is not None]
                for rule in self.rules:
                    parts = []
                    for name in names:
                        key = f"{kind}, {rule}, {name}"
                        parts.append(
                            measured(key, lambda s=stack, r=rule, n=name: self.tried(s, RULES[r](self.rule), n))
                        )
                        bar.update()
                    found[f"{kind}, {rule}"] = {
                        "INRs": len(stack),
                        "operations": len(names),
                        "errors": len(names) * len(stack) * len(self.steps),
                        "rose": sum(part["rose"] for part in parts),
                        "before": statistics.median(part["before"] for part in parts),
                        "after": statistics.median(part["after"] for part in parts),
                    }
        rows = [
            [
                *key.split(", "),
                *(row[k] for k in ("INRs", "operations", "errors", "rose")),
                *map(decibels, (row["before"], row["after"])),
            ]
            for key, row in found.items()
        ]
        heads = [
            "pictures",
            "rule",
            "INRs",
            "operations",
            "errors compared",
            "rose",
            "dB before",
            f"dB after {max(self.steps)}",
        ]
        text = f"after {', '.join(map(str, self.steps))} steps; dB: medians over INRs, then over operations\n\n"
        text += table(heads, rows)
        print(text)
        write_result(self.out, "promises", found, text)
        return found

    def stack(self, kind: str) -> INRStack:
        """Fits of the pictures of a kind, also those that missed 40 dB."""
        count = self.count or {"dots": 100, "lines": 100, "photographs": 20}.get(kind, 128)
        if kind in KINDS[:3]:
            images = {"dots": dots, "lines": lines, "photographs": photographs}[kind](count)
        else:
            images = load_images(str(Path(self.images) / kind), "test", limit=count).floats()
        return fit(images, generator=torch.Generator().manual_seed(0)).stack

    def tried(self, stack: INRStack, rule: RefinementRule, name: str) -> dict[str, float]:
        """How often steps towards an operation raised an error, and medians of it before and after the most steps."""
        targets = target_of(name, stack)
        before, rose, after = mean_squared_errors(stack, targets), 0, None
        for steps in self.steps:
            after = mean_squared_errors(refine(stack, targets, steps, rule=rule), targets)
            rose += int((~(after <= before * (1 + self.RISE) + self.TINY)).sum())
        return {
            "rose": rose,
            "before": float(before.median()),
            "after": float((before if after is None else after).median()),
        }


def decibels(error: float) -> str:
    """Of a mean squared error of images in [0, 1]."""
    return f"{-10 * math.log10(max(error, 1e-12)):.1f}"


def dots(count: int) -> torch.Tensor:
    """Black pictures of 28 x 28 with one white pixel each, [N, 1, 28, 28]."""
    images = torch.zeros(count, 28 * 28)
    images[range(count), torch.randint(28 * 28, (count,), generator=torch.Generator().manual_seed(0))] = 1.0
    return images.view(count, 1, 28, 28)


def lines(count: int) -> torch.Tensor:
    """Black pictures of 28 x 28 with one straight white line each, a pixel thick, [N, 1, 28, 28]."""
    ends = 27 * torch.rand(count, 2, 2, 1, generator=torch.Generator().manual_seed(0))
    places = torch.lerp(ends[:, 0], ends[:, 1], torch.linspace(0, 1, 100)).round().long()  # [N, 2, 100]
    images = torch.zeros(count, 28 * 28).scatter_(1, 28 * places[:, 0] + places[:, 1], 1.0)
    return images.view(count, 1, 28, 28)


def photographs(count: int, size: int = 64) -> torch.Tensor:
    """Crops of the two photographs that come with scikit-learn, in turn, [N, 3, size, size]."""
    from sklearn.datasets import load_sample_images

    sources, generator = load_sample_images().images, torch.Generator().manual_seed(0)
    found = []
    for i in range(count):
        source = torch.tensor(sources[i % len(sources)]).permute(2, 0, 1).float() / 255
        top, left = (int(torch.randint(n - size + 1, (), generator=generator)) for n in source.shape[1:])
        found.append(source[:, top : top + size, left : left + size])
    return torch.stack(found)


Config = Frontier | Study | Transfer | Fits | Sizes | Promises


if __name__ == "__main__":
    sys.exit(told_in_one_line("compare_editors", lambda: tyro.cli(Config, description=__doc__).run()))
