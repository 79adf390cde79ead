"""Benchmarks, contenders taking turns in one run: of a metanetwork, of meta-training, of optimizer steps.

    python tasks/benchmark.py speed
    OMP_WAIT_POLICY=passive python tasks/benchmark.py meta-training --rules per-parameter lean --out runs/meta-cost
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python tasks/benchmark.py optimizers --networks 2.4k ResNet-18 GPT

Only ratios measured together mean something on a shared machine. Compiling takes minutes per rule and is not timed.

The file is long because it is three commands, which share only how they time.
"""

from __future__ import annotations

import importlib
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from weightedit.cli.main import told_in_one_line
from weightedit.errors import WeightEditError
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.graph.ragged import from_pyg, to_pyg
from weightedit.inr.siren import initial_params
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.metanet.gauge_gmn.network import GaugeGMN
from weightedit.metatrain.estimators import PES, Horizons
from weightedit.metatrain.image_optimizees import ClassifierOptimizee, LabeledImages
from weightedit.metatrain.networks import GPT, mlp, resnet18
from weightedit.metatrain.unroll import Unroll
from weightedit.network.spec import NetworkSpec
from weightedit.optim.hand_designed import Adam, GeometricAdam
from weightedit.optim.metanet_rule import MetanetRule
from weightedit.optim.mlp_rule import MLPRule, MLPRuleConfig
from weightedit.optim.optimizer import LearnedOptimizer
from weightedit.optim.rule import UpdateRule
from weightedit.optim.rule_module import RuleModule
from weightedit.training.report import hardware, table, write_result
from weightedit.training.timing import gigaflop, peak_megabytes, take_turns

LEARNED: dict[str, Callable[[], RuleModule]] = {
    "per-parameter": MLPRule,
    "small-fc": lambda: MLPRule(MLPRuleConfig.small_fc()),
    "lean": MetanetRule,
}
"""Untrained, which cost as much."""
RULES: dict[str, Callable[[], UpdateRule]] = {"adam": Adam, "geometric-adam": GeometricAdam, **LEARNED}
ADAMW, MUON, FREE = "fused AdamW", "torch.optim.Muon + AdamW", "schedule-free AdamW"
RIVALS = {"muon": MUON, "schedule-free": FREE}


