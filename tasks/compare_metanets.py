"""Compare metanetworks on the tasks of their papers, each trained with the same processor time.

    python tasks/compare_metanets.py --weights runs/mnist-inrs --zoo runs/zoo-relu --out runs/metanets

Three tasks, through the programs that do them: classes of INRs (classify_inrs.py), an edit of INRs (edit_inrs.py), test
accuracy of CNNs (predict_generalization.py). First all systems take turns at training steps on one thread; a run then
has as many steps as `seconds` of processor time pay for. Every system takes the learning rate of `rates` that is best
on validation data in a run of a quarter of that time, of another seed. Written: out/costs.json, a file per finished run
(started again, the comparison goes on with what is missing), out/metanets.json and the table, out/metanets.md.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
import tyro
from benchmark_speed import Config as Turns
from benchmark_speed import gigaflop, megabytes_of, take_turns
from measured import Measured
from metanet_trials import SIZES, TASKS, Config, Job, Task
from torch import nn
from tqdm import tqdm

from weightedit.cli.main import told_in_one_line
from weightedit.errors import WeightEditError
from weightedit.metanet.registry import METANETS

READ_ONLY = ("statistics",)
"""Systems that cannot edit."""
PILOT_SEED, PILOT_SHARE = 1000, 4
Costs = dict[str, dict[str, dict[str, float]]]
Results = dict[str, dict[str, list[dict[str, float]]]]


def main(config: Config) -> Results:
    """Measure, run what is missing, write the tables; returns every run's figures by task and system."""
    if config.smoke:
        config = replace(config, seconds=0.0, seeds=1, rates=(1e-3,), train_limit=16, validation_limit=8, test_limit=8)
        config = replace(config, batch=4, rounds=1)
    pairs = entrants(config)
    torch.set_num_threads(1)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    found = costs(config, pairs)
    steps = {
        task: {name: max(4, round(config.seconds / cost["processor"])) for name, cost in of.items()}
        for task, of in found.items()
    }
    pilots = [
        Job(task, name, PILOT_SEED, rate, max(4, steps[task][name] // PILOT_SHARE))
        for task, name in pairs
        for rate in config.rates
    ]
    tried = {job: figures for job, figures in run_all(config, pilots, "learning rates").items()}
    rates = {
        (task, name): min(
            (tried[job]["validation"], job.rate) for job in pilots if (job.task, job.name) == (task, name)
        )[1]
        for task, name in pairs
    }
    jobs = [
        Job(task, name, seed, rates[task, name], steps[task][name])
        for seed in range(config.seeds)
        for task, name in pairs
    ]
    figures = run_all(config, jobs, "runs")
    results: Results = {task: {} for task in found}
    for job in jobs:
        results[job.task].setdefault(job.name, []).append({**figures[job], "steps": job.steps, "rate": job.rate})
    text = report(config, found, results)
    print(text)
    (out / "metanets.md").write_text(text + "\n")
    facts = {"config": asdict(config), "hardware": hardware(), "costs": found, "results": results}
    (out / "metanets.json").write_text(json.dumps(facts, indent=1))
    return results


def entrants(config: Config) -> list[tuple[str, str]]:
    """Tasks and systems. Raises WeightEditError on unknown names and empty choices."""
    names = config.metanet or tuple(METANETS)
    unknown = [name for name in (*names, *(option.split(".")[0] for option in config.options)) if name not in METANETS]
    chosen = ["classes", "edits"] * bool(config.weights) + ["generalization"] * bool(config.zoo)
    if unknown or not chosen or min(config.seeds, config.workers, config.rounds, len(config.rates)) < 1:
        raise WeightEditError(
            f"systems {unknown}, weights {config.weights!r}, zoo {config.zoo!r}, {config.seeds} seeds, "
            f"{config.workers} workers, {config.rounds} rounds, rates {config.rates} came; expected systems among "
            f"{', '.join(METANETS)}, at least one data set, and at least one of the others: correct them."
        )
    return [(task, name) for task in chosen for name in names if task != "edits" or name not in READ_ONLY]


@lru_cache(maxsize=3)
def task_of(name: str, config: Config) -> Task:
    """A task, with its data, once per process."""
    return TASKS[name](config)


def costs(config: Config, pairs: Sequence[tuple[str, str]]) -> Costs:
    """By task and system: parameters, forward GFLOP per network, wall and processor seconds and peak megabytes of a
    training step; from out/costs.json where they were measured before, so that a resumed comparison keeps its steps."""
    measured = Measured(Path(config.out) / "costs.json", identity(config))
    together = cache(lambda: costs_in_turns(config, pairs))
    found: Costs = {task: {} for task, _ in pairs}
    for task, name in pairs:
        found[task][name] = measured(f"{task} {name}", lambda task=task, name=name: together()[task][name])
    return found


def costs_in_turns(config: Config, pairs: Sequence[tuple[str, str]]) -> Costs:
    """Of all pairs, the systems of a task taking turns."""
    found: Costs = {}
    few = replace(config, train_limit=4 * config.batch, validation_limit=8, test_limit=8)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = pool.starmap(peak_megabytes, [(few, *pair) for pair in pairs], chunksize=1)
    for task in dict(pairs):
        names = [name for other, name in pairs if other == task]
        models = {name: task_of(task, few).build(Job(task, name, 0, 1e-3, 4)) for name in names}
        steps = {name: training_step(task_of(task, few), model, config.batch) for name, model in models.items()}
        times = take_turns(Turns(repeats=config.rounds, warmup=2), steps)
        found[task] = {
            name: {
                "parameters": sum(p.numel() for p in model.parameters()),
                "gigaflop": forward_gigaflop(task_of(task, few), model, config.batch),
                "wall": times[name].wall,
                "processor": times[name].processor,
                "megabytes": memory[pairs.index((task, name))],
            }
            for name, model in models.items()
        }
    return found


def training_step(task: Task, model: nn.Module, batch: int) -> Callable[[], None]:
    """A step of AdamW at rate 0, so that every turn does the same work."""
    optimizer, rows = torch.optim.AdamW(model.parameters(), lr=0.0), torch.arange(batch)

    def step() -> None:
        optimizer.zero_grad()
        task.loss(model, rows).backward()
        optimizer.step()

    return step


@torch.no_grad()
def forward_gigaflop(task: Task, model: nn.Module, batch: int) -> float:
    """Of one network: products of matrices, two operations per multiply and add."""
    return gigaflop(lambda: task.loss(model, torch.arange(batch))) / batch  # type: ignore[arg-type, return-value]


def peak_megabytes(config: Config, task: str, name: str) -> float:
    """What two training steps take beyond the loaded program and data, in a process of its own; Linux only, else 0."""
    torch.set_num_threads(1)
    loaded = task_of(task, config)
    step = training_step(loaded, loaded.build(Job(task, name, 0, 1e-3, 4)), config.batch)
    return megabytes_of(step)


def run_all(config: Config, jobs: Sequence[Job], title: str) -> dict[Job, dict[str, float]]:
    """Figures of every job, run unless they are there."""
    todo = [(config, job) for job in jobs]
    if config.workers == 1:
        return {job: run((config, job)) for job in tqdm(jobs, desc=title)}
    with multiprocessing.get_context("spawn").Pool(config.workers, torch.set_num_threads, (1,)) as pool:
        return dict(zip(jobs, tqdm(pool.imap(run, todo, chunksize=1), desc=title, total=len(jobs)), strict=True))


def run(what: tuple[Config, Job]) -> dict[str, float]:
    """One run, or its figures where it has been done. Raises WeightEditError where another one lies in its place."""
    config, job = what
    short = f"rate{job.rate:g}" if job.seed == PILOT_SEED else f"seed{job.seed}"
    folder = Path(config.out) / job.task / job.name / short
    about = {**identity(config), "job": asdict(job)}
    return Measured(folder / "figures.json", about)("figures", lambda: task_of(job.task, config).run(job, folder))


def identity(config: Config) -> dict[str, Any]:
    """What must be the same for figures to stand in one table."""
    free = ("out", "metanet", "seeds", "rates", "workers", "rounds", "smoke")
    return {"sizes": SIZES} | {key: value for key, value in asdict(config).items() if key not in free}


def hardware() -> str:
    """One line about this machine."""
    return f"{platform.machine()}, {os.cpu_count()} cores, one thread, torch {torch.__version__}"


def report(config: Config, found: Costs, results: Results) -> str:
    """Markdown: a row per system, means and standard deviations over the seeds."""
    kinds = list(
        dict.fromkeys(key for of in results.get("generalization", {}).values() for key in of[0] if "tau" in key)
    )
    columns: list[tuple[str, str, str, float, int]] = [
        ("classes", "accuracy", "classes: accuracy, %", 100, 1),
        ("edits", "error", f"{config.operation}: MSE x 1e-2", 100, 2),
        *(("generalization", kind, kind.replace("tau", "tau,", 1), 1, 3) for kind in kinds),
    ]
    columns = [column for column in columns if column[0] in results]
    first = next(iter(found))
    heads = ["system", "parameters", "GFLOP", "ms per step", "MB", *(title for _, _, title, _, _ in columns), "steps"]
    lines = [
        f"{config.seconds:g} processor-seconds of training per run, batches of {config.batch}, {config.seeds} seeds; "
        f"parameters, forward GFLOP per network, time and peak memory of a training step: {first}; {hardware()}",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    for name in dict.fromkeys(name for of in results.values() for name in of):
        cost = found[first].get(name)
        cells = [name] + (
            ["-"] * 4
            if cost is None
            else [
                f"{cost['parameters']:,.0f}",
                f"{cost['gigaflop']:.4f}",
                f"{1e3 * cost['wall']:.0f}",
                f"{cost['megabytes']:.0f}",
            ]
        )
        for task, key, _, unit, digits in columns:
            cells.append(_spread([unit * one[key] for one in results[task].get(name, []) if key in one], digits))
        cells.append(" / ".join(f"{of[name][0]['steps']:,.0f}" if name in of else "-" for of in results.values()))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    if any(math.isnan(value) for value in values):
        return "nan"  # as predict_generalization.kendall_tau says of a run that ranks nothing
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    sys.exit(told_in_one_line("compare_metanets", lambda: main(config)))
