"""What a step of an optimizer costs beside torch's, contenders taking turns in one run, on whatever device there is.

    python tasks/benchmark_optimizers.py
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python tasks/benchmark_optimizers.py --networks 2.4k 118k 1.9M ResNet-18

Timed is optimizer.step() alone, on gradients that stay: medians of wall time and of processor time. Memory is the peak
of two steps above the network and its gradients, the state included. Operations are what an eager step dispatches;
kernels, where there is a GPU, what it launches. What is not at hand, or is not begun in `minutes`, is left out by name.
Compiling is not timed.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from weightedit.cli.main import told_in_one_line
from weightedit.errors import WeightEditError
from weightedit.optim.hand_designed import Adam, GeometricAdam
from weightedit.optim.loading import load_rule
from weightedit.optim.metanet_rule import MetanetRule
from weightedit.optim.mlp_rule import MLPRule, MLPRuleConfig
from weightedit.optim.optimizer import LearnedOptimizer
from weightedit.optim.rule import UpdateRule
from weightedit.optim.rule_module import RuleModule
from weightedit.training.report import hardware, table, write_result
from weightedit.training.timing import peak_megabytes, take_turns

LEARNED: dict[str, Callable[[], RuleModule]] = {
    "per-parameter": MLPRule,
    "small-fc": lambda: MLPRule(MLPRuleConfig.small_fc()),
    "lean": MetanetRule,
}
"""Untrained, which cost as much."""
RULES: dict[str, Callable[[], UpdateRule]] = {"adam": Adam, "geometric-adam": GeometricAdam, **LEARNED}
ADAMW, MUON, FREE = "fused AdamW", "torch.optim.Muon + AdamW", "schedule-free AdamW"


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


class GPT(nn.Module):
    """A small language model: blocks of causal attention and GELU, 6 x 384 of them 10.9 M parameters."""

    def __init__(
        self, vocabulary: int = 256, width: int = 384, depth: int = 6, heads: int = 6, context: int = 256
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*[GPTBlock(width, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.norm(self.blocks(x)))


class GPTBlock(nn.Module):
    """Pre-norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, e = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, e // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(n, t, e))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "2.4k": lambda: mlp(64, 32, 10),
    "118k": lambda: mlp(784, 128, 128, 10),
    "1.9M": lambda: mlp(784, 1024, 1024, 10),
    "ResNet-18": resnet18,
    "GPT": GPT,
}


@dataclass(frozen=True)
class Config:
    """One benchmark.

    Attributes:
        rules: names (adam, geometric-adam, per-parameter, small-fc, lean), or folders of learned rules.
        networks: names (2.4k, 118k, 1.9M, ResNet-18, GPT); none: all on a GPU, the first three on a CPU.
        compile: time the rules compiled, too.
        rounds: turns of every contender.
        minutes: after which no contender is begun any more.
        device: cuda, cpu, or nothing for the first there is.
        out: folder of what is written.
        smoke: seconds instead of minutes, to see that everything runs.
    """

    rules: tuple[str, ...] = ("per-parameter", "lean")
    networks: tuple[str, ...] = ()
    compile: bool = True
    rounds: int = 15
    minutes: float = 2.5
    device: str = ""
    out: str = "runs/cost"
    smoke: bool = False


class Calls(TorchDispatchMode):
    """The operations that are dispatched inside: `count`."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class Several:
    """Optimizers that step together."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


def network(name: str, device: str) -> nn.Module:
    """One of NETWORKS with random gradients."""
    torch.manual_seed(0)
    net = NETWORKS[name]().to(device)
    for p in net.parameters():
        p.grad = 1e-3 * torch.randn_like(p)
    return net


def stepper(name: str, net: nn.Module, *, compile: bool = False) -> Several:
    """What steps the network: torch's by their names here, else a rule."""
    params = list(net.parameters())
    if name == ADAMW:
        return Several(torch.optim.AdamW(params, lr=1e-6, fused=True))
    if name == MUON:
        flat = [p for p in params if p.dim() != 2]
        others = [torch.optim.AdamW(flat, lr=1e-6, fused=True)] if flat else []
        return Several(torch.optim.Muon([p for p in params if p.dim() == 2], lr=1e-6), *others)
    if name == FREE:
        import schedulefree

        optimizer = schedulefree.AdamWScheduleFree(params, lr=1e-6)
        optimizer.train()
        return Several(optimizer)
    rule = RULES[name]() if name in RULES else load_rule(name)
    cuda = params[0].is_cuda
    options: dict[str, Any] = {"nonfinite": "skip", "capturable": True} if cuda else {}
    return Several(LearnedOptimizer(net, rule, lr=1e-6, compile=compile, **options))


