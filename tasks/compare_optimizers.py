"""Compare update rules on one problem: the hand-designed ones tuned, the learned ones as they are.

    python tasks/compare_optimizers.py --problem fashion-mlp --rules adam sgd checkpoints/small-classifier

Every rule named is run from the same initial networks on the same batches, `seeds` times, and its test loss is taken on
the way. The learning rate of a hand-designed rule is the one of `rates` (logarithmic, from `lowest_rate` to
`highest_rate`, times the rule's own unit) whose lowest loss on held-out training images is lowest over other seeds; a
learned rule has none to tune, and takes `lr`, as LearnedOptimizer does. The score is the steps in which tuned Adam
reaches its lowest mean test loss, over those in which a rule gets there; steps times what a step of one network takes
in a plain loop are the seconds. With `rescale` U, the same runs are repeated with every hidden unit of the initial
network rescaled by e^U[-U, U], which changes no function; the learning rates stay as they were tuned, as they do on
`unseen`, a second problem. Steps of a hand-designed rule given as NAME+cosine fall to zero along a cosine; a
metanetwork's rule given as FOLDER+base takes its base steps alone, to tell what the metanetwork adds. Written:
out/comparison.json, .md and .png. Every finished run is kept in out/runs.json: started again, with more rules, rates or
rescaled runs if you like, a comparison goes on.

The file is long because tuning, runs on two problems, times and the table are one resumable protocol.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from tqdm import tqdm

from weightedit.cli.main import told_in_one_line
from weightedit.errors import WeightEditError
from weightedit.metatrain.image_optimizees import Classifier, LabeledImages
from weightedit.metatrain.optimizee import Optimizee
from weightedit.metatrain.problems import PROBLEMS, TRAINED, images_of, optimizee
from weightedit.metatrain.unroll import InnerState, Unroll, start
from weightedit.network.spec import Params
from weightedit.network.wiring import Wiring
from weightedit.optim.hand_designed import SGD, Adam, AdamW, GeometricAdam, RMSprop
from weightedit.optim.learned_rule import LearnedRule
from weightedit.optim.muon import Muon
from weightedit.optim.optimizer import LearnedOptimizer
from weightedit.optim.rule import RuleState, UpdateRule, beside
from weightedit.optim.rule_module import RuleModule
from weightedit.plots import Band, bands
from weightedit.training.measured import Measured

BY_HAND: dict[str, tuple[float, Callable[[float], UpdateRule]]] = {
    "adam": (1, Adam),
    "adamw": (1, AdamW),
    "sgd": (10, lambda rate: SGD(rate, momentum=0.9)),
    "rmsprop": (1, RMSprop),
    "muon": (10, Muon),
    "geometric-adam": (10, GeometricAdam),
}
"""Name -> unit, the learning rate at 1 on the grid; and the rule at a learning rate."""


@dataclass(frozen=True)
class Config:
    """One comparison.

    Attributes:
        problem: one of metatrain.problems.PROBLEMS that classifies.
        rules: names of hand-designed rules (adam, adamw, sgd, rmsprop, muon, geometric-adam) and folders of learned
            ones; NAME+cosine and FOLDER+base as above. Adam is always among them.
        images: folder with the data sets mnist, fashion_mnist, cifar10; "" takes them from the hub.
        lr: factor of what a learned rule proposes.
        steps: of every run.
        seeds: runs per rule.
        rates: learning rates tried per hand-designed rule.
        tuning_seeds: runs per rate.
        lowest_rate, highest_rate: the ends of the grid.
        rescale: U of the rescaled runs; 0 for none.
        unseen: the second problem, one of PROBLEMS; empty for none.
        control_seeds: runs per rule from rescaled networks and on `unseen`; 0 for `seeds`.
        cosine: multiply every rule's delta by a cosine from 1 to 0 over the run; rates are tuned with it.
        evaluate_every: steps between test losses; `steps` are a multiple of it.
        timed_steps: steps of one network that each rule is timed on; 0 for no times.
        out: folder of what is written.
        smoke: seconds instead of minutes, on scikit-learn's digits, to see that everything runs.
    """

    problem: str = "fashion-mlp"
    rules: tuple[str, ...] = ("adam", "sgd")
    images: str = ""
    lr: float = 1.0
    steps: int = 2000
    seeds: int = 5
    rates: int = 20
    tuning_seeds: int = 2
    lowest_rate: float = 1e-4
    highest_rate: float = 1.0
    rescale: float = 0.0
    unseen: str = ""
    control_seeds: int = 0
    cosine: bool = False
    evaluate_every: int = 20
    timed_steps: int = 100
    out: str = "runs/comparison"
    smoke: bool = False


@dataclass(frozen=True)
class Scaled:
    """A rule whose delta is multiplied by `lr`, and with a `horizon` by a cosine from 1 to 0 over so many steps."""

    rule: UpdateRule
    lr: float = 1.0
    horizon: int = 0

    def init(self, wiring: Wiring, params: Params) -> RuleState:
        """See UpdateRule.init."""
        return self.rule.init(wiring, params)

    def update(
        self, wiring: Wiring, grads: Params, state: RuleState, params: Params, *, loss: Tensor | None = None
    ) -> tuple[Params, RuleState]:
        """See UpdateRule.update."""
        step = next(iter(state.values()))["step"]
        factor = torch.full_like(step, self.lr)
        if self.horizon:
            factor = factor * 0.5 * (1 + (math.pi * (step / self.horizon).clamp(max=1.0)).cos())
        deltas, after = self.rule.update(wiring, grads, state, params, loss=loss)
        return {name: beside(factor, delta) * delta for name, delta in deltas.items()}, after


@dataclass(frozen=True)
class Contest:
    """The problem, and what is measured on it."""

    config: Config
    optimizee: Optimizee
    held_out: LabeledImages
    test: LabeledImages
    measured: Measured

    @torch.no_grad()
    def loss_on(self, data: LabeledImages, params: Params) -> Tensor:
        """Mean loss of every network on all images, [N]."""
        count, total = len(next(iter(params.values()))), 0.0
        for rows in torch.arange(len(data.labels)).split(1000):
            images = data.images[rows].expand(count, -1, -1, -1, -1)
            batch = {"images": images, "labels": data.labels[rows].expand(count, -1)}
            total = total + len(rows) * self.optimizee.loss(params, batch)
        return torch.as_tensor(total) / len(data.labels)

    @torch.no_grad()
    def accuracy_on(self, data: LabeledImages, params: Params) -> list[float]:
        """Share of images that every network names rightly."""
        count, right = len(next(iter(params.values()))), 0.0
        assert isinstance(self.optimizee, Classifier)
        for rows in torch.arange(len(data.labels)).split(1000):
            logits = self.optimizee.logits(params, data.images[rows].expand(count, -1, -1, -1, -1))
            right = right + (logits.argmax(-1) == data.labels[rows]).double().sum(-1)
        return (torch.as_tensor(right) / len(data.labels)).tolist()

    @torch.no_grad()
    def run(
        self, rule: UpdateRule, count: int, seed: int, data: LabeledImages, rescale: float = 0.0
    ) -> tuple[Tensor, Params]:
        """Runs that all rules share: losses on `data` [points, count], infinite once a network has diverged, and the
        networks at the end."""
        generator = torch.Generator().manual_seed(seed)
        rule = Scaled(rule, horizon=self.config.steps) if self.config.cosine else rule
        state = start(rule, self.optimizee, generator, count)
        if rescale:
            state = rescaled(self.optimizee, rule, state, rescale, generator)
        unroll, losses = Unroll(rule, self.optimizee), [self.loss_on(data, state.params)]
        for _ in range(self.config.steps // self.config.evaluate_every):
            state, _ = unroll(state, self.config.evaluate_every)
            losses.append(self.loss_on(data, state.params).nan_to_num(math.inf))
        return torch.stack(losses), state.params

    def tuned(self, name: str) -> float:
        """The best rate of the grid, in a rule's unit, for a rule of BY_HAND."""
        ends = math.log10(self.config.lowest_rate), math.log10(self.config.highest_rate)
        rates = torch.logspace(*ends, self.config.rates, dtype=torch.float64).tolist()
        found = [
            self.measured(f"tuning {name} {rate:.6g}", lambda rate=rate: self.lowest(name, rate)) for rate in rates
        ]
        return rates[found.index(min(found))]

    def lowest(self, name: str, rate: float) -> float:
        """The lowest loss on held-out images that some networks have on average."""
        rule = by_hand(name, rate, self.config.steps)
        return float(self.run(rule, self.config.tuning_seeds, 1000, self.held_out)[0].mean(1).min())

    def figures(self, rule: UpdateRule, key: str, rescale: float = 0.0) -> dict[str, list[Any]]:
        """Test losses [seeds, points] and accuracies at the end [seeds]; `key` names the rule."""

        def measure() -> dict[str, list[Any]]:
            losses, params = self.run(rule, count, 0, self.test, rescale)
            return {"losses": losses.T.tolist(), "accuracy": self.accuracy_on(self.test, params)}

        count = self.config.control_seeds if rescale and self.config.control_seeds else self.config.seeds
        fewer = f", {count} seeds" if count != self.config.seeds else ""
        return self.measured(f"{key} rescaled {rescale:g}{fewer}", measure)


