"""How fast ScaleGMN is: forward and training step on DenseLayout, RaggedLayout and a plain MessagePassing twin.

Everything is measured side by side in one run: the variants take turns (A B C A B C ...), and medians are reported,
since only ratios measured together mean something on a shared machine. Peak memory is measured in a process per
variant. The twin (tests/message_passing_twin.py) computes the same function from the same weights, the way graph code
is usually written: per-edge gathers, and every linear map of an edge applied per edge. Defaults are the published size.

    python tasks/benchmark_speed.py
    python tasks/benchmark_speed.py --smoke
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = ("dense", "ragged", "twin")


@dataclass(frozen=True)
class Config:
    """Defaults are the published editing size: hidden 128, 10 layers, batches of 16 SIRENs 2-32-32-1."""

    node_width: int = 128
    edge_width: int = 128
    layers: int = 10
    probes: int = 0
    batch: int = 16
    widths: tuple[int, ...] = (2, 32, 32, 1)
    bidirectional: bool = True
    repeats: int = 7
    warmup: int = 1
    threads: int = 0  # 0: as torch chooses
    device: str = "cpu"
    smoke: bool = False  # a tiny size, in seconds
    only: str = ""  # one variant, for its peak memory; used by the run itself


@dataclass(frozen=True)
class Timing:
    """Medians in seconds."""

    wall: float
    processor: float


@dataclass(frozen=True)
class Figures:
    """What is reported of one variant."""

    forward: Timing
    step: Timing
    gigaflop: float  # products of one forward pass, per network
    step_gigaflop: float
    megabytes: float  # peak memory of training steps beyond that of the loaded program


def build(config: Config) -> dict[str, tuple[nn.Module, Callable[[], Tensor]]]:
    """Per variant its module and a function that runs it forward and gives a loss."""
    from torch_geometric.data import Batch

    from weightedit.graph.neural_graph import NeuralGraph
    from weightedit.graph.ragged import from_pyg, to_pyg
    from weightedit.inr.siren import initial_params
    from weightedit.metanet.scalegmn.network import ScaleGMN, ScaleGMNConfig
    from weightedit.network.spec import NetworkSpec

    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from tests.message_passing_twin import ScaleGMNTwin, read_structure

    spec = NetworkSpec.siren(config.widths)
    stack = initial_params(config.batch, config.widths, generator=torch.Generator().manual_seed(0))
    size = {name: getattr(config, name) for name in ("node_width", "edge_width", "layers", "probes", "bidirectional")}
    metanet = ScaleGMN(ScaleGMNConfig(inputs=config.widths[0], outputs=config.widths[-1], **size))
    singles = [to_pyg(spec, {name: tensor[i] for name, tensor in stack.items()}) for i in range(config.batch)]
    batch: Any = Batch.from_data_list([*singles])
    structure, twin = read_structure(batch, "full").to(config.device), ScaleGMNTwin(metanet).to(config.device)
    metanet, batch = metanet.to(config.device), batch.to(config.device)
    dense = NeuralGraph.from_params(spec, {name: tensor.to(config.device) for name, tensor in stack.items()})
    ragged = from_pyg(batch)

    def loss_of(graph: NeuralGraph) -> Tensor:
        result = metanet(graph)
        return result.edges.square().sum() + result.nodes.square().sum()

    def loss_of_twin() -> Tensor:
        edges, nodes = twin(batch, structure)
        return edges.square().sum() + nodes.square().sum()

    return {
        "dense": (metanet, lambda: loss_of(dense)),
        "ragged": (metanet, lambda: loss_of(ragged)),
        "twin": (twin, loss_of_twin),
    }


def train_step(module: nn.Module, loss: Callable[[], Tensor]) -> None:
    """Forward, backward and a plain step (of size 0, so that repeats do the same work)."""
    module.zero_grad()
    loss().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=0.0)


def forward_only(module: nn.Module, loss: Callable[[], Tensor]) -> None:
    """Forward without building a graph for gradients."""
    with torch.no_grad():
        loss()


def take_turns(config: Config, jobs: dict[str, Callable[[], None]]) -> dict[str, Timing]:
    """Medians over `repeats` rounds in which every job runs once, after `warmup` rounds."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for turn in range(config.warmup + config.repeats):
        for name, job in jobs.items():
            before = time.perf_counter(), time.process_time()
            job()
            if config.device != "cpu":
                torch.cuda.synchronize()
            if turn >= config.warmup:
                seconds[name].append((time.perf_counter() - before[0], time.process_time() - before[1]))
    return {
        name: Timing(*(statistics.median(column) for column in zip(*rows, strict=True)))
        for name, rows in seconds.items()
    }


