"""Compare metanetworks on the tasks of their papers, each trained with the same processor time.

    python tasks/compare_metanets.py --weights runs/mnist-inrs --zoo runs/zoo-relu --out runs/metanets

Three tasks: classes of INRs, an edit of INRs, the test accuracy of CNNs, ranked from their weights. First all systems
take turns at training steps on one thread; a run then has as many steps as `seconds` of processor time pay for. Every
system takes the learning rate of `rates` that is best on validation data in a run of a quarter of that time, of another
seed. A system may be a variant, as NAME,field=value,... has it. Written: out/costs.json, a file per finished run
(started again, the comparison goes on with what is missing), out/metanets.json and the table, out/metanets.md.

The file is long because it builds, trains and measures every system on three tasks.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from weightedit.cli.main import told_in_one_line
from weightedit.data.cnn_zoo import CNNZoo, load_zoo
from weightedit.data.weight_sets import WeightSet, load_splits
from weightedit.editing.one_shot import OneShotEditor
from weightedit.editing.training import edit_error, edit_examples, edit_loss, make_editor, train_editor
from weightedit.errors import WeightEditError
from weightedit.metanet.registry import METANETS, config_options, make_metanet
from weightedit.prediction.classes import accuracies, class_examples, labels_of, train_classifier
from weightedit.prediction.generalization import (
    LOSSES,
    accuracy_examples,
    reparametrized_tests,
    taus,
    train_accuracy_predictor,
)
from weightedit.prediction.predictor import WeightSpacePredictor
from weightedit.training.examples import Examples
from weightedit.training.loop import TrainOptions
from weightedit.training.measured import Measured
from weightedit.training.report import hardware, spread, table, write_result
from weightedit.training.timing import gigaflop, peak_megabytes, take_turns
from weightedit.training.workers import in_processes

SIZES: dict[str, tuple[str, ...]] = {
    "scalegmn": ("width=32", "layers=2"),
    "scalegmn-b": ("width=32", "layers=2"),
    "gauge-gmn": ("node_width=24", "edge_width=8", "layers=2", "probes=16"),
    "gauge-gmn-b": ("node_width=24", "edge_width=8", "layers=2", "probes=16"),
    "ng-gnn": ("node_width=24", "edge_width=8", "layers=2", "probes=16"),
    "ng-t": ("node_width=24", "edge_width=8", "layers=2", "probes=16"),
    "monomial": ("width=48",),
    "nfn-np": ("width=24", "fourier=128"),
    "nfn-hnp": ("width=24", "fourier=128"),
    "dws": ("width=24",),
}
"""Config fields of the systems that are compared, where they are not the defaults."""
READ_ONLY = ("statistics",)
"""Systems that cannot edit."""
PILOT_SEED, PILOT_SHARE = 1000, 4
Costs = dict[str, dict[str, dict[str, float]]]
Results = dict[str, dict[str, list[dict[str, float]]]]


@dataclass(frozen=True)
class Config:
    """The comparison.

    Attributes:
        weights: folder of a weight set with labels (fit_inrs.py), for classes and edits; "" leaves both out.
        zoo: folder of a zoo of CNNs (make_cnn_zoo.py); "" leaves it out.
        out: folder of runs and tables.
        metanet: names of the registry, or variants such as gauge-gmn-b,probes=0; empty for all names.
        options: fields of their configs over SIZES, as name.field=value.
        operation: the edit.
        seconds: processor time of a training run on one thread.
        rates: learning rates to choose from.
        seeds: runs per system and task.
        batch: networks per training step.
        train_limit, validation_limit, test_limit: INRs of each split.
        rounds: turns of the timing.
        workers: processes that train, each on one thread.
        smoke: seconds, to see that everything runs.
    """

    weights: str = "runs/mnist-inrs"
    zoo: str = "runs/zoo-relu"
    out: str = "runs/metanets"
    metanet: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    operation: str = "dilate"
    seconds: float = 75.0
    rates: tuple[float, ...] = (1e-3, 3e-3)
    seeds: int = 3
    batch: int = 32
    train_limit: int = 20_000
    validation_limit: int = 512
    test_limit: int = 2000
    rounds: int = 7
    workers: int = 1
    smoke: bool = False

    def own_options(self, system: str) -> tuple[str, ...]:
        """Config fields of a system, those of `options` and of a variant last."""
        name, *fields = system.split(",")
        given = tuple(option.removeprefix(f"{name}.") for option in self.options if option.startswith(f"{name}."))
        return (*SIZES.get(name, ()), *given, *fields)

    def weight_sets(self) -> dict[str, WeightSet]:
        """INRs with their images."""
        limits = {"train": self.train_limit, "validation": self.validation_limit, "test": self.test_limit}
        return load_splits(self.weights, **limits)


@dataclass(frozen=True)
class Job:
    """One run: a system on a task, `steps` long."""

    task: str
    name: str
    seed: int
    rate: float
    steps: int

    @property
    def metanet(self) -> str:
        """Its name in the registry."""
        return self.name.partition(",")[0]

    def training(self, batch: int) -> TrainOptions:
        """AdamW with a warm-up and a cosine, the same for all; on the processor, whose time is counted."""
        return TrainOptions.cosine(
            self.steps,
            batch_size=batch,
            learning_rate=self.rate,
            warmup_steps=self.steps // 10,
            ema_decay=0.99,
            seed=self.seed,
            validate_every=max(1, self.steps // 10),
            checkpoint_every=max(1, self.steps // 2),
            cpu=True,
        )


class Task(Protocol):
    """One of the three: its data, loaded when first asked for, and how a system is built, trained and scored on it."""

    def build(self, job: Job) -> nn.Module:
        """The untrained system."""
        ...

    def loss(self, model: Any, rows: Tensor) -> Tensor:
        """Of training examples `rows`, as in training."""
        ...

    def run(self, job: Job, out: Path) -> dict[str, float]:
        """Train in out/; "validation" (lower is better) and test figures."""
        ...


@dataclass(frozen=True)
class Classes:
    """Classes of INRs."""

    config: Config

    @cached_property
    def splits(self) -> dict[str, Any]:
        """INRs."""
        return {name: part.stack for name, part in self.config.weight_sets().items()}

    @cached_property
    def examples(self) -> Examples:
        """See Task."""
        return class_examples(self.splits["train"])

    def build(self, job: Job) -> WeightSpacePredictor:
        """See Task."""
        stack = self.splits["train"]
        options = {"embedding": 64, "seed": job.seed, **config_options(self.config.own_options(job.name))}
        classes = 1 + max(int(labels_of(part).max()) for part in self.splits.values())
        metanet = make_metanet(job.metanet, [stack.spec], **options)
        return WeightSpacePredictor(metanet, classes, convention=stack.convention, seed=job.seed)

    def loss(self, model: Any, rows: Tensor) -> Tensor:
        """See Task."""
        batch = self.examples[rows]
        return functional.cross_entropy(model.predict(self.splits["train"].spec, batch["params"]), batch["labels"])

    def run(self, job: Job, out: Path) -> dict[str, float]:
        """See Task."""
        predictor = self.build(job)
        result = train_classifier(predictor, self.splits, out / "run", job.training(self.config.batch))
        logits = predictor.eval().predict_stack(self.splits["test"], batch_size=128)
        return {"validation": result.best_validation, "accuracy": accuracies(logits, self.splits["test"])["one INR"]}


@dataclass(frozen=True)
class Edits:
    """An edit of INRs, one shot, from their weights only."""

    config: Config

    @cached_property
    def splits(self) -> dict[str, WeightSet]:
        """INRs with their images."""
        return self.config.weight_sets()

    @cached_property
    def examples(self) -> Examples:
        """See Task."""
        return edit_examples(self.splits["train"], self.config.operation)

    def build(self, job: Job) -> OneShotEditor:
        """See Task."""
        options = (*self.config.own_options(job.name), f"seed={job.seed}")
        return make_editor(self.config.operation, self.splits["test"].stack, name=job.metanet, options=options)

    def loss(self, model: Any, rows: Tensor) -> Tensor:
        """See Task."""
        return edit_loss(model, self.examples[rows])

    def run(self, job: Job, out: Path) -> dict[str, float]:
        """See Task."""
        editor = self.build(job)
        result = train_editor(editor, self.splits, out / "run", job.training(self.config.batch))
        error = edit_error(self.splits["test"], self.config.operation, editor.eval())
        return {"validation": result.best_validation, "error": error}


@dataclass(frozen=True)
class Generalization:
    """Test accuracy of CNNs, ranked from their weights."""

    config: Config

    @cached_property
    def splits(self) -> dict[str, CNNZoo]:
        """All checkpoints to train on, the last ones of the other networks."""
        zoos = {split: load_zoo(self.config.zoo, split) for split in ("train", "validation", "test")}
        return {split: zoo if split == "train" else zoo.last() for split, zoo in zoos.items()}

    @cached_property
    def examples(self) -> Examples:
        """See Task."""
        return accuracy_examples(self.splits["train"])

    def build(self, job: Job) -> WeightSpacePredictor:
        """See Task."""
        own = [word for word in self.config.own_options(job.name) if not word.startswith("probes=")]  # of chains alone
        options = {"embedding": 64, "seed": job.seed, **config_options(own)}
        return WeightSpacePredictor(make_metanet(job.metanet, [self.splits["train"].spec], **options), 1, seed=job.seed)

    def loss(self, model: Any, rows: Tensor) -> Tensor:
        """See Task."""
        batch = self.examples[rows]
        return LOSSES["mse"](model.predict(self.splits["train"].spec, batch["params"])[..., 0], batch["wanted"])

    def run(self, job: Job, out: Path) -> dict[str, float]:
        """See Task."""
        predictor = self.build(job)
        splits = {split: [zoo] for split, zoo in self.splits.items()}
        result = train_accuracy_predictor(predictor, splits, out / "run", job.training(self.config.batch))
        found = taus(predictor, reparametrized_tests(self.splits["test"]))
        return {"validation": result.best_validation, **{f"tau {kind}": tau for kind, tau in found.items()}}


TASKS: dict[str, Callable[[Config], Task]] = {"classes": Classes, "edits": Edits, "generalization": Generalization}


def main(config: Config) -> Results:
    """Measure, run what is missing, write the tables; returns every run's figures by task and system."""
    if config.smoke:
        config = replace(config, seconds=0.0, seeds=1, rates=(1e-3,), train_limit=16, validation_limit=8, test_limit=8)
        config = replace(config, batch=4, rounds=1)
    pairs = entrants(config)
    torch.set_num_threads(1)
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
    tried = run_all(config, pilots, "learning rates")
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
    facts = {"config": asdict(config), "hardware": one_thread(), "costs": found, "results": results}
    write_result(config.out, "metanets", facts, text)
    return results