def by_hand(name: str, rate: float, steps: int) -> UpdateRule:
    """A rule of BY_HAND at a rate of the grid; with +cosine, over so many steps."""
    plain, _, schedule = name.partition("+")
    unit, make = BY_HAND[plain]
    return Scaled(make(unit * rate), horizon=steps) if schedule else make(unit * rate)


def is_by_hand(name: str) -> bool:
    """Whether a rule is named, and not the folder of one."""
    return name.removesuffix("+cosine") in BY_HAND


def learned_rule(name: str) -> UpdateRule:
    """The rule of a folder; of FOLDER+base, without what its metanetwork proposes."""
    folder = name.removesuffix("+base")
    rule = RuleModule.from_pretrained(folder)
    if folder == name:
        return rule
    if not isinstance(rule, LearnedRule):
        raise WeightEditError(
            f"got {name}, of kind {rule.kind}; expected the rule of a metanetwork, which has base steps beside what "
            f"it proposes: take {folder}."
        )
    with torch.no_grad():
        rule.log_share.fill_(-math.inf)
    return rule


def labels(names: Sequence[str]) -> dict[str, str]:
    """Short names: of a folder as many of its last parts as no other name ends with, the whole of it if need be."""
    tails = {name: name if is_by_hand(name) else "/".join(Path(name).parts) for name in names}

    def last(name: str, count: int) -> str:
        return "/".join(tails[name].split("/")[-count:])

    def own(name: str) -> str:
        others = [other for other in names if other != name]
        for count in range(1, tails[name].count("/") + 2):
            if all(last(name, count) != last(other, count) for other in others):
                return last(name, count)
        return name

    return {name: own(name) for name in names}


