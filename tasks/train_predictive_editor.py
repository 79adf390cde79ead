"""Train a predictive editor: predict the edited picture from the rendering, take learned steps to it.

    python tasks/train_predictive_editor.py --weights runs/mnist-inrs --operations dilate --out runs/predictive

The predictor learns from pairs (an INR's rendering, the operation of its source image), with strengths drawn from 0 to
1 if it knows several operations or is told to; the steps are those of a trained refinement rule (train_refinement.py).
The best step is chosen on validation INRs. Started again with the same arguments, a run goes on where it was stopped.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from weightedit.cli.arguments import find_rule
from weightedit.cli.main import told_in_one_line
from weightedit.cli.preview import draw_strengths
from weightedit.data.weight_sets import WeightSet, load_weight_set
from weightedit.editing.curvature import LearnedKFAC
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.operations import operation
from weightedit.editing.predictive_editor import PredictiveEditor
from weightedit.editing.predictor import Predictor, PredictorConfig
from weightedit.training.loop import TrainOptions, train


@dataclass(frozen=True)
class Config:
    """One experiment.

    Attributes:
        weights: folder of a weight set (tasks/fit_inrs.py).
        out: folder of the run; the finished editor is written to out/editor.
        operations: what it learns; with several of them, each with every strength.
        graded: draw strengths from 0 to 1 for a single operation too.
        rule: folder of the refinement rule; empty for the shipped one.
        steps: of the rule, in the finished editor.
        train_limit, validation_limit, test_limit: INRs of each split; 0 for all.
        predictor: sizes of the predictor; operations, channels and graded follow from the rest.
        training: of the predictor.
        smoke: seconds instead of minutes.
    """

    weights: str = "runs/mnist-inrs"
    out: str = "runs/predictive"
    operations: tuple[str, ...] = ("dilate",)
    graded: bool = False
    rule: str = ""
    steps: int = 4
    train_limit: int = 0
    validation_limit: int = 500
    test_limit: int = 0
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    training: TrainOptions = field(
        default_factory=lambda: TrainOptions(
            steps=3000,
            batch_size=32,
            learning_rate=4e-3,
            weight_decay=0.0,
            betas=(0.9, 0.98),
            warmup_steps=50,
            schedule="cosine",
            clip_norm=1.0,
            ema_decay=0.995,
            validate_every=250,
            checkpoint_every=250,
        )
    )
    smoke: bool = False


class Pairs:
    """Renderings and source images of a weight set, in memory; renderings leave [0, 1] and are not bytes."""

    def __init__(self, weights: WeightSet, description: str) -> None:
        self.sources, parts = weights.images, []
        for rows in tqdm(torch.arange(len(weights)).split(500), desc=description, leave=False):
            parts.append(weights.stack[rows].render())
        self.renderings = torch.cat(parts)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, rows: Tensor) -> dict[str, Any]:
        return {"renderings": self.renderings[rows], "sources": self.sources[rows]}


def targets_of(names: tuple[str, ...], sources: Tensor, codes: Tensor, strengths: Tensor) -> Tensor:
    """operation(source) by degrees, a different operation and strength per image."""
    wanted, floats = torch.empty_like(sources, dtype=torch.float32), sources.to(torch.float32) / 255.0
    for code, name in enumerate(names):
        rows = (codes == code).nonzero().squeeze(1)
        if len(rows):
            wanted[rows] = operation(name).at(floats[rows], strengths[rows])
    return wanted


def main(config: Config) -> dict[str, dict[str, float]]:
    """Train, test every operation and strength, write out/editor and out/result.json; returns the test figures."""
    if config.smoke:
        short = replace(config.training, steps=2, batch_size=4, warmup_steps=0, validate_every=1, checkpoint_every=1)
        config = replace(config, train_limit=8, validation_limit=4, test_limit=4, steps=1, training=short)
    limits = {"train": config.train_limit, "validation": config.validation_limit, "test": config.test_limit}
    splits = {name: load_weight_set(config.weights, name, limit or None) for name, limit in limits.items()}
    names, graded = config.operations, config.graded or len(config.operations) > 1
    pairs = {name: Pairs(splits[name], f"rendering {name}") for name in ("train", "validation")}
    channels = splits["train"].stack.widths[-1]
    predictor = Predictor(replace(config.predictor, operations=names, channels=channels, graded=graded))
    rule, out = LearnedKFAC.from_pretrained(find_rule(config.rule or None)), Path(config.out)
    editor = PredictiveEditor(predictor, rule, config.steps)

    def loss(module: nn.Module, batch: dict[str, Any], generator: torch.Generator) -> Tensor:
        count, device = len(batch["sources"]), generator.device
        codes = torch.randint(len(names), (count,), generator=generator, device=device)
        drawn = torch.rand(count, generator=generator, device=device)
        # A quarter at the full strength, which is used most.
        strengths = (drawn / 0.75).clamp(max=1.0) if graded else torch.ones_like(drawn)
        wanted = targets_of(names, batch["sources"], codes, strengths)
        return functional.mse_loss(module(batch["renderings"], codes, strengths), wanted)

    def validate(module: nn.Module) -> float:
        assert isinstance(module, Predictor)
        total, few = 0.0, pairs["validation"]
        for code in range(len(names)):
            codes = torch.full((len(few),), code)
            for strength in (0.5, 1.0) if graded else (1.0,):
                strengths = torch.full((len(few),), strength)
                wanted = targets_of(names, few.sources, codes, strengths)
                device = module.last.weight.device
                found = torch.cat(
                    [
                        module(few.renderings[r].to(device), codes[r].to(device), strengths[r].to(device)).cpu()
                        for r in torch.arange(len(few)).split(100)
                    ]
                )
                total += float(functional.mse_loss(found, wanted))
        return total / len(names) / (2 if graded else 1)

    about = {"weights": config.weights, **predictor.config.to_dict()}
    result = train(predictor, loss, pairs["train"], validate, out / "run", config.training, about=about)
    if not result.main:
        return {}
    figures = test_figures(editor.cpu().eval(), splits["test"], (0.5, 1.0) if graded else (1.0,))
    facts = {
        "figures": figures,
        "config": asdict(config),
        "counts": {name: len(part) for name, part in splits.items()},
        "steps": result.steps,
        "best_step": result.best_step,
        "best_validation": result.best_validation,
        "seconds": result.seconds,
        "finished": result.finished,
        "parameters": sum(p.numel() for p in editor.parameters()),
        "flops": forward_flops(editor, splits["test"]),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(facts, indent=2, default=str))
    table = report(figures)
    print(f"mean squared error on {len(splits['test'])} test INRs, after {config.steps} steps\n{table}")
    editor.save_pretrained(out / "editor", model_card(config, facts, table), json.loads(json.dumps(facts, default=str)))
    shown = min(max(6, len(names)), len(splits["test"]))
    draw_strengths(editor, splits["test"].stack[:shown], splits["test"].floats()[:shown], out / "strengths.png")
    print(f"editor and strengths.png written to {out}")
    return figures


def test_figures(
    editor: PredictiveEditor, test: WeightSet, strengths: tuple[float, ...]
) -> dict[str, dict[str, float]]:
    """Per operation and strength: mean squared errors of doing nothing, of the predicted picture, and of the edit."""
    figures: dict[str, dict[str, float]] = {}
    for name in editor.operations:
        for strength in strengths:
            wanted = operation(name).at(test.floats(), strength)
            parts = [test.stack[rows] for rows in torch.arange(len(test)).split(1000)]
            predicted = torch.cat([editor.predict(part, name, strength) for part in parts])
            edited = editor.edit(test.stack, name, strength, progress=True)
            figures[f"{name} {strength:g}"] = {
                "do nothing": float(mean_squared_errors(test.stack, wanted).mean()),
                "predicted picture": float((predicted - wanted).square().mean()),
                "edited": float(mean_squared_errors(edited, wanted).mean()),
            }
    return figures


def forward_flops(editor: PredictiveEditor, test: WeightSet) -> int:
    """Floating-point operations of one edit of one INR: matrix products and convolutions, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        editor.edit(test.stack[:1], editor.operations[0])
    return counter.get_total_flops()