def missing() -> dict[str, str]:
    """Contenders that are not at hand, and why."""
    found = {} if hasattr(torch.optim, "Muon") else {MUON: f"torch {torch.__version__} has none"}
    return found | ({} if importlib.util.find_spec("schedulefree") else {FREE: "schedulefree is not installed"})


def held(name: str, network_name: str, device: str) -> float:
    """Megabytes at the peak of two steps above the network and its gradients."""
    net = network(network_name, device)
    optimizer = stepper(name, net)
    if device != "cuda":
        return peak_megabytes(optimizer.step)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    optimizer.step()
    optimizer.step()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def calls(optimizer: Several, device: str) -> tuple[int, int | None]:
    """Operations that a step dispatches, and kernels that it launches on a GPU."""
    with Calls() as seen:
        optimizer.step()
    if device != "cuda":
        return seen.count, None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        optimizer.step()
        torch.cuda.synchronize()
    return seen.count, sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events())


def measure(config: Config, name: str, device: str, end: float) -> tuple[list[dict[str, Any]], list[str]]:
    """One row per contender on one network, and what was left out."""
    absent = missing()
    contenders = [(rival, False) for rival in (ADAMW, MUON, FREE) if rival not in absent]
    ways = (False, True) if config.compile else (False,)
    contenders += list(chain.from_iterable(((rule, way) for way in ways) for rule in config.rules))
    left = [f"{rival} ({why})" for rival, why in absent.items()]
    memory, counts, steppers = {}, {}, {}
    for rival, compiled in contenders:
        label = f"{rival}, compiled" if compiled else rival
        if time.perf_counter() > end:
            left.append(f"{label} on {name} (no time left)")
            continue
        if not compiled:
            memory[label] = held(rival, name, device)
        net = network(name, device)
        steppers[label] = stepper(rival, net, compile=compiled), net  # the optimizer holds its network weakly
        for _ in range(2):
            steppers[label][0].step()
        if not compiled:
            counts[label] = calls(steppers[label][0], device)
    timings = take_turns({label: optimizer.step for label, (optimizer, _) in steppers.items()}, config.rounds)
    parameters = sum(p.numel() for p in NETWORKS[name]().parameters())
    return [
        {
            "network": name,
            "contender": label,
            "ms": 1e3 * timing.wall,
            "times fused AdamW": timing.wall / timings[ADAMW].wall,
            "ns per parameter": 1e9 * timing.wall / parameters,
            "processor ms": 1e3 * timing.processor,
            "peak MB": memory.get(label),
            "operations": counts.get(label, (None, None))[0],
            "kernels": counts.get(label, (None, None))[1],
        }
        for label, timing in timings.items()
    ], left


def main(config: Config) -> dict[str, Any]:
    """Measure; write out/cost.json and out/cost.md; returns what is in the first."""
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if config.smoke:
        config = replace(config, networks=config.networks or ("2.4k",), compile=False, rounds=2)
    names = config.networks or tuple(NETWORKS)[: None if device == "cuda" else 3]
    unknown = set(names) - set(NETWORKS)
    if unknown:
        raise WeightEditError(f"networks {sorted(unknown)} came; expected some of {', '.join(NETWORKS)}: choose.")
    end, rows, left = time.perf_counter() + 60 * config.minutes, [], []
    for name in names:
        found, out = measure(config, name, device, end)
        rows += found
        left += out
    heads = list(rows[0])
    text = table(heads, [[_cell(row[head]) for head in heads] for row in rows])
    text = f"{hardware(cpu=device == 'cpu')}, torch {torch.__version__}\n\n{text}"
    if left:
        text += f"\n\nLeft out: {'; '.join(dict.fromkeys(left))}."
    result = {"config": asdict(config), "device": device, "rows": rows, "left out": left}
    write_result(config.out, "cost", result, text)
    print(text)
    return result


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    sys.exit(told_in_one_line("benchmark_optimizers", lambda: main(config)))