def named(name: str, rule: UpdateRule, factor: float) -> str:
    """A learned rule by its name, its numbers and the factor of its steps: a folder may come to hold another one."""
    assert isinstance(rule, nn.Module) and hasattr(rule, "config")
    digest = hashlib.sha256(str(rule.config).encode())
    for tensor in rule.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return f"{Path(name).name} {digest.hexdigest()[:12]} lr {factor:g}"


def rescaled(
    problem: Optimizee, rule: UpdateRule, state: InnerState, spread: float, draw: torch.Generator
) -> InnerState:
    """The same functions in other gauges: hidden units that may carry a factor get one, log-uniform in e^[-U, U]."""
    wiring, count, factors = problem.wiring, len(state), []
    for neurons in wiring.sets:
        noise = spread * (2 * torch.rand(count, neurons.size, generator=draw) - 1)
        factors.append(noise.exp() if neurons.group.scale else torch.ones(count, neurons.size))
    params = wiring.rescaled(state.params, factors)
    return replace(state, params=params, rule=rule.init(wiring, params))


def milliseconds(problem: Optimizee, rule: UpdateRule | None, steps: int) -> float:
    """Median time of a step of one network in a plain loop, its gradient included; None: torch's fused Adam."""
    state = start(Adam(), problem, torch.Generator().manual_seed(0), 1)
    leaves = {name: tensor[0].clone().requires_grad_() for name, tensor in state.params.items()}
    batch = problem.batch(state.task, state.seed)
    optimizer: torch.optim.Optimizer
    if rule is None:
        optimizer = torch.optim.Adam(leaves.values(), lr=1e-3, fused=True)
    else:
        optimizer = LearnedOptimizer(list(leaves.items()), rule, lr=1e-3, wiring=problem.wiring, compile=True)
    times = []
    for _ in range(steps + 5):
        begun = time.perf_counter()
        optimizer.zero_grad()
        problem.loss({name: tensor.unsqueeze(0) for name, tensor in leaves.items()}, batch).sum().backward()
        optimizer.step()
        times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times[5:])