def report(figures: dict[str, dict[str, float]]) -> str:
    """A Markdown table, a row per operation and strength."""
    columns = list(next(iter(figures.values())))
    rows = [f"| operation, strength | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name, found in figures.items():
        rows.append(f"| {name} | {' | '.join(f'{100 * found[c]:.3f}e-2' for c in columns)} |")
    return "\n".join(rows)


def model_card(config: Config, facts: dict[str, Any], table: str) -> str:
    """The README.md beside an editor's weights."""
    counts, training = facts["counts"], config.training
    knob = "Trained with strengths from 0 to 1."
    if not (config.graded or len(config.operations) > 1):
        knob = "Trained at strength 1; below it, the change of the picture is scaled."
    told = "\n".join(f"* {name}: {operation(name).description}" for name in config.operations)
    return f"""# weightedit predictive editor: {", ".join(config.operations)}

Predicts the edited picture from an INR's rendering and takes {config.steps} learned steps of the weights towards it:
{facts["parameters"]:,} parameters, {facts["flops"] / 1e6:.0f} MFLOP per INR. The operation itself is never computed; it
was learned from {counts["train"]:,} pairs of an INR and an edited source image. {knob}

{told}

Mean squared error, image in [0, 1], against the operation of the source image, {counts["test"]:,} test INRs, one SIREN
per image from independent random initialisations, output of the same size:

{table}

Trained for {facts["steps"]:,} steps of {training.batch_size} pairs (best step {facts["best_step"]:,}, chosen on
{counts["validation"]:,} validation INRs) in {facts["seconds"] / 60:.0f} minutes on {facts["hardware"]}, seed
{training.seed}. config.json holds the whole configuration.
"""


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    sys.exit(told_in_one_line("train_predictive_editor", lambda: main(config)))
