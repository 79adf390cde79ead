"""What each ingredient of an editor buys, at equal training compute: one small run per ingredient and seed.

    python tasks/edit_study.py --weights runs/mnist-inrs --repeated runs/mnist-inrs-x4 --out runs/study

Every row changes one thing of the base (the flags of edit_inrs.py) and trains for as many steps as the base's matrix
products (counted, forwards and backwards) pay for. Finished runs are kept: started again, it goes on. The table is
written to study.md, the figures to study.json.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from edit_inrs import Config as Experiment
from edit_inrs import augmented_loss, build_editor, edit_loss, run_training, test_error
from measured import Measured
from torch.utils.flop_counter import FlopCounterMode

from weightedit.cli.main import told_in_one_line
from weightedit.data.weight_sets import load_weight_set
from weightedit.editing.editor import EditorOptions
from weightedit.editing.operations import operation
from weightedit.errors import WeightEditError
from weightedit.metanet.scalegmn.network import ScaleGMNConfig
from weightedit.training.loop import TrainOptions


@dataclass(frozen=True)
class Config:
    """The study.

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


BASE = "base: permutation + sign + phase, 16 probes"


def base(config: Config) -> Experiment:
    """The experiment that every row changes."""
    return Experiment(
        weights=config.weights,
        operation=config.operation,
        train_limit=config.train_limit,
        validation_limit=config.validation_limit,
        test_limit=config.test_limit,
        metanet=ScaleGMNConfig(node_width=24, edge_width=8, layers=2, probes=16, forecast=64, initial_scale=0.03),
        training=TrainOptions(
            steps=config.steps,
            batch_size=32,
            learning_rate=3e-3,
            weight_decay=1e-2,
            betas=(0.9, 0.98),
            warmup_steps=30,
            schedule="cosine",
            clip_norm=1.0,
            ema_decay=0.99,
            validate_every=100,
            checkpoint_every=1000,
        ),
    )


def rows(config: Config) -> dict[str, Experiment]:
    """Every row by its name; the first is the base."""
    start = base(config)

    def net(**changes: Any) -> Experiment:
        return replace(start, metanet=replace(start.metanet, **changes))

    def around(**changes: Any) -> Experiment:
        return replace(start, editor=EditorOptions(**changes))

    found = {
        BASE: start,
        "no symmetry": net(symmetry="permutation", neuron_codes=64),
        "no symmetry, augmented by random group elements": replace(
            net(symmetry="permutation", neuron_codes=64), augment=True
        ),
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
    if config.repeated:
        few = replace(start, weights=config.repeated, train_limit=0)
        found["2,000 images, 4 INRs each"] = few
        found["2,000 images, 1 INR each"] = replace(start, train_limit=2000)
    return found


def main(config: Config) -> dict[str, list[dict[str, float]]]:
    """Run what is not there yet; print and write the table."""
    if config.smoke:
        config = replace(config, seeds=1, steps=2, train_limit=8, validation_limit=4, test_limit=4, workers=1)
    known = rows(config)
    unknown = set(config.only) - set(known)
    if unknown or config.seeds < 1 or config.workers < 1:
        raise WeightEditError(
            f"--only {sorted(unknown)}, seeds {config.seeds}, workers {config.workers} came; expected rows among "
            f"{list(known)} and at least 1 of each: correct them."
        )
    chosen = [name for name in known if not config.only or name in config.only]
    jobs = [(config, name, seed) for seed in range(config.seeds) for name in chosen]
    if config.workers == 1:
        for job in jobs:
            run(job)
    else:
        with multiprocessing.get_context("spawn").Pool(
            config.workers, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            for _ in pool.imap_unordered(run, jobs, chunksize=1):
                pass
    results = {name: [run((config, name, seed)) for seed in range(config.seeds)] for name in chosen}
    text = report(config, results)
    print(text)
    (Path(config.out) / "study.md").write_text(text + "\n")
    (Path(config.out) / "study.json").write_text(json.dumps(results, indent=2))
    return results


def run(job: tuple[Config, str, int]) -> dict[str, float]:
    """One row with one seed, or its facts where it has been done."""
    config, name, seed = job
    about = {**asdict(rows(config)[name]), "steps": config.steps, "weights": config.weights}
    return Measured(_place(config, name, seed), about)("facts", lambda: facts(config, name, seed))


def facts(config: Config, name: str, seed: int) -> dict[str, float]:
    """Train an editor, and look at it on the test INRs."""
    experiment, start = rows(config)[name], base(config)
    validation, test = (
        load_weight_set(config.weights, which, limit or None)
        for which, limit in (("validation", config.validation_limit), ("test", config.test_limit))
    )
    train = load_weight_set(experiment.weights, "train", experiment.train_limit or None)
    share = step_flops(start) / step_flops(experiment)
    options = replace(experiment.training, steps=max(2, round(share * config.steps)), seed=seed)
    experiment = replace(experiment, training=options, metanet=replace(experiment.metanet, seed=seed))
    editor = build_editor(experiment, test.stack)
    folder = _place(config, name, seed).with_suffix("")
    result = run_training(editor, {"train": train, "validation": validation}, experiment, options, folder)
    return {
        "error": test_error(editor, test, experiment),
        "validation": result.best_validation,
        "steps": result.steps,
        "best_step": result.best_step,
        "seconds": result.seconds,
        "parameters": sum(p.numel() for p in editor.parameters()),
        "train_inrs": len(train),
        "tested": len(test),
    }


def step_flops(experiment: Experiment) -> int:
    """Floating-point operations of the matrix products of one training step, as torch counts them, of one INR."""
    few = load_weight_set(experiment.weights, "validation", 2)
    editor, targets = build_editor(experiment, few.stack), operation(experiment.operation)(few.floats())
    batch = {"params": dict(few.stack.params), "targets": targets}
    with FlopCounterMode(display=False) as counter:
        if experiment.augment:
            augmented_loss(editor, batch, torch.Generator().manual_seed(0)).backward()
        else:
            edit_loss(editor, batch).backward()
    return counter.get_total_flops() // 2


def report(config: Config, results: Mapping[str, list[dict[str, float]]]) -> str:
    """Markdown: a row per ingredient, mean and range over the seeds."""
    tested = next(iter(results.values()))[0]["tested"]
    lines = [
        f"{config.operation}, one shot, {tested:,} test INRs, mean squared error x 1e-2, mean over "
        f"{config.seeds} seeds (lowest to highest); equal training compute, {config.steps} steps of 32 for the base",
        "",
        "| editor | MSE x 1e-2 | parameters | steps |",
        "|---|---|---|---|",
    ]
    for name, found in results.items():
        errors = [100 * one["error"] for one in found]
        spread = f"{statistics.mean(errors):.2f} ({min(errors):.2f} to {max(errors):.2f})"
        lines.append(f"| {name} | {spread} | {found[0]['parameters']:,.0f} | {found[0]['steps']:,.0f} |")
    return "\n".join(lines)


def _place(config: Config, name: str, seed: int) -> Path:
    short = "".join(letter if letter.isalnum() else "-" for letter in name.split(":")[0])
    return Path(config.out) / f"{short}-{seed}.json"


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    sys.exit(told_in_one_line("edit_study", lambda: main(config)))