def steps_to(losses: Tensor, level: float, every: int) -> int | None:
    """The first step at which the mean over runs [points, runs] is at `level` or below."""
    reached = (losses.mean(1) <= level).nonzero()
    return int(reached[0]) * every if len(reached) else None


def main(config: Config) -> dict[str, Any]:
    """Tune, run, time; write out/comparison.{json,md,png}; returns what is in the first."""
    if config.smoke:
        timed = min(config.timed_steps, 2)
        config = replace(config, problem="digits-mlp", steps=20, seeds=2, rates=2, evaluate_every=10, timed_steps=timed)
        config = replace(config, unseen=config.unseen and "digits-mlp")
    problems = [name for name, problem in PROBLEMS.items() if problem.kind != "siren"]
    if (
        not {config.problem, config.unseen} <= {*problems, ""}
        or not config.problem
        or config.steps < config.evaluate_every
        or min(config.seeds, config.evaluate_every) < 1
        or config.control_seeds < 0
    ):
        raise WeightEditError(
            f"got problem {config.problem!r}, unseen {config.unseen!r}, {config.steps} steps evaluated every "
            f"{config.evaluate_every}, {config.seeds} seeds (controls: {config.control_seeds}); expected problems "
            f"among {', '.join(problems)} (fits: compare_fits.py), and steps and seeds, of each at least one: "
            "correct them."
        )
    if config.steps % config.evaluate_every:
        raise WeightEditError(
            f"got {config.steps} steps evaluated every {config.evaluate_every}; expected a multiple, so that the last "
            f"evaluation is at the end: give --steps {config.steps - config.steps % config.evaluate_every}, or another "
            "--evaluate-every."
        )
    if not 0 < config.lowest_rate <= config.highest_rate or min(config.rates, config.tuning_seeds) < 1:
        raise WeightEditError(
            f"got {config.rates} rates from {config.lowest_rate} to {config.highest_rate} with {config.tuning_seeds} "
            "seeds; expected at least one of each, from a positive rate to one no lower: correct them."
        )
    names = list(dict.fromkeys(["adam", *config.rules]))
    learned = {name: learned_rule(name) for name in names if not is_by_hand(name)}
    out = Path(config.out)
    contest = contest_of(config, out / "runs.json")
    other = replace(config, problem=config.unseen, seeds=config.control_seeds or config.seeds)
    unseen = contest_of(other, out / f"runs-{config.unseen}.json") if config.unseen else None
    facts: dict[str, Any] = {}
    for name in tqdm(names, desc="rules"):
        rate = None if name in learned else contest.tuned(name)
        rule = learned[name] if rate is None else by_hand(name, rate, config.steps)
        run = Scaled(rule, config.lr) if name in learned and config.lr != 1 else rule
        key = named(name, rule, config.lr) if rate is None else f"{name} {rate:.6g}"
        runs = {"standard": contest.figures(run, key)}
        if config.rescale:
            runs["rescaled"] = contest.figures(run, key, config.rescale)
        if unseen:
            runs[config.unseen] = unseen.figures(run, key)
        facts[name] = {
            "rate": None if rate is None else BY_HAND[name.removesuffix("+cosine")][0] * rate,
            "losses": {kind: found["losses"] for kind, found in runs.items()},
            "accuracy": {kind: found["accuracy"] for kind, found in runs.items()},
        }
        if config.timed_steps:
            facts[name]["milliseconds"] = milliseconds(
                contest.optimizee, None if name == "adam" else rule, config.timed_steps
            )
    result = {"config": asdict(config), "rules": facts}
    out.mkdir(parents=True, exist_ok=True)
    (out / "comparison.json").write_text(json.dumps(result, indent=1))
    table = report(config, facts)
    (out / "comparison.md").write_text(table + "\n")
    print(table)
    draw(config, facts, learned, out / "comparison.png")
    return result


