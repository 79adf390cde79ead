"""What each ingredient of a one-shot editor buys, at equal training compute.

python tasks/study_editors.py --weights runs/mnist-inrs --repeated runs/mnist-inrs-x4 --out runs/study
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from weightedit.cli.main import told_in_one_line
from weightedit.data.weight_sets import load_splits, load_weight_set
from weightedit.editing.one_shot import EditorOptions, OneShotEditor
from weightedit.editing.training import augmented_loss, edit_error, edit_examples, edit_loss, make_editor, train_editor
from weightedit.errors import WeightEditError
from weightedit.inr.stack import INRStack
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.training.loop import TrainOptions
from weightedit.training.measured import Measured
from weightedit.training.report import table, write_result
from weightedit.training.timing import gigaflop
from weightedit.training.workers import in_processes


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


Config = Study


if __name__ == "__main__":
    sys.exit(told_in_one_line("study_editors", lambda: tyro.cli(Config, description=__doc__).run()))