def check_names(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise WeightEditError unless all of `names` are known."""
    if unknown := set(names) - set(known):
        raise WeightEditError(f"got {what} {sorted(unknown)}; expected some of {', '.join(known)}: choose.")


@dataclass(frozen=True)
class Speed:
    """How fast GaugeGMN is: forward and training step on DenseLayout, RaggedLayout and a plain MessagePassing twin.

    The twin (tests/message_passing_twin.py) computes the same function from the same weights, the way graph code is
    usually written: per-edge gathers, and every linear map of an edge applied per edge. Peak memory is that of training
    steps beyond the loaded program, in a process per variant. Defaults are the published editing size: batches of 16
    SIRENs 2-32-32-1.

    Attributes:
        node_width, edge_width, layers, probes, bidirectional: of the GaugeGMN.
        batch: networks at once.
        widths: of these networks.
        repeats: turns that count.
        warmup: turns before them.
        threads: of torch; 0 as torch chooses.
        device: as PyTorch names it.
        smoke: a tiny size, in seconds.
    """

    node_width: int = 128
    edge_width: int = 128
    layers: int = 10
    probes: int = 0
    bidirectional: bool = True
    batch: int = 16
    widths: tuple[int, ...] = (2, 32, 32, 1)
    repeats: int = 7
    warmup: int = 1
    threads: int = 0
    device: str = "cpu"
    smoke: bool = False

    def run(self) -> dict[str, dict[str, float]]:
        """Measure, print the table, and return the figures: seconds, GFLOP per INR, megabytes."""
        if self.smoke and self.layers > 2:
            return replace(self, node_width=16, edge_width=16, layers=2, batch=4, repeats=2).run()
        if self.threads:
            torch.set_num_threads(self.threads)
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=None if self.smoke else 1) as pool:
            memory = dict(zip(VARIANTS, pool.map(self.megabytes, VARIANTS, chunksize=1), strict=True))
        found = self.measure(memory)
        print(
            f"GaugeGMN{'-B' if self.bidirectional else ''}, {self.layers} layers, width {self.node_width} / "
            f"{self.edge_width}, batch {self.batch} of {'-'.join(map(str, self.widths))}, {self.device}, "
            f"{torch.get_num_threads()} threads, torch {torch.__version__}, medians of {self.repeats}\n\n"
            f"{self.report(found)}"
        )
        return found

    def measure(self, memory: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """Figures of every variant, but for its memory."""
        variants = self.build()
        forward = {name: torch.no_grad()(loss) for name, (_, loss) in variants.items()}
        step = {name: training_step(*variant) for name, variant in variants.items()}
        times = [take_turns(jobs, self.repeats, warmup=self.warmup) for jobs in (forward, step)]
        return {
            name: {
                "forward": times[0][name].wall,
                "step": times[1][name].wall,
                "processor": times[1][name].processor,
                "gigaflop": gigaflop(forward[name]) / self.batch,
                "step gigaflop": gigaflop(step[name]) / self.batch,
                "megabytes": memory[name],
            }
            for name in variants
        }

    def megabytes(self, name: str) -> float:
        """Peak memory of a training step of one variant; called in a process of its own."""
        if self.threads:
            torch.set_num_threads(self.threads)
        return peak_megabytes(training_step(*self.build()[name]), self.device)

    def build(self) -> dict[str, tuple[nn.Module, Callable[[], Tensor]]]:
        """Per variant its module and a function that runs it forward and gives a loss."""
        from torch_geometric.data import Batch

        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        from tests.message_passing_twin import GaugeGMNTwin, read_structure

        spec = NetworkSpec.siren(self.widths)
        stack = initial_params(self.batch, self.widths, generator=torch.Generator().manual_seed(0))
        names = ("node_width", "edge_width", "layers", "probes", "bidirectional")
        size: dict[str, Any] = {name: getattr(self, name) for name in names}
        metanet = GaugeGMN(GaugeGMNConfig(inputs=self.widths[0], outputs=self.widths[-1], **size))
        singles = [to_pyg(spec, {name: tensor[i] for name, tensor in stack.items()}) for i in range(self.batch)]
        batch: Any = Batch.from_data_list([*singles])
        structure, twin = read_structure(batch, "full").to(self.device), GaugeGMNTwin(metanet).to(self.device)
        metanet, batch = metanet.to(self.device), batch.to(self.device)
        dense = NeuralGraph.from_params(spec, {name: tensor.to(self.device) for name, tensor in stack.items()})
        ragged = from_pyg(batch)

        def loss_of(graph: NeuralGraph) -> Tensor:
            result = metanet(graph)
            return result.edges.square().sum() + result.nodes.square().sum()

        def loss_of_twin() -> Tensor:
            edges, nodes = twin(batch, structure)
            return edges.square().sum() + nodes.square().sum()

        losses = (lambda: loss_of(dense), lambda: loss_of(ragged), loss_of_twin)
        return dict(zip(VARIANTS, zip((metanet, metanet, twin), losses, strict=True), strict=True))

    def product_rate(self) -> float:
        """GFLOP per second of the products that an edge layer is made of: [edges, width] @ [width, width]."""
        edges = self.batch * sum(a * b for a, b in zip(self.widths, self.widths[1:], strict=False))
        left, right = torch.rand(edges, self.edge_width), torch.rand(self.edge_width, self.edge_width)
        left, right, rounds = left.to(self.device), right.to(self.device), 20

        def products() -> None:
            for _ in range(rounds):
                torch.mm(left, right)

        wall = take_turns({"": products}, self.repeats, warmup=self.warmup)[""].wall
        return rounds * 2 * edges * self.edge_width**2 / wall / 1e9

    def report(self, found: dict[str, dict[str, float]]) -> str:
        """The table, and what bounds the dense layout."""
        heads = ["layout", "forward, ms", "training step, ms", "its processor time, ms", "peak memory, MB"]
        heads += ["GFLOP per INR, forward", "step", "steps, times as fast as the twin"]
        rows = [
            [name, *(f"{1e3 * f[key]:.1f}" for key in ("forward", "step", "processor")), f"{f['megabytes']:.0f}"]
            + [f"{f['gigaflop']:.4f}", f"{f['step gigaflop']:.4f}", f"{found['twin']['step'] / f['step']:.2f}"]
            for name, f in found.items()
        ]
        dense, rate = found["dense"], self.product_rate()
        products = dense["step gigaflop"] * self.batch / rate / dense["step"]
        bound = "products per edge" if products > 0.5 else "memory traffic (elementwise work on edges, its gradients)"
        return (
            f"{table(heads, rows)}\n\nProducts of a layer's size run at {rate:.0f} GFLOP/s here: {100 * products:.0f} "
            f"% of the dense training step. What bounds it: {bound}."
        )


VARIANTS: tuple[str, ...] = ("dense", "ragged", "twin")


def training_step(module: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward, backward and a plain step (of size 0, so that repeats do the same work)."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


@dataclass(frozen=True)
class MetaTraining:
    """What a step of an inner run costs in meta-training, by how the runs are done.

    Timed are whole outer gradients of antithetic PES on networks 64-32-10 with batches of 128 random images: all pairs
    of runs vmapped and compiled, vmapped and eager, and one pair after the other, eager. Given are medians of process
    time and of wall time over inner steps, both runs of a pair counted.

    Attributes:
        rules: of per-parameter, small-fc, lean.
        particles: pairs of runs.
        truncation: inner steps per outer gradient.
        rounds: turns of every contender.
        out: folder of what is written, cost.json and cost.md.
        smoke: seconds instead of minutes, without compiling, to see that everything runs.
    """

    rules: tuple[str, ...] = ("per-parameter", "lean")
    particles: int = 16
    truncation: int = 20
    rounds: int = 7
    out: str = "runs/meta-cost"
    smoke: bool = False

    def run(self) -> dict[str, Any]:
        """Measure; write the table; returns what is in cost.json."""
        check_names("rules", self.rules, LEARNED)
        if min(self.particles, self.truncation, self.rounds) < 1:
            raise WeightEditError(f"got {self}; expected at least one pair, one inner step and one round: correct it.")
        small = replace(self, particles=2, truncation=2, rounds=1) if self.smoke else self
        found = {name: small.measure(name) for name in tqdm(self.rules, desc="rules")}
        rows = []
        for way in next(iter(found.values())):
            of = [(figures[way], next(iter(figures.values()))) for figures in found.values()]
            cells = [f"{a['process']:,.0f} ({a['wall']:,.0f}), {a['process'] / b['process']:.1f}x" for a, b in of]
            rows.append([way, *cells])
        text = table(["microseconds per inner step, process (wall)", *found], rows)
        print(text)
        result = {"config": asdict(small), "threads": torch.get_num_threads(), "rules": found}
        write_result(self.out, "cost", result, text)
        return result

    def measure(self, name: str) -> dict[str, dict[str, float]]:
        """Per way: process and wall microseconds per inner step."""
        ways = {} if self.smoke else {"vmapped, compiled": (self.particles, True)}
        ways |= {"vmapped, eager": (self.particles, False), "one pair at a time, eager": (1, False)}
        jobs = {way: self.outer_gradient(name, *how) for way, how in ways.items()}
        timed = take_turns(jobs, self.rounds)  # the turn that does not count compiles
        steps = {way: 2 * particles * self.truncation / 1e6 for way, (particles, _) in ways.items()}
        return {
            way: {"process": timing.processor / steps[way], "wall": timing.wall / steps[way]}
            for way, timing in timed.items()
        }

    def outer_gradient(self, name: str, particles: int, compiled: bool) -> Callable[[], None]:
        """Outer gradients of a rule, one after the other."""
        generator, rule = torch.Generator().manual_seed(0), LEARNED[name]()
        images, labels = torch.rand(4096, 1, 8, 8, generator=generator), torch.randint(10, (4096,), generator=generator)
        problem = ClassifierOptimizee(LabeledImages(images, labels, 10), None, hidden=(32,))
        unroll, long = Unroll(rule, problem, compile=compiled), 100 * self.truncation
        estimator = PES(unroll, Horizons(long, long), self.truncation, particles, random_phase=False, sigma=0.01)
        weights = {key: parameter.detach() for key, parameter in rule.named_parameters()}
        state = estimator.init(generator)

        def gradient() -> None:
            nonlocal state
            _, state, _ = estimator.gradient(weights, state)

        return gradient


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "2.4k": lambda: mlp(64, 32, 10),
    "118k": lambda: mlp(784, 128, 128, 10),
    "1.9M": lambda: mlp(784, 1024, 1024, 10),
    "ResNet-18": resnet18,
    "GPT": GPT,
}


@dataclass(frozen=True)
class Optimizers:
    """What a step of an optimizer costs beside torch's, on whatever device there is.

    Timed is optimizer.step() alone, on gradients that stay: medians, on a CPU of processor time, since cores may be
    shared. Memory is the peak of two steps above the network and its gradients, the state included. Operations are
    what an eager step dispatches; kernels, where there is a GPU, what it launches. Everything is first timed as it is,
    then the rules compiled, on the largest networks first. What is not at hand, or would not end in `minutes` if it
    took as long as the slowest of its kind before it, is left out by name.

    Attributes:
        rules: names (adam, geometric-adam, per-parameter, small-fc, lean), or learned rules, shipped ones or folders.
        rivals: of muon, schedule-free; fused AdamW is always there. Muon takes seconds per step on a CPU from 1.9M.
        networks: names (2.4k, 118k, 1.9M, ResNet-18, GPT); none: all on a GPU, the first three on a CPU.
        compile: time the rules compiled, too.
        rounds: turns of every contender.
        minutes: for all of it.
        device: cuda, cpu, or nothing for the first there is.
        out: folder of what is written, cost.json and cost.md.
        smoke: seconds instead of minutes, to see that everything runs.
    """

    rules: tuple[str, ...] = ("per-parameter", "general")
    rivals: tuple[str, ...] = tuple(RIVALS)
    networks: tuple[str, ...] = ()
    compile: bool = True
    rounds: int = 15
    minutes: float = 2.5
    device: str = ""
    out: str = "runs/cost"
    smoke: bool = False

    def run(self) -> dict[str, Any]:
        """Measure; write the table; returns what is in cost.json."""
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if self.smoke:
            return replace(self, networks=self.networks or ("2.4k",), compile=False, rounds=2, smoke=False).run()
        names = self.networks or tuple(NETWORKS)[: None if device == "cuda" else 3]
        check_names("networks", names, NETWORKS)
        check_names("rivals", self.rivals, RIVALS)
        absent = {RIVALS[name]: missing()[RIVALS[name]] for name in self.rivals if RIVALS[name] in missing()}
        left = [f"{rival} ({why})" for rival, why in absent.items()]
        rivals = [(ADAMW, False), *((RIVALS[name], False) for name in self.rivals if RIVALS[name] not in absent)]
        turns = [(name, [*rivals, *((rule, False) for rule in self.rules)]) for name in names]
        if self.compile:
            turns += [(name, [(ADAMW, False), *((rule, True) for rule in self.rules)]) for name in reversed(names)]
        end, rows, result, longest = time.perf_counter() + 60 * self.minutes, [], {}, {False: 0.0, True: 0.0}
        for name, contenders in turns:
            found, out = self.measure(name, contenders, device, (end, longest))
            rows += found
            left += out
            result = self.written(device, rows, left)
        return result

    def written(self, device: str, rows: list[dict[str, Any]], left: list[str]) -> dict[str, Any]:
        """Write and print what is measured so far, so that a run that is ended keeps it; returns what is written."""
        heads = list(rows[0]) if rows else ["nothing was timed"]
        text = table(heads, [[_cell(row[head]) for head in heads] for row in rows])
        text = f"{hardware(cpu=device == 'cpu')}, torch {torch.__version__}\n\n{text}"
        if left:
            text += f"\n\nLeft out: {'; '.join(dict.fromkeys(left))}."
        result = {"config": asdict(self), "device": device, "rows": rows, "left out": left}
        write_result(self.out, "cost", result, text)
        print(text)
        return result

    def measure(
        self, name: str, contenders: list[tuple[str, bool]], device: str, until: tuple[float, dict[bool, float]]
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """One row per contender on one network, and what was left out.

        Args:
            contenders: with whether they are compiled; the first is what others are measured by.
            until: when all must have ended; seconds of the slowest contender, compiled or not, so far.
        """
        end, longest = until
        memory, counts, steppers, left = {}, {}, {}, []
        for rival, compiled in contenders:
            label, begun = f"{rival}, compiled" if compiled else rival, time.perf_counter()
            if begun + longest[compiled] > end:
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
            longest[compiled] = max(longest[compiled], time.perf_counter() - begun)
        first, compiled = contenders[0][0], contenders[-1][1]
        if first not in steppers or (compiled and len(steppers) == 1):
            return [], left
        timings = take_turns({label: optimizer.step for label, (optimizer, _) in steppers.items()}, self.rounds)
        parameters = sum(p.numel() for p in NETWORKS[name]().parameters())
        seconds = {label: own.wall if device == "cuda" else own.processor for label, own in timings.items()}
        return [
            {
                "network": name,
                "contender": label,
                "ms": 1e3 * seconds[label],
                "times fused AdamW": seconds[label] / seconds[first],
                "ns per parameter": 1e9 * seconds[label] / parameters,
                "wall ms": 1e3 * timing.wall,
                "peak MB": memory.get(label),
                "operations": counts.get(label, (None, None))[0],
                "kernels": counts.get(label, (None, None))[1],
            }
            for label, timing in timings.items()
            if not compiled or label != first
        ], left


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
        optimizer = importlib.import_module("schedulefree").AdamWScheduleFree(params, lr=1e-6)
        optimizer.train()
        return Several(optimizer)
    rule = RULES[name]() if name in RULES else RuleModule.from_pretrained(name)
    cuda = params[0].is_cuda
    options: dict[str, Any] = {"nonfinite": "skip", "capturable": True} if cuda else {}
    return Several(LearnedOptimizer(net, rule, lr=1e-2, compile=compile, **options))


def missing() -> dict[str, str]:
    """Contenders that are not at hand, and why."""
    found = {} if hasattr(torch.optim, "Muon") else {MUON: f"torch {torch.__version__} has none"}
    return found | ({} if find_spec("schedulefree") else {FREE: "schedulefree is not installed"})


def held(name: str, network_name: str, device: str) -> float:
    """Megabytes at the peak of two steps above the network and its gradients."""
    net = network(network_name, device)  # which the optimizer holds weakly
    return peak_megabytes(stepper(name, net).step, device)


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
    return seen.count, sum("CUDA" in str(event.device_type) for event in profiler.events() or ())


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


Config = Speed | MetaTraining | Optimizers


if __name__ == "__main__":
    sys.exit(told_in_one_line("benchmark", lambda: tyro.cli(Config, description=__doc__).run()))
