"""Compare optimizers in ordinary training loops: learned rules as they are, beside rivals tuned with their schedules.

    OMP_NUM_THREADS=1 python tasks/compare_trainings.py --tasks fashion-8x8 bytes-gpt --rules general
    python tasks/compare_trainings.py --tasks cifar-resnet18 bytes-gpt-11m --device cuda

Each rival is any PyTorch loop's optimizer, with its own schedule: a warm-up and a cosine to zero, or none for
schedule-free; of its learning rates, five and more beyond while the best is at an end, it takes the one of the lowest
final loss on held-out data, over a run of another seed. A learned rule takes lr 1 and no schedule, unless it is given
as NAME@LR, NAME+cosine or NAME+compiled, or several of these. The mark is the final test loss of tuned AdamW: in how
many steps, and how many seconds with the optimizer's own in, a rival has it. Seconds are steps times milliseconds,
which are those of all contenders in turn in one process, medians: processor time on a CPU, else wall time, of training
steps alone, schedules and compilation left out. Written: out/trainings.json, .md, and a picture per task, out/TASK.png.
Finished runs are kept in out/runs.json: started again, with more tasks, rules or seeds if you like, a comparison goes
on; one process per task may share the folder. The file is long because it is the rivals with their schedules, the
runs, the times and the report of them.

What is not installed (`pip install weightedit[rivals]`) is left out by name.
"""

from __future__ import annotations

import importlib
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from torch import Tensor, nn
from tqdm import tqdm

from weightedit.cli.main import told_in_one_line
from weightedit.errors import WeightEditError
from weightedit.metatrain.workloads import WORKLOADS, Batch, Workload, workload
from weightedit.optim.optimizer import LearnedOptimizer
from weightedit.optim.rule_module import RuleModule
from weightedit.plots import Band, bands
from weightedit.training.measured import Measured
from weightedit.training.report import hardware, spread, table, write_result
from weightedit.training.timing import take_turns

Optimizers = list[torch.optim.Optimizer]
TUNING_SEED = 1000
_FURTHER = 4  # rates tried beyond those asked for
AVERAGED = 50
"""Batches that BatchNorm sees anew at an average."""
SMALL = tuple(name for name in WORKLOADS if name not in ("digits-mlp", "cifar-resnet18", "bytes-gpt-11m"))


@dataclass(frozen=True)
class Rival:
    """An optimizer, and what it takes to be fair to it.

    Attributes:
        make: network, learning rate and number of steps -> the optimizers that step together.
        unit: the middle one of its learning rates, which are sqrt(10) apart.
        cosine: whether its steps warm up and fall to zero; else it has a schedule of its own.
        package: that it comes in; "" for PyTorch.
    """

    make: Callable[[nn.Module, float, int], Optimizers]
    unit: float
    cosine: bool = True
    package: str = ""

    def rate(self, place: float) -> float:
        """Its learning rate `place` steps of sqrt(10) above the unit."""
        return float(f"{self.unit * 10 ** (place / 2):.3g}")


def _muon(net: nn.Module, rate: float, steps: int) -> Optimizers:
    """Muon on the matrices between the first and the last weights, AdamW at 0.15 of its rate on all else.

    PyTorch's takes no kernels of convolutions, so that these are AdamW's; 0.15 is AdamW's unit over Muon's.
    """
    first, *_, last = [p for p in net.parameters() if p.dim() > 1]
    hidden = [p for p in net.parameters() if p.dim() == 2 and p is not last and p is not first]
    others = [p for p in net.parameters() if all(p is not q for q in hidden)]
    muon = [torch.optim.Muon(hidden, lr=rate, weight_decay=0.01)] if hidden else []
    return [*muon, torch.optim.AdamW(others, lr=0.15 * rate)]


