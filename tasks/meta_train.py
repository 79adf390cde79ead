"""Meta-train an update rule: inner loops train many small networks with it, the outer loop trains the rule.

    python tasks/meta_train.py --problems fashion-mlp --rule lean --out runs/rule
    python tasks/meta_train.py --problems fashion-cnn --rule gauge-gmn-b --out runs/graph-rule
    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 tasks/meta_train.py ...     two processes, twice the particles

The first is 1,500 outer steps, a quarter of an hour of one core; in the second a metanetwork reads the whole network at
every inner step, which takes many times as long.

Every outer step unrolls `truncation` inner steps of one problem's particles and follows the estimated gradient of their
mean loss. Problems take turns; `vary` adds problems of other widths, activations, initial scales and batch sizes to
each. The best outer step is the one whose runs on images that no inner step saw have the lowest mean loss. Started
again with the same arguments, a run goes on where it was stopped, inner runs included. Written: out/rule (the rule and
its card), out/curve.png (anew at every validation), out/result.json, out/run (state and log).
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, distributed, nn
from tqdm import tqdm

from weightedit.cli.main import told_in_one_line
from weightedit.errors import WeightEditError
from weightedit.metanet.registry import METANETS, config_options
from weightedit.metatrain.estimators import ES, PES, ESSingle, Estimator, Horizons, TruncatedBackprop
from weightedit.metatrain.memory import memory_of
from weightedit.metatrain.optimizee import Level, Optimizee, Reparametrized
from weightedit.metatrain.problems import PROBLEMS, TRAINED, family, images_of
from weightedit.metatrain.training_optimizee import TrainingOptimizee
from weightedit.metatrain.unroll import Unroll, start
from weightedit.metatrain.workloads import MINIATURES, WORKLOADS, workload
from weightedit.optim.learned_rule import default_config, make_rule
from weightedit.optim.metanet_rule import MetanetRule
from weightedit.optim.metanet_rule_config import MetanetRuleConfig
from weightedit.optim.mlp_rule import MLPRule, MLPRuleConfig
from weightedit.optim.rule_module import RuleModule
from weightedit.plots import Band, bands
from weightedit.training.loop import TrainOptions, TrainResult, train
from weightedit.training.state import read_log

ESTIMATORS: dict[str, type[Estimator]] = {
    "pes": PES,
    "es": ES,
    "es-single": ESSingle,
    "backprop": TruncatedBackprop,
}


@dataclass(frozen=True)
class Config:
    """One meta-training.

    Attributes:
        problems: names of metatrain.problems.PROBLEMS, or of trainings, metatrain.workloads.MINIATURES and WORKLOADS;
            they take turns.
        images: folder with the data sets mnist, fashion_mnist, cifar10; "" takes them from the hub.
        rule: "lean" (optim/metanet_rule.py: per parameter, with one exchange over neurons), "per-parameter" or
            "small-fc" (optim/mlp_rule.py); a metanetwork that edits, by its name in metanet.registry
            (optim/learned_rule.py); or a folder to go on from.
        lean: of a new lean rule.
        start: folder or name of a lean rule whose weights a new one starts with; "" for random ones.
        options: of a new rule's metanetwork: fields of its config, such as layers=3 node_width=32.
        step_size: of the first steps of a new rule that is no lean one; 0 for its default.
        vary: what varies beside every one of PROBLEMS itself: hidden, activation, initial_scale, batch_size.
        members: varied problems per name; 0 without `vary`.
        reparametrize: rescale what the rule sees, per global, tensor or parameter; empty for no.
        estimator: pes, es, es-single or backprop.
        particles: inner runs per problem and process, for the evolution strategies pairs of runs.
        truncation: inner steps per outer step; 0 for whole runs.
        shortest, longest: lengths of inner runs, log-uniform.
        sigma: of the perturbations.
        held_out: take the meta-loss where networks are tested: on examples that no step trains on, at the average of a
            rule that averages, after every step; else on the batch of a step, before it.
        compile: compile inner steps: a minute or more at the start per problem, then several times as fast.
        validation_steps, validation_runs: of the runs that choose the best outer step.
        training: the outer loop.
        out: folder of what is written.
        smoke: seconds instead of minutes, on scikit-learn's digits, to see that everything runs.
    """

    problems: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--optimizee"])] = ("fashion-mlp",)
    images: str = ""
    rule: str = "lean"
    lean: MetanetRuleConfig = field(default_factory=MetanetRuleConfig)
    start: str = ""
    options: tuple[str, ...] = ()
    step_size: float = 0.0
    vary: tuple[str, ...] = ()
    members: int = 2
    reparametrize: Literal["", "global", "tensor", "parameter"] = ""
    estimator: str = "pes"
    particles: int = 16
    truncation: int = 50
    shortest: int = 100
    longest: int = 2000
    sigma: float = 0.01
    held_out: bool = False
    compile: bool = True
    validation_steps: int = 500
    validation_runs: int = 8
    training: TrainOptions = field(
        default_factory=lambda: TrainOptions(
            steps=1500,
            batch_size=1,
            learning_rate=2e-3,
            betas=(0.9, 0.98),
            warmup_steps=20,
            schedule="cosine",
            clip_norm=1.0,
            ema_decay=0.98,
            validate_every=100,
            checkpoint_every=50,
        )
    )
    out: str = "runs/rule"
    smoke: bool = False


class OuterSteps:
    """The examples of an outer step: there are none, everything is drawn inside."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, rows: Tensor) -> Tensor:
        return rows


