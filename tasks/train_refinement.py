"""Meta-train the refinement rule: K-FAC whose numbers a small network chooses, for the steps that an edit can afford.

    python tasks/train_refinement.py --weights runs/mnist-inrs --operations dilate --out runs/refine

Inner problem: one INR, `steps` steps towards operation(its own rendering). Outer loss: the logarithm of the mean
squared error against operation(source image) after the last step, by backpropagation through all steps; their number is
drawn from 1 to `longest` for every batch. Every batch comes from one weight set at one output width, drawn at random.
With `fits`, some batches are SIRENs fresh from their random initialisation instead, on their way to the source image
itself: the rule then fits INRs as well as it edits them.
The best step is chosen on the validation INRs of all of them. Started again with the same arguments, a run goes on
where it was stopped.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from weightedit.cli.main import told_in_one_line
from weightedit.data.weight_sets import WeightSet, load_weight_set
from weightedit.editing.curvature import KFAC, LearnedKFAC, LearnedKFACConfig
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.operations import operation
from weightedit.editing.refinement import RefinementRule, refine, target_of
from weightedit.editing.rendering_problem import RenderingProblem
from weightedit.errors import WeightEditError
from weightedit.inr.convention import Convention
from weightedit.inr.siren import initial_params, render_images
from weightedit.inr.stack import INRStack
from weightedit.inr.widening import widen, widened
from weightedit.training.loop import TrainOptions, train


@dataclass(frozen=True)
class Config:
    """One experiment.

    Attributes:
        weights: folders of weight sets (tasks/fit_inrs.py), of any architectures; the test figures are of the first.
        widen: output widths to train at, as multiples of the given ones, see inr/widening.py. A folder or a width named
            twice is drawn twice as often.
        start: folder of a trained rule to go on from; empty for a new one.
        out: folder of the run; the finished rule is written to out/rule.
        operations: what is learned on, dealt out among the INRs in turn.
        longest: most steps of an inner problem.
        fits: fits from random initialisations are drawn so often as this many weight sets at one width.
        longest_fit: most steps of a fit.
        train_limit: use the first so many training INRs; 0 for all.
        validation_limit: INRs to choose the best step on.
        test_limit: INRs of the test figures; 0 for all.
        rule: what is trained.
        training: how.
        smoke: seconds instead of minutes, to see that everything runs.
    """

    weights: tuple[str, ...] = ("runs/mnist-inrs",)
    widen: tuple[int, ...] = (1,)
    start: str = ""
    out: str = "runs/refine"
    operations: tuple[str, ...] = ("dilate",)
    longest: int = 12
    fits: int = 0
    longest_fit: int = 24
    train_limit: int = 0
    validation_limit: int = 128
    test_limit: int = 1000
    rule: LearnedKFACConfig = field(default_factory=LearnedKFACConfig)
    training: TrainOptions = field(
        default_factory=lambda: TrainOptions(
            steps=600,
            batch_size=16,
            learning_rate=1e-2,
            weight_decay=0.0,
            betas=(0.9, 0.98),
            warmup_steps=20,
            schedule="cosine",
            clip_norm=1.0,
            ema_decay=0.98,
            validate_every=50,
            checkpoint_every=50,
        )
    )
    smoke: bool = False


class Problems:
    """INRs, the targets that their renderings give, and the targets of their source images."""

    def __init__(self, weights: WeightSet, operations: tuple[str, ...]) -> None:
        self.weights = weights
        self.convention: Convention = weights.stack.convention
        turn = torch.arange(len(weights)) % len(operations)
        floats = weights.floats()
        self.known, self.wanted = torch.empty_like(floats), torch.empty_like(floats)
        for which, name in enumerate(operations):
            rows = (turn == which).nonzero().squeeze(1)
            self.wanted[rows] = operation(name)(floats[rows])
            for part in rows.split(1000):
                self.known[part] = target_of(name, weights.stack[part])

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, rows: Tensor) -> dict[str, Any]:
        params = {name: tensor[rows] for name, tensor in self.weights.stack.params.items()}
        return {"params": params, "known": self.known[rows], "wanted": self.wanted[rows]}


class Fits:
    """SIRENs as they are initialised, and the images that they are to become; the indices of a batch fix both."""

    def __init__(self, weights: WeightSet) -> None:
        self.images, self.widths, self.convention = weights.floats(), weights.stack.widths, weights.stack.convention

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Tensor) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(int(rows.sum()))
        options: dict[str, Any] = {"init": "siren", "omega": self.convention.frequency, "generator": generator}
        params = initial_params(len(rows), self.widths, **options)
        return {"params": params, "known": self.images[rows], "wanted": self.images[rows], "fit": torch.tensor(True)}


class Mixture:
    """Several sets of problems, every batch from one of them: which one, its first index says."""

    def __init__(self, parts: list[Problems], widen: tuple[int, ...], fits: list[Fits]) -> None:
        self.kinds: list[tuple[Problems | Fits, int]] = [(part, factor) for part in parts for factor in widen]
        self.kinds += [(part, 1) for part in fits]
        self.longest = max(map(len, parts))

    def __len__(self) -> int:
        return self.longest * len(self.kinds)

    def __getitem__(self, rows: Tensor) -> dict[str, Any]:
        part, factor = self.kinds[int(rows[0]) % len(self.kinds)]
        batch = part[rows.div(len(self.kinds), rounding_mode="floor") % len(part)]
        return {**batch, "params": widened(batch["params"], factor, part.convention.frequency)}


def main(config: Config) -> dict[str, dict[int, float]]:
    """Train, test at every number of steps, write out/rule and out/result.json; returns the test figures."""
    if config.smoke:
        short = replace(config.training, steps=2, batch_size=2, warmup_steps=0, validate_every=1, checkpoint_every=1)
        config = replace(config, train_limit=8, validation_limit=4, test_limit=4, longest=2, training=short)
    limits = {"train": config.train_limit, "validation": config.validation_limit, "test": config.test_limit}
    sets = [
        {name: load_weight_set(folder, name, limit or None) for name, limit in limits.items()}
        for folder in config.weights
    ]
    if not sets or len({part["train"].stack.convention for part in sets}) > 1:
        raise WeightEditError(f"--weights {config.weights} came; expected sets of one convention: convert them.")
    rule, out = (
        LearnedKFAC.from_pretrained(config.start) if config.start else LearnedKFAC(config.rule),
        Path(config.out),
    )
    problems = {name: [Problems(part[name], config.operations) for part in sets] for name in limits}
    fits = {name: [Fits(part[name]) for part in sets for _ in range(config.fits)] for name in limits}
    convention = problems["train"][0].convention

    def loss(module: nn.Module, batch: dict[str, Any], generator: torch.Generator) -> Tensor:
        assert isinstance(module, LearnedKFAC)
        most = config.longest_fit if "fit" in batch else config.longest
        steps = int(torch.randint(1, most + 1, (), generator=generator, device=generator.device))
        found = module.refine(RenderingProblem(convention, batch["known"]), batch["params"], steps)
        rendered = render_images(found, convention, *batch["wanted"].shape[-2:])
        return (rendered - batch["wanted"]).square().mean().log()

    def validate(module: nn.Module) -> float:
        assert isinstance(module, LearnedKFAC)
        budgets, logs = sorted({1, config.longest // 2, config.longest} - {0}), []
        for part in dict(zip(config.weights, problems["validation"], strict=True)).values():
            for factor in dict.fromkeys(config.widen):
                logs += [math.log(error_after(part, module, steps, factor)) for steps in budgets]
        for part in fits["validation"]:
            logs += [math.log(error_of_fits(part, module, steps)) for steps in (12, config.longest_fit)]
        return sum(logs) / len(logs)

    kept = ("weights", "widen", "start", "operations", "longest", "fits", "longest_fit", "rule")
    about = {name: asdict(config)[name] for name in kept}
    examples = Mixture(problems["train"], config.widen, fits["train"])
    result = train(rule, loss, examples, validate, out / "run", config.training, about=about)
    if not result.main:
        return {}
    rule.cpu()
    figures = {
        name: {steps: error_after(problems["test"][0], chosen, steps) for steps in range(1, config.longest + 1)}
        for name, chosen in (("K-FAC, numbers by hand", KFAC()), ("learned", rule))
    }
    facts = {
        "figures": figures,
        "config": asdict(config),
        "counts": {
            name: sum(map(len, dict(zip(config.weights, parts, strict=True)).values()))
            for name, parts in problems.items()
        },
        "architectures": list(dict.fromkeys(part["train"].stack.widths for part in sets)),
        "tested": len(problems["test"][0]),
        "steps": result.steps,
        "best_step": result.best_step,
        "seconds": result.seconds,
        "finished": result.finished,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(facts, indent=2, default=str))
    table = report(figures)
    print(f"{', '.join(config.operations)}: mean squared error x 1e-2 on {len(problems['test'][0])} test INRs\n{table}")
    rule.save_pretrained(out / "rule", model_card(config, facts, table), json.loads(json.dumps(facts, default=str)))
    print(f"rule written to {out / 'rule'}")
    return figures


def error_after(problems: Problems, rule: RefinementRule, steps: int, factor: int = 1) -> float:
    """Mean squared error against the targets of the source images."""
    device = rule.first.weight.device if isinstance(rule, LearnedKFAC) else torch.device("cpu")
    given, known = widen(problems.weights.stack, factor).to(device), problems.known.to(device)
    return float(mean_squared_errors(refine(given, known, steps, rule=rule).to("cpu"), problems.wanted).mean())


def error_of_fits(fits: Fits, rule: LearnedKFAC, steps: int) -> float:
    """Mean squared error of fits of all of them."""
    batch = fits[torch.arange(len(fits))]
    height, width = fits.images.shape[-2:]
    stack = INRStack(batch["params"], fits.convention, height, width).to(rule.first.weight.device)
    return float(mean_squared_errors(refine(stack, batch["known"], steps, rule=rule).to("cpu"), fits.images).mean())


def report(figures: dict[str, dict[int, float]]) -> str:
    """A Markdown table, a row per number of steps."""
    rows = [f"| steps | {' | '.join(figures)} |", "|---" * (1 + len(figures)) + "|"]
    for steps in next(iter(figures.values())):
        rows.append(f"| {steps} | {' | '.join(f'{100 * found[steps]:.3f}' for found in figures.values())} |")
    return "\n".join(rows)


def model_card(config: Config, facts: dict[str, Any], table: str) -> str:
    """The README.md beside a rule's weights."""
    return f"""# weightedit refinement rule

K-FAC with the last layer in closed form, whose step sizes, momenta and dampings a small network chooses per INR, layer
and step from invariants. It refines a SIREN towards operation(its own rendering). Trained on
{", ".join(config.operations)} with {facts["counts"]["train"]:,} INRs of
{", ".join("-".join(map(str, widths)) for widths in facts["architectures"])},
widened {", ".join(map(str, dict.fromkeys(config.widen)))} times,
with fits from random initialisations up to {config.longest_fit} steps {config.fits} times as often as each,
for {facts["steps"]:,} steps of {config.training.batch_size} INRs, 1 to
{config.longest} inner steps each, in {facts["seconds"] / 60:.0f} minutes.

Mean squared error x 1e-2 against operation(source image), {facts["tested"]:,} test INRs of
{Path(config.weights[0]).name}:

{table}

config.json holds the whole configuration.
"""


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    sys.exit(told_in_one_line("train_refinement", lambda: main(config)))