def entrants(config: Config) -> list[tuple[str, str]]:
    """Tasks and systems. Raises WeightEditError on unknown names and empty choices."""
    names = config.metanet or tuple(METANETS)
    called = *(name.partition(",")[0] for name in names), *(option.split(".")[0] for option in config.options)
    unknown = [name for name in called if name not in METANETS]
    chosen = ["classes", "edits"] * bool(config.weights) + ["generalization"] * bool(config.zoo)
    if unknown or not chosen or min(config.seeds, config.workers, config.rounds, len(config.rates)) < 1:
        raise WeightEditError(
            f"got systems {unknown}, weights {config.weights!r}, zoo {config.zoo!r}, {config.seeds} seeds, "
            f"{config.workers} workers, {config.rounds} rounds, rates {config.rates}; expected systems among "
            f"{', '.join(METANETS)}, at least one data set, and at least one of the others: correct them."
        )
    edits = [name for name in names if name.partition(",")[0] not in READ_ONLY]
    return [(task, name) for task in chosen for name in (edits if task == "edits" else names)]


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
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=None if config.smoke else 1) as pool:
        memory = pool.starmap(step_megabytes, [(few, *pair) for pair in pairs], chunksize=1)
    for task in dict(pairs):
        names = [name for other, name in pairs if other == task]
        models = {name: task_of(task, few).build(Job(task, name, 0, 1e-3, 4)) for name in names}
        steps = {name: training_step(task_of(task, few), model, config.batch) for name, model in models.items()}
        times = take_turns(steps, config.rounds, warmup=2)
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
    """One optimizer step, of size 0 so that every turn does the same work."""
    optimizer, rows = torch.optim.AdamW(model.parameters(), lr=0.0), torch.arange(batch)

    def step() -> None:
        optimizer.zero_grad()
        task.loss(model, rows).backward()
        optimizer.step()

    return step