def contest_of(config: Config, path: Path) -> Contest:
    """The contest of a config's problem, with what was measured of it in the file `path`."""
    data, held_out = images_of(config.problem, config.images).split(TRAINED)
    test = images_of(config.problem, config.images, split="test")
    same = ("problem", "steps", "seeds", "tuning_seeds", "evaluate_every", "cosine")
    measured = Measured(path, {key: getattr(config, key) for key in same})
    return Contest(config, optimizee(config.problem, data), held_out, test, measured)


def report(config: Config, facts: dict[str, Any]) -> str:
    """A Markdown table, a row per rule."""
    adam = {kind: torch.tensor(losses).T for kind, losses in facts["adam"]["losses"].items()}
    kinds, adam["rescaled"] = list(adam), adam["standard"]  # what Adam has from standard networks is the mark there too
    lowest = {kind: float(adam[kind].mean(1).min()) for kind in kinds}
    first = {kind: steps_to(adam[kind], lowest[kind], config.evaluate_every) for kind in kinds}
    columns = [
        f"{kind}: lowest test loss | steps to {lowest[kind]:.3f} | score | accuracy at the end, %" for kind in kinds
    ]
    timed = ["ms per step", "times fused Adam's", f"seconds to {lowest['standard']:.3f}", "times Adam's"]
    heads = ["rule", "tuned rate", *columns, *(timed if config.timed_steps else ())]
    rows = [
        f"{config.problem}, {config.steps} steps, {config.seeds} seeds{', cosine' if config.cosine else ''}"
        + (f"; controls: {config.control_seeds} seeds" if config.control_seeds else ""),
        "",
        f"| {' | '.join(heads)} |",
        "|---" * (2 + 4 * len(kinds) + 4 * bool(config.timed_steps)) + "|",
    ]
    for name, found in facts.items():
        cells = [name, "-" if found["rate"] is None else f"{found['rate']:.2g}"]
        reached: dict[str, int | None] = {}
        for kind in kinds:
            losses = torch.tensor(found["losses"][kind]).T
            steps = reached[kind] = steps_to(losses, lowest[kind], config.evaluate_every)
            mark = first[kind]
            score = "-" if not steps or not mark else f"{mark / steps:.2f}x"
            cells += [f"{float(losses.mean(1).min()):.4f}", "never" if steps is None else str(steps), score]
            right = found["accuracy"][kind]
            spread = f" +- {100 * statistics.stdev(right):.2f}" if len(right) > 1 else ""
            cells.append(f"{100 * statistics.fmean(right):.2f}{spread}")
        if config.timed_steps:
            ratio = found["milliseconds"] / facts["adam"]["milliseconds"]
            cells += [f"{found['milliseconds']:.2f}", f"{ratio:.2f}"]
            steps = reached["standard"]
            cells.append("never" if steps is None else f"{steps * found['milliseconds'] / 1e3:.2f}")
            mark = first["standard"]
            cells.append("-" if steps is None or not mark else f"{ratio * steps / mark:.2f}")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def draw(config: Config, facts: dict[str, Any], learned: Mapping[str, UpdateRule], path: Path) -> None:
    """Losses against steps, and against seconds of the plain loop."""
    panels: dict[str, list[Band]] = {"steps": []}
    if config.timed_steps:
        panels["seconds, one network"] = []
    short = labels(list(facts))
    for name, found in facts.items():
        for kind, losses in found["losses"].items():
            steps = [config.evaluate_every * i for i in range(len(losses[0]))]
            label = short[name] + ("" if kind == "standard" else f", {kind}")
            finite = [[min(value, 10.0) for value in run] for run in losses]
            panels["steps"].append(Band(label, steps, finite, name in learned))
            if config.timed_steps:
                seconds = [found["milliseconds"] * step / 1e3 for step in steps]
                panels["seconds, one network"].append(Band(label, seconds, finite, name in learned))
    bands(panels, path, heading=f"{config.problem}, {config.seeds} seeds", ylabel="test loss")


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    sys.exit(told_in_one_line("compare_optimizers", lambda: main(config)))