class MetaLoss:
    """The loss of the outer loop: a number whose gradient is what the estimator of the problem in turn says.

    Between outer steps it carries the inner runs of all problems, each process its own: of two processes, each does
    half of the runs that one with twice the particles would do.
    """

    def __init__(self, estimators: list[Estimator]) -> None:
        self.estimators = estimators
        self.states: list[dict[str, Tensor]] = []
        self.turn = 0

    def __call__(self, rule: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        if not self.states:
            common = of_first_process(generator)
            self.states = [own_part(estimator).init(common) for estimator in self.estimators]
        place = self.turn % len(self.estimators)
        self.turn += 1
        named = dict(rule.named_parameters())
        weights = {name: parameter.detach() for name, parameter in named.items()}
        gradient, self.states[place], metrics = own_part(self.estimators[place]).gradient(weights, self.states[place])
        push = sum((named[name] * g).sum() for name, g in gradient.items())
        assert isinstance(push, Tensor)
        return metrics["loss"].to(push) + push - push.detach()

    def tensors(self) -> dict[str, Tensor]:
        """See training.Carried."""
        held = {f"{i}/{name}": tensor for i, state in enumerate(self.states) for name, tensor in state.items()}
        return {"turn": torch.tensor(self.turn), **held}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """See training.Carried; to the device of the rule."""
        self.turn = int(tensors["turn"])
        self.states = []
        for i, estimator in enumerate(self.estimators):
            device, mine = device_of(estimator.unroll.rule), [name for name in tensors if name.startswith(f"{i}/")]
            own = {name.partition("/")[2]: tensors[name].to(device).clone() for name in mine}
            self.states += [own] if own else []


def device_of(rule: Any) -> torch.device:
    """Where its weights are."""
    return next(rule.parameters()).device


def own_part(estimator: Estimator) -> Estimator:
    """Of several processes, this one's part of all particles."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return estimator
    return replace(estimator, part=distributed.get_rank(), parts=distributed.get_world_size())


def of_first_process(generator: torch.Generator) -> torch.Generator:
    """A generator that has drawn nothing, seeded as process 0's was; of one process, the one it has."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return generator
    seed = torch.tensor(generator.initial_seed(), device=generator.device)
    distributed.broadcast(seed, 0)
    return torch.Generator(generator.device).manual_seed(int(seed))


def new_rule(config: Config, problems: Sequence[Optimizee]) -> RuleModule:
    """The rule that is trained, for networks of these problems."""
    match config.rule:
        case "lean":
            rule = MetanetRule(config.lean)
            if config.start:
                rule.load_state_dict(MetanetRule.from_pretrained(config.start).state_dict())
            return rule
        case "per-parameter":
            return MLPRule(MLPRuleConfig.per_parameter(config.step_size or 1e-2))
        case "small-fc":
            return MLPRule(MLPRuleConfig.small_fc(config.step_size or 1e-2))
    if config.rule not in METANETS:
        return RuleModule.from_pretrained(config.rule)
    specs = [problem.wiring.spec for problem in problems]
    if None in specs:
        raise WeightEditError(
            f"got {config.rule} for a problem that is no network which a spec describes; expected networks that are "
            "read as a whole: take --rule lean."
        )
    own = default_config(config.rule)
    own = replace(own, step_size=config.step_size or own.step_size)
    return make_rule(config.rule, specs, own, **config_options(config.options))


def inner_problems(config: Config) -> tuple[list[Optimizee], list[Optimizee]]:
    """Every named problem with its variations, if it has some; and those that are validated on, as they are named."""
    if unknown := [name for name in config.problems if name not in {**PROBLEMS, **MINIATURES, **WORKLOADS}]:
        raise WeightEditError(
            f"got problems {', '.join(unknown)}; expected some of {', '.join([*PROBLEMS, *MINIATURES, *WORKLOADS])}."
        )
    found: list[Optimizee] = []
    named: list[Optimizee] = []
    for name in config.problems:
        if name not in PROBLEMS:
            named.append(TrainingOptimizee(workload(name, config.images)))
            found.append(named[-1])
            continue
        data, held_out = images_of(name, config.images).split(TRAINED)
        generator = torch.Generator().manual_seed(config.training.seed)
        named.append(family(name, data, held_out).draw(generator)[0])
        varied = family(name, data, held_out, config.vary)
        found += [named[-1], *(varied.draw(generator)[0] for _ in range(config.members if config.vary else 0))]
    if config.reparametrize:
        level: Level = config.reparametrize

        def moved(problems: list[Optimizee]) -> list[Optimizee]:
            return [Reparametrized(problem, level) for problem in problems]

        found, named = moved(found), moved(named)
    return found, named


def main(config: Config) -> TrainResult:
    """Train; write out/rule, out/curve.png and out/result.json."""
    if config.smoke:
        short = replace(config.training, steps=4, validate_every=2, checkpoint_every=2, warmup_steps=0)
        few: dict[str, Any] = {"truncation": 3, "shortest": 4, "longest": 6, "validation_steps": 4, "compile": False}
        config = replace(config, problems=("digits-mlp",), particles=2, training=short, **few)
    if config.estimator not in ESTIMATORS or not config.problems:
        raise WeightEditError(
            f"got estimator {config.estimator!r} and problems {config.problems}; expected one of "
            f"{', '.join(ESTIMATORS)} and at least one problem: choose."
        )
    begun = time.process_time()
    out, (problems, named) = Path(config.out), inner_problems(config)
    rule = new_rule(config, problems)
    extra: dict[str, Any] = {} if config.estimator == "backprop" else {"sigma": config.sigma}
    estimators = [
        ESTIMATORS[config.estimator](
            Unroll(rule, problem, config.held_out, config.compile),
            Horizons(config.shortest, config.longest),
            config.truncation or None,
            config.particles,
            **extra,
        )
        for problem in problems
    ]
    tell_memory(config, estimators)

    def validate(module: nn.Module) -> float:
        steps, runs = config.validation_steps, config.validation_runs
        value = statistics.fmean(score_of(module, problem, steps, runs) for problem in named)
        if math.isfinite(value):
            draw(out, len(problems), {"step": carried.turn // config.training.accumulate, "validation": value})
        return value

    carried = MetaLoss(estimators)
    about = {
        name: value for name, value in asdict(config).items() if name not in ("training", "out", "images", "compile")
    }
    result = train(rule, carried, OuterSteps(), validate, out / "run", config.training, about=about, carried=carried)
    if not result.main:
        return result
    if not math.isfinite(result.best_validation):
        print(f"stopped after outer step {result.steps}, before the first validation: the same command goes on")
        return result
    rule.cpu()
    if isinstance(rule, MetanetRule):
        rule.forget_unseen(problem.wiring for problem in problems)
    facts = {
        "config": asdict(config),
        "weights": sum(p.numel() for p in rule.parameters()),
        "best_step": result.best_step,
        "best_validation": result.best_validation,
        "steps": result.steps,
        "seconds": result.seconds,
        "core_seconds": time.process_time() - begun,
        "finished": result.finished,
    }
    (out / "result.json").write_text(json.dumps(facts, indent=2))
    draw(out, len(problems))
    rule.save_pretrained(out / "rule", model_card(config, facts), facts)
    print(
        f"validation {result.best_validation:.4f} after outer step {result.best_step}; rule written to {out / 'rule'}"
    )
    return result


@torch.no_grad()
def score_of(rule: nn.Module, problem: Optimizee, steps: int, count: int = 8) -> float:
    """Mean score of `count` runs on images that no inner step sees, over all steps."""
    assert isinstance(rule, RuleModule)
    state = start(rule, problem, torch.Generator(device_of(rule)).manual_seed(7), count, held_out=True)
    _, losses = Unroll(rule, problem, fresh=True)(state, steps)
    return float(problem.score(losses).mean())


def tell_memory(config: Config, estimators: Sequence[Estimator]) -> None:
    """Print what an outer step holds at most: the runs of all problems, and the work on the problem in turn."""
    generator, steps = torch.Generator().manual_seed(0), config.truncation or config.longest
    found = [memory_of(estimator, steps, generator) for estimator in estimators]
    held = sum(state for state, _ in found) + max(call - state for state, call in found)
    tqdm.write(f"an outer step holds up to {held / 2**20:.1f} MiB per process, beside the images (compiled: less)")


def draw(out: Path, problems: int, latest: dict[str, Any] | None = None) -> None:
    """The meta-loss, as means over whole rounds of the problems, and the validations of out/run's log, and one that it
    does not have yet, as out/curve.png."""
    records = read_log(out / "run")
    trained = [record for record in records if record["loss"] is not None]
    size = problems * max(1, len(trained) // (100 * problems))
    parts = [trained[i : i + size] for i in range(0, len(trained), size)]
    means = [statistics.fmean(float(r["loss"]) for r in part) for part in parts]
    drawn = [Band("meta-loss", [float(part[-1]["step"]) for part in parts], [means])] if parts else []
    checked = [r for r in [*records, latest or {}] if r.get("validation") is not None]
    if checked:
        drawn.append(Band("validation", [r["step"] for r in checked], [[r["validation"] for r in checked]], own=True))
    bands({"outer step": drawn}, out / "curve.png", ylabel="mean inner loss")


def model_card(config: Config, facts: dict[str, Any]) -> str:
    """The README.md beside a rule's weights."""
    return f"""# weightedit update rule

`LearnedOptimizer(net, "THIS FOLDER")` takes steps with it. {facts["weights"]} weights, kind {config.rule},
meta-trained with {config.estimator} on {", ".join(config.problems)}
(varied: {", ".join(config.vary) or "nothing"}) for {facts["steps"]:,} outer steps of {config.truncation} inner steps of
{config.particles} particles each, in {facts["seconds"] / 60:.0f} minutes; the best was outer step
{facts["best_step"]:,}, with a mean loss of {facts["best_validation"]:.4f} (in units of a guess without looking) over
{config.validation_steps} steps on images that no inner step saw.

config.json holds the whole configuration.
"""


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    sys.exit(told_in_one_line("meta_train", lambda: main(config)))