def _from(package: str, name: str, **options: Any) -> Callable[[nn.Module, float, int], Optimizers]:
    def make(net: nn.Module, rate: float, steps: int) -> Optimizers:
        more = {key: value(steps) if callable(value) else value for key, value in options.items()}
        return [getattr(importlib.import_module(package), name)(net.parameters(), lr=rate, **more)]

    return make


RIVALS: dict[str, Rival] = {
    "adamw": Rival(lambda net, rate, _: [torch.optim.AdamW(net.parameters(), lr=rate)], 3e-3),
    "sgd": Rival(lambda net, rate, _: [torch.optim.SGD(net.parameters(), rate, 0.9, nesterov=True)], 0.1),
    "muon": Rival(_muon, 0.02),
    "soap": Rival(_from("pytorch_optimizer", "SOAP"), 3e-3, package="pytorch_optimizer"),
    "schedule-free": Rival(
        _from("schedulefree", "AdamWScheduleFree", warmup_steps=lambda steps: max(1, steps // 20)),
        1e-2, cosine=False, package="schedulefree",
    ),
    "prodigy": Rival(_from("prodigyopt", "Prodigy", safeguard_warmup=True), 1.0, package="prodigyopt"),
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """The comparison.

    Attributes:
        tasks: names of metatrain.workloads.WORKLOADS; empty for all that a CPU can train.
        rules: learned rules, by the name of a shipped one or a folder; with @0.3 at that lr, with +cosine falling to
            zero, with +compiled in compiled steps.
        rivals: names of RIVALS; AdamW, the mark, is always among them.
        images: folder with the data sets mnist, fashion_mnist, cifar10; "" takes them from the hub.
        rates: learning rates tried per rival, beside those beyond where the best is at an end.
        seeds: runs per optimizer and task.
        length: factor of every task's steps.
        batch_size: of every task that has batches; 0 for its own.
        evaluations: of the test loss in a run, at equal distances.
        blocks: so many blocks of ten training steps of each contender, in turn, are timed.
        device: cuda or cpu.
        out: folder of what is written.
        smoke: seconds, to see that everything runs.
    """

    tasks: tuple[str, ...] = SMALL
    rules: tuple[str, ...] = ("general",)
    rivals: tuple[str, ...] = tuple(RIVALS)
    images: str = ""
    rates: int = 5
    seeds: int = 3
    length: float = 1.0
    batch_size: int = 0
    evaluations: int = 40
    blocks: int = 5
    device: str = "cpu"
    out: str = "runs/trainings"
    smoke: bool = False


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, write table and pictures; returns what is in trainings.json."""
    if config.smoke:
        config = replace(config, rates=2, seeds=1, length=0.02, evaluations=2, blocks=1)
    rivals = list(dict.fromkeys(["adamw", *config.rivals]))
    unknown = [name for name in config.tasks if name not in WORKLOADS] + [name for name in rivals if name not in RIVALS]
    if unknown or min(config.rates, config.seeds, config.evaluations, config.blocks) < 1 or config.length <= 0:
        raise WeightEditError(
            f"got {unknown}, {config.rates} rates, {config.seeds} seeds, {config.evaluations} evaluations, "
            f"{config.blocks} blocks, length {config.length}; expected tasks among {', '.join(WORKLOADS)}, rivals "
            f"among {', '.join(RIVALS)}, and positive numbers: correct them."
        )
    for name in config.rules:
        identity(name)  # what cannot be loaded is told before anything is trained
    absent = [name for name in rivals if (package := RIVALS[name].package) and not find_spec(package)]
    contenders = [*(name for name in rivals if name not in absent), *config.rules]
    about = {key: getattr(config, key) for key in ("length", "batch_size", "evaluations", "device")}
    measured = Measured(Path(config.out) / "runs.json", {**about, "hardware": hardware(cpu=config.device == "cpu")})
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for task in config.tasks:
        contest = Contest(task, config, measured)
        found[task] = {name: contest.runs(name) for name in tqdm(contenders, desc=task)}
        for name, milliseconds in contest.timed({name: runs[0]["rate"] for name, runs in found[task].items()}).items():
            for run in found[task][name]:
                run["ms"] = milliseconds
        draw(task, found[task], Path(config.out) / f"{task}.png")
    text = report(config, found) + (f"\n\nNot installed, left out: {', '.join(absent)}." if absent else "")
    print(text)
    facts = {"config": asdict(config), "hardware": measured.about["hardware"], "runs": found}
    write_result(config.out, "trainings", facts, text)
    return facts


@dataclass(frozen=True)
class Contest:
    """One task, and who trains on it."""

    task: str
    config: Config
    measured: Measured

    @cached_property
    def workload(self) -> Workload:
        """The task, its data read when first asked for."""
        found = workload(self.task, self.config.images)
        return replace(found, batch_size=(found.batch_size and self.config.batch_size) or found.batch_size)

    def runs(self, name: str) -> list[dict[str, Any]]:
        """Of all seeds, a rival at its best rate."""
        rate = Learned.of(name).rate
        rate = self.tuned(name) if name in RIVALS else rate
        return [self.run(name, rate, seed) for seed in range(self.config.seeds)]

    def tuned(self, name: str) -> float:
        """A rival's best rate. While it is the least or the largest that was tried, the next one is tried, too."""
        count = self.config.rates
        places, losses = [i - (count - 1) / 2 for i in range(count)], dict[float, float]()
        while places:
            for place in places:
                losses[place] = self.run(name, RIVALS[name].rate(place), TUNING_SEED)["validation"][-1]
            best, ends = min(losses, key=losses.__getitem__), (min(losses), max(losses))
            further = best in ends and 1 < len(losses) < count + _FURTHER
            places = [best + (1 if best == ends[1] else -1)] if further else []
        return RIVALS[name].rate(best)

    def run(self, name: str, rate: float, seed: int) -> dict[str, Any]:
        """Losses at equal distances, the first after no step; numbers of state per parameter."""
        key = f"{self.task} {identity(name)} {rate:g} seed {seed}"
        return self.measured(key, lambda: train(self.workload, self.config, name, rate, seed))

    def timed(self, rates: dict[str, float]) -> dict[str, float]:
        """Milliseconds of a training step of every contender, anew where one of them has not been timed beside all."""
        key = f"{self.task} in turn: {', '.join(f'{identity(name)} {rate:g}' for name, rate in rates.items())}"
        return self.measured(key, lambda: times(self.workload, self.config, rates))


class Learned(NamedTuple):
    """A learned rule as it is asked for: NAME, NAME@LR, then +cosine, +compiled or both."""

    folder: str
    rate: float
    cosine: bool
    compiled: bool

    @classmethod
    def of(cls, name: str) -> Learned:
        """Raises WeightEditError for an lr that is no positive number."""
        asked, ways = name, set()
        while (parts := asked.rpartition("+"))[0] and parts[2] in ("cosine", "compiled"):
            asked = parts[0]
            ways.add(parts[2])
        folder, _, rate = asked.partition("@")
        try:
            found = float(rate or 1)
        except ValueError:
            found = math.nan
        if not 0 < found < math.inf:
            raise WeightEditError(f"got the rule {name}; expected a positive number after @: correct it.")
        return cls(folder, found, "cosine" in ways, "compiled" in ways)


def identity(name: str) -> str:
    """A contender by what it is: of a learned rule, its folder and a digest of its config and weights."""
    if name in RIVALS:
        return name
    rule = RuleModule.from_pretrained(Learned.of(name).folder)
    known = repr((rule.config, [(key, tensor.tolist()) for key, tensor in rule.state_dict().items()]))
    return f"{name} {sha256(known.encode()).hexdigest()[:12]}"


def train(task: Workload, config: Config, name: str, rate: float, seed: int) -> dict[str, Any]:
    """One run. A loss that is not finite ends it: from there on, all are infinite."""
    torch.manual_seed(seed)
    net = task.network().to(config.device)
    generator, others = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    every = max(1, round(config.length * task.steps) // config.evaluations)
    steps = every * config.evaluations
    optimizers, factor = made(name, net, rate, steps, task, config.device)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, factor) for o in optimizers] if factor else []
    points: list[tuple[float, float]] = []
    trained: list[Tensor] = []
    judged = [part.to(torch.device(config.device)) for part in (task.validation, task.test)]
    for step in range(steps + 1):
        if step % every == 0:
            with at_average(optimizers, net, lambda: on(config.device, task.batch(others))):
                losses = [task.evaluate(net, part) for part in judged]
            points.append((losses[0], losses[1]))
            if not all(map(math.isfinite, losses)):
                break
        if step < steps:
            trained.append(one_step(task, net, optimizers, on(config.device, task.batch(generator))))
            for schedule in schedules:
                schedule.step()
    if len(points) <= config.evaluations or not math.isfinite(sum(points[-1])):
        points[-1:] = [(math.inf, math.inf)] * (config.evaluations + 2 - len(points))
    numbers = sum(v.numel() for o in optimizers for of in o.state.values() for v in of.values() if torch.is_tensor(v))
    validation, test = (list(column) for column in zip(*points, strict=True))
    stretches = [torch.stack(trained[i : i + every]).mean().item() for i in range(0, len(trained), every)]
    return {
        "rate": rate,
        "every": every,
        "validation": validation,
        "test": test,
        "train": [loss if math.isfinite(loss) else math.inf for loss in stretches],
        "state": numbers / sum(p.numel() for p in net.parameters()),
    }


def one_step(task: Workload, net: nn.Module, optimizers: Optimizers, batch: Batch) -> Tensor:
    """A training step; returns the loss before it."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss = task.loss(net(batch[0]), batch[1])
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return loss.detach()


def times(task: Workload, config: Config, rates: dict[str, float]) -> dict[str, float]:
    """Milliseconds of a training step by contender, medians over blocks of ten, all on the same batches."""
    source = torch.Generator().manual_seed(0)
    batches = [on(config.device, task.batch(source)) for _ in range(10)]

    def block(name: str, rate: float) -> Callable[[], None]:
        torch.manual_seed(0)
        net = task.network().to(config.device)
        optimizers, _ = made(name, net, rate, task.steps, task, config.device)
        for optimizer in optimizers:
            getattr(optimizer, "train", lambda: None)()

        def run() -> None:
            for batch in batches:
                one_step(task, net, optimizers, batch)

        return run

    found = take_turns({name: block(name, rate) for name, rate in rates.items()}, config.blocks)
    return {name: 100 * (one.processor if config.device == "cpu" else one.wall) for name, one in found.items()}


def on(device: str, batch: Batch) -> Batch:
    """A batch there."""
    return batch[0].to(device), batch[1].to(device)


@contextmanager
def at_average(optimizers: Optimizers, net: nn.Module, batch: Callable[[], Batch]) -> Iterator[None]:
    """Inside, optimizers that evaluate elsewhere than they train are there, BatchNorm sees batches there."""
    elsewhere = [optimizer for optimizer in optimizers if hasattr(optimizer, "eval")]
    for optimizer in elsewhere:
        optimizer.eval()  # type: ignore[attr-defined]
    if elsewhere and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules()):
        with torch.no_grad():
            for _ in range(AVERAGED):
                net(batch()[0])
    yield
    for optimizer in elsewhere:
        optimizer.train()  # type: ignore[attr-defined]


def made(
    name: str, net: nn.Module, rate: float, steps: int, task: Workload, device: str
) -> tuple[Optimizers, Callable[[int], float] | None]:
    """The optimizers of a contender, and the factor of their rates by step, None for none."""
    warm = max(1, steps // 20)

    def cosine(step: int) -> float:
        return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))

    if name in RIVALS:
        return RIVALS[name].make(net, rate, steps), cosine if RIVALS[name].cosine else None
    learned, (x, _) = Learned.of(name), task.batch(torch.Generator().manual_seed(0))
    rule, inputs = RuleModule.from_pretrained(learned.folder), (x[:2].to(device),)
    optimizer: torch.optim.Optimizer = LearnedOptimizer(net, rule, rate, inputs=inputs, compile=learned.compiled)
    return [optimizer], cosine if learned.cosine else None


def report(config: Config, found: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Markdown: what all have at the end, then a table per task."""
    names = list(next(iter(found.values())))
    rows = [[name, *(f"{mean(of[name], 'test')[-1]:.4g}" for of in found.values())] for name in names]
    parts = [f"Test loss at the end, {config.seeds} seeds\n\n" + table(["optimizer", *found], rows)]
    heads = ["optimizer", "rate", "at a quarter", "at half", "at the end", "lowest"]
    heads += ["rise, %", "steps", "seconds", "ms", "state"]
    for task, of in found.items():
        mark = mean(of["adamw"], "test")[-1]
        first = reached(of["adamw"], mark)
        rows = []
        for name, runs in of.items():
            losses, count = mean(runs, "test"), config.evaluations
            steps = reached(runs, mark)
            ratio = first / steps if first and steps else math.nan
            paces = ratio, ratio * of["adamw"][0]["ms"] / runs[0]["ms"]
            ratios = ["never" if math.isnan(pace) else f"{pace:.2f}x" for pace in paces]
            cells = [*(f"{losses[count * part // 4]:.4g}" for part in (1, 2)), spread([r["test"][-1] for r in runs], 4)]
            rise = max(run["train"][-1] / min(run["train"]) - 1 for run in runs)
            cells += [
                f"{min(losses):.4g}",
                f"{100 * rise:.2g}",
                *ratios,
                f"{runs[0]['ms']:.3g}",
                f"{runs[0]['state']:.2g}",
            ]
            rows.append([name, f"{runs[0]['rate']:.3g}", *cells])
        parts.append(
            f"**{task}**, {of['adamw'][0]['every'] * config.evaluations:,} steps; test loss; steps and seconds: how "
            f"many times fewer to {mark:.4g} than tuned AdamW; ms per training step, all in turn; "
            "numbers of state per parameter; rise: of the training loss, as means between evaluations, at the end "
            "above its lowest, of the worst seed"
            "\n\n" + table(heads, rows)
        )
    return "\n\n".join(parts)


def mean(runs: Sequence[dict[str, Any]], key: str) -> list[float]:
    """Over the runs, point by point."""
    return [statistics.fmean(column) for column in zip(*(run[key] for run in runs), strict=True)]


def reached(runs: Sequence[dict[str, Any]], mark: float) -> float | None:
    """Steps at the first point where the mean test loss is at most `mark`; None if there is none."""
    hits = (i for i, loss in enumerate(mean(runs, "test")) if i and loss <= mark)
    return next((float(i * runs[0]["every"]) for i in hits), None)


def draw(task: str, found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Losses against steps, and against seconds."""
    panels: dict[str, list[Band]] = {"steps": [], "seconds": []}
    start = max(run["test"][0] for runs in found.values() for run in runs)
    for name, runs in found.items():
        losses = [[min(loss, start) for loss in run["test"]] for run in runs]
        steps = [float(i * runs[0]["every"]) for i in range(len(losses[0]))]
        panels["steps"].append(Band(name, steps, losses, name not in RIVALS))
        seconds = [step * runs[0]["ms"] / 1e3 for step in steps]
        panels["seconds"].append(Band(name, seconds, losses, name not in RIVALS))
    bands(panels, path, heading=task, ylabel="test loss")


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    sys.exit(told_in_one_line("compare_trainings", lambda: main(config)))