@torch.no_grad()
def forward_gigaflop(task: Task, model: nn.Module, batch: int) -> float:
    """Of one network."""
    return gigaflop(lambda: task.loss(model, torch.arange(batch))) / batch


def step_megabytes(config: Config, task: str, name: str) -> float:
    """Peak memory of a training step, in a process of its own."""
    torch.set_num_threads(1)
    loaded = task_of(task, config)
    return peak_megabytes(training_step(loaded, loaded.build(Job(task, name, 0, 1e-3, 4)), config.batch))


def run_all(config: Config, jobs: Sequence[Job], title: str) -> dict[Job, dict[str, float]]:
    """Figures of every job, run unless they are there."""
    found = in_processes(run, [(config, job) for job in jobs], config.workers)
    return dict(zip(jobs, tqdm(found, desc=title, total=len(jobs)), strict=True))


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


def one_thread() -> str:
    """One line about this machine."""
    return f"{hardware(cpu=True)}, torch {torch.__version__}"


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
    rows = []
    for name in dict.fromkeys(name for of in results.values() for name in of):
        cells, cost = [name, *["-"] * 4], found[first].get(name)
        if cost is not None:
            cells[1:] = [f"{cost['parameters']:,.0f}", f"{cost['gigaflop']:.4f}", f"{1e3 * cost['wall']:.0f}"]
            cells.append(f"{cost['megabytes']:.0f}")
        for task, key, _, unit, digits in columns:
            cells.append(spread([unit * one[key] for one in results[task].get(name, []) if key in one], digits))
        cells.append(" / ".join(f"{of[name][0]['steps']:,.0f}" if name in of else "-" for of in results.values()))
        rows.append(cells)
    return (
        f"{config.seconds:g} processor-seconds of training per run, batches of {config.batch}, {config.seeds} seeds; "
        f"parameters, forward GFLOP per network, time and peak memory of a training step: {first}; {one_thread()}\n\n"
        + table(heads, rows)
    )


if __name__ == "__main__":
    sys.exit(told_in_one_line("compare_metanets", lambda: main(tyro.cli(Config, description=__doc__))))
