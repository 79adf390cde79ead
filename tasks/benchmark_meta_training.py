"""What a step of an inner run costs in meta-training, by how the runs are done: contenders take turns in one run.

    OMP_WAIT_POLICY=passive python tasks/benchmark_meta_training.py --rules per-parameter lean --out runs/meta-cost

Timed are whole outer gradients of antithetic PES on networks 64-32-10 with batches of 128 random images: all pairs of
runs vmapped and compiled, vmapped and eager, and one pair after the other, eager. Given are medians of process time and
of wall time over inner steps, both runs of a pair counted. Compiling takes minutes per rule and is not timed.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from benchmark_optimizers import LEARNED
from tqdm import tqdm

from weightedit.cli.main import told_in_one_line
from weightedit.errors import WeightEditError
from weightedit.metatrain.estimators import PES, Horizons
from weightedit.metatrain.image_optimizees import ClassifierOptimizee, LabelledImages
from weightedit.metatrain.unroll import Unroll
from weightedit.optim.rule_module import RuleModule

_IMAGES, _CLASSES = 4096, 10


@dataclass(frozen=True)
class Config:
    """One benchmark.

    Attributes:
        rules: of per-parameter, small-fc, lean.
        particles: pairs of runs.
        truncation: inner steps per outer gradient.
        rounds: turns of every contender.
        out: folder of what is written.
        smoke: seconds instead of minutes, without compiling, to see that everything runs.
    """

    rules: tuple[str, ...] = ("per-parameter", "lean")
    particles: int = 16
    truncation: int = 20
    rounds: int = 7
    out: str = "runs/meta-cost"
    smoke: bool = False


class Contender:
    """Outer gradients of one rule, done in one way; `steps` inner steps per call."""

    def __init__(self, rule: RuleModule, config: Config, *, particles: int, compile: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(_IMAGES, 1, 8, 8, generator=generator)
        labels = torch.randint(_CLASSES, (_IMAGES,), generator=generator)
        problem = ClassifierOptimizee(LabelledImages(images, labels, _CLASSES), None, hidden=(32,))
        horizons = Horizons(100 * config.truncation, 100 * config.truncation)
        unroll = Unroll(rule, problem, compile=compile)
        self.estimator = PES(unroll, horizons, config.truncation, particles, random_phase=False, sigma=0.01)
        self.weights = {name: parameter.detach() for name, parameter in rule.named_parameters()}
        self.state = self.estimator.init(generator)
        self.steps = 2 * particles * config.truncation

    def __call__(self) -> None:
        _, self.state, _ = self.estimator.gradient(self.weights, self.state)


def measure(config: Config, name: str) -> dict[str, dict[str, float]]:
    """Per way: process and wall microseconds per inner step."""
    ways = {"vmapped, eager": (config.particles, False), "one pair at a time, eager": (1, False)}
    if not config.smoke:
        ways = {"vmapped, compiled": (config.particles, True), **ways}
    contenders = {
        way: Contender(LEARNED[name](), config, particles=particles, compile=compile)
        for way, (particles, compile) in ways.items()
    }
    process: dict[str, list[float]] = {way: [] for way in ways}
    wall: dict[str, list[float]] = {way: [] for way in ways}
    for turn in tqdm(range(-1, config.rounds), desc=name, leave=False):  # the first turn compiles
        for way, contender in contenders.items():
            begun, used = time.perf_counter(), time.process_time()
            contender()
            if turn >= 0:
                process[way].append(1e6 * (time.process_time() - used) / contender.steps)
                wall[way].append(1e6 * (time.perf_counter() - begun) / contender.steps)
    return {way: {"process": statistics.median(process[way]), "wall": statistics.median(wall[way])} for way in ways}


def main(config: Config) -> dict[str, Any]:
    """Measure; write out/cost.json and out/cost.md; returns what is in the first."""
    if config.smoke:
        config = replace(config, particles=2, truncation=2, rounds=1)
    if unknown := set(config.rules) - set(LEARNED):
        raise WeightEditError(f"rules {sorted(unknown)} came; expected some of {', '.join(LEARNED)}: choose.")
    if min(config.particles, config.truncation, config.rounds) < 1:
        raise WeightEditError(f"{config} came; expected at least one pair, one inner step and one round: correct it.")
    found = {name: measure(config, name) for name in tqdm(config.rules, desc="rules")}
    result = {"config": asdict(config), "threads": torch.get_num_threads(), "rules": found}
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "cost.json").write_text(json.dumps(result, indent=1))
    (out / "cost.md").write_text(report(found) + "\n")
    print(report(found))
    return result


def report(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """A Markdown table, a row per way, a column per rule; multiples are of the first way's process time."""
    lines = [f"| microseconds per inner step, process (wall) | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for way in next(iter(found.values())):
        cells = []
        for figures in found.values():
            own, base = figures[way], next(iter(figures.values()))
            cells.append(f"{own['process']:,.0f} ({own['wall']:,.0f}), {own['process'] / base['process']:.1f}x")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    sys.exit(told_in_one_line("benchmark_meta_training", lambda: main(config)))
