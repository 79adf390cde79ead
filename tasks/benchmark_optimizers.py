"""What a step of an optimizer costs, as multiples of torch's fused Adam, contenders taking turns in one run.

    OMP_WAIT_POLICY=passive python tasks/benchmark_optimizers.py --rules per-parameter lean --out runs/cost

Timed is optimizer.step() alone, on gradients that stay: medians of wall time, and process time per parameter. State is
counted in floats per parameter. Compiling takes minutes per rule and network and is not timed.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from weightedit.cli.main import told_in_one_line
from weightedit.errors import WeightEditError
from weightedit.optim.hand_designed import Adam, GeometricAdam
from weightedit.optim.loading import load_rule
from weightedit.optim.metanet_rule import MetanetRule
from weightedit.optim.mlp_rule import MLPRule, MLPRuleConfig
from weightedit.optim.optimizer import LearnedOptimizer
from weightedit.optim.rule import UpdateRule
from weightedit.optim.rule_module import RuleModule

LEARNED: dict[str, Callable[[], RuleModule]] = {
    "per-parameter": MLPRule,
    "small-fc": lambda: MLPRule(MLPRuleConfig.small_fc()),
    "lean": MetanetRule,
}
"""Untrained, which cost as much."""
RULES: dict[str, Callable[[], UpdateRule]] = {"adam": Adam, "geometric-adam": GeometricAdam, **LEARNED}


class Block(nn.Module):
    """ResNet's basic block."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.down: nn.Module = nn.Identity()
        if stride > 1:
            self.down = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.down(x))


def resnet18(classes: int = 10) -> nn.Module:
    """ResNet-18 for small images, 11 M parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    before = 64
    for width in (64, 128, 256, 512):
        layers += [Block(before, width, 1 + (width > 64)), Block(width, width, 1)]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def mlp(*widths: int) -> nn.Module:
    """With ReLU."""
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "2.4k": lambda: mlp(64, 32, 10),
    "118k": lambda: mlp(784, 128, 128, 10),
    "1.9M": lambda: mlp(784, 1024, 1024, 10),
    "ResNet-18": resnet18,
}


@dataclass(frozen=True)
class Config:
    """One benchmark.

    Attributes:
        rules: names (adam, geometric-adam, per-parameter, small-fc, lean), or folders of learned rules.
        networks: names: 2.4k, 118k, 1.9M, ResNet-18.
        compile: compile the rules.
        seconds: about how long every contender is timed on every network.
        out: folder of what is written.
        smoke: seconds instead of minutes, to see that everything runs.
    """

    rules: tuple[str, ...] = ("geometric-adam", "per-parameter", "lean")
    networks: tuple[str, ...] = tuple(NETWORKS)
    compile: bool = True
    seconds: float = 5.0
    out: str = "runs/cost"
    smoke: bool = False


def stepper(name: str, make: Callable[[], nn.Module], *, compile: bool) -> torch.optim.Optimizer:
    """An optimizer of a fresh network with random gradients; "torch": fused Adam."""
    torch.manual_seed(0)
    net = make()
    for p in net.parameters():
        p.grad = 1e-3 * torch.randn_like(p)
    if name == "torch":
        return torch.optim.Adam(net.parameters(), lr=1e-6, fused=True)
    rule = RULES[name]() if name in RULES else load_rule(name)
    optimizer = LearnedOptimizer(net, rule, lr=1e-6, compile=compile)
    vars(optimizer)["kept"] = net  # the optimizer holds its network weakly
    return optimizer


def measure(config: Config, make: Callable[[], nn.Module]) -> dict[str, dict[str, float]]:
    """Per contender: milliseconds, process nanoseconds per parameter, floats of state per parameter."""
    optimizers = {name: stepper(name, make, compile=config.compile) for name in ("torch", *config.rules)}
    for optimizer in tqdm(optimizers.values(), desc="compiling", leave=False):
        optimizer.step()
        optimizer.step()
    wall: dict[str, list[float]] = {name: [] for name in optimizers}
    process: dict[str, list[float]] = {name: [] for name in optimizers}
    end = time.perf_counter() + config.seconds * len(optimizers)
    while time.perf_counter() < end or len(wall["torch"]) < 3:
        for name, optimizer in optimizers.items():
            begun, used = time.perf_counter(), time.process_time()
            optimizer.step()
            wall[name].append(1e3 * (time.perf_counter() - begun))
            process[name].append(1e9 * (time.process_time() - used))
    count = sum(p.numel() for p in make().parameters())
    held = {
        name: sum(t.numel() for own in optimizer.state.values() for t in own.values() if isinstance(t, Tensor))
        for name, optimizer in optimizers.items()
    }
    return {
        name: {
            "ms": statistics.median(wall[name]),
            "ns per parameter": statistics.median(process[name]) / count,
            "state": held[name] / count,
        }
        for name in optimizers
    }


def main(config: Config) -> dict[str, Any]:
    """Measure; write out/cost.json and out/cost.md; returns what is in the first."""
    if config.smoke:
        config = replace(config, networks=("2.4k",), compile=False, seconds=0.05)
    unknown = set(config.networks) - set(NETWORKS)
    if unknown:
        raise WeightEditError(f"networks {sorted(unknown)} came; expected some of {', '.join(NETWORKS)}: choose.")
    found = {name: measure(config, NETWORKS[name]) for name in tqdm(config.networks, desc="networks")}
    result = {"config": asdict(config), "threads": torch.get_num_threads(), "networks": found}
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "cost.json").write_text(json.dumps(result, indent=1))
    (out / "cost.md").write_text(report(found) + "\n")
    print(report(found))
    return result


def report(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """A Markdown table, a row per contender, a column per network."""
    lines = [f"| step | {' | '.join(found)} | floats of state per parameter |", "|---" * (len(found) + 2) + "|"]
    for name in next(iter(found.values())):
        cells = []
        for figures in found.values():
            own, base = figures[name], figures["torch"]
            times = f"{own['ms'] / base['ms']:.1f}x, " if name != "torch" else ""
            cells.append(f"{times}{own['ms']:.3g} ms, {own['ns per parameter']:.3g} ns/p")
        state = max(figures[name]["state"] for figures in found.values())
        label = "fused Adam" if name == "torch" else name
        lines.append(f"| {label} | {' | '.join(cells)} | {state:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    sys.exit(told_in_one_line("benchmark_optimizers", lambda: main(config)))