def gigaflop(job: Callable[[], None]) -> float:
    """Products of matrices only, two operations per multiply and add."""
    with FlopCounterMode(display=False) as counter:
        job()
    return counter.get_total_flops() / 1e9


def peak_memory(config: Config, name: str) -> float:
    """Megabytes that two training steps of one variant take beyond the loaded program, in a process of its own."""
    command = [sys.executable, __file__, "--only", name]
    for key, value in asdict(replace(config, only="")).items():
        if isinstance(value, bool):
            command += [f"--{key}" if value else f"--no-{key}"]
        elif isinstance(value, tuple):
            command += [f"--{key}".replace("_", "-"), *map(str, value)]
        elif value != "":
            command += [f"--{key}".replace("_", "-"), str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure_memory(config: Config) -> float:
    """The other end of `peak_memory`."""
    module, loss = build(config)[config.only]
    if config.device == "cpu":
        return megabytes_of(lambda: train_step(module, loss))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(2):
        train_step(module, loss)
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def megabytes_of(step: Callable[[], object]) -> float:
    """What two calls take at their peak beyond what the process holds before; Linux only, else 0."""
    if not Path("/proc/self/clear_refs").exists():
        return 0.0
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: loading files takes more than it keeps
    before = _peak_of_process()
    for _ in range(2):
        step()
    return (_peak_of_process() - before) / 1e3


def _peak_of_process() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def product_rate(config: Config) -> float:
    """GFLOP per second of the products that an edge layer is made of: [edges, width] @ [width, width]."""
    edges = config.batch * sum(a * b for a, b in zip(config.widths, config.widths[1:], strict=False))
    left = torch.rand(edges, config.edge_width, device=config.device)
    right = torch.rand(config.edge_width, config.edge_width, device=config.device)
    rounds = 20

    def job() -> None:
        for _ in range(rounds):
            torch.mm(left, right)

    timing = take_turns(config, {"product": job})["product"]
    return rounds * 2 * edges * config.edge_width**2 / timing.wall / 1e9


def measure(config: Config) -> dict[str, Figures]:
    """Figures of every variant; see the file's docstring."""
    memory = {name: peak_memory(config, name) for name in VARIANTS}
    variants = build(config)
    forward, step = (
        take_turns(config, {name: lambda m=m, f=f, act=act: act(m, f) for name, (m, f) in variants.items()})
        for act in (forward_only, train_step)
    )
    return {
        name: Figures(
            forward[name],
            step[name],
            gigaflop(lambda m=module, f=loss: forward_only(m, f)) / config.batch,
            gigaflop(lambda m=module, f=loss: train_step(m, f)) / config.batch,
            memory[name],
        )
        for name, (module, loss) in variants.items()
    }


def report(config: Config, found: dict[str, Figures]) -> str:
    """The table, and what bounds the dense layout."""
    rows = [
        "              forward      train step   (processor)   peak memory   GFLOP per INR      step, relative\n"
        "                                                                    forward   step     to the twin"
    ]
    for name, f in found.items():
        rows.append(
            f"{name:8} {1e3 * f.forward.wall:9.1f} ms {1e3 * f.step.wall:12.1f} ms {1e3 * f.step.processor:9.0f} ms"
            f" {f.megabytes:10.0f} MB {f.gigaflop:12.4f} {f.step_gigaflop:8.4f} "
            f"{found['twin'].step.wall / f.step.wall:10.2f}x faster"
        )
    dense, rate = found["dense"], product_rate(config)
    products = dense.step_gigaflop * config.batch / rate / dense.step.wall
    bound = "products per edge" if products > 0.5 else "memory traffic (elementwise work on edges, and its gradients)"
    rows.append(
        f"Products of a layer's size run at {rate:.0f} GFLOP/s here: {100 * products:.0f}% of the dense training step. "
        f"What bounds it: {bound}."
    )
    return "\n".join(rows)


def main(config: Config) -> dict[str, Figures]:
    """Measure, print the table, and return the figures."""
    if config.smoke:
        config = replace(config, node_width=16, edge_width=16, layers=2, batch=4, repeats=2, smoke=False)
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.only:
        print(json.dumps(measure_memory(config)))
        return {}
    widths = "-".join(map(str, config.widths))
    print(
        f"ScaleGMN{'-B' if config.bidirectional else ''}, {config.layers} layers, width {config.node_width} / "
        f"{config.edge_width}, batch {config.batch} of {widths}, {config.device}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, medians of {config.repeats}"
    )
    found = measure(config)
    print(report(config, found))
    return found


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
