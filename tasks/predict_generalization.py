"""Predict a network's test accuracy from its weights alone, with any registered metanetwork, and rank networks by it.

    python tasks/make_cnn_zoo.py --out runs/zoo-relu
    python tasks/predict_generalization.py --zoo runs/zoo-relu --metanet statistics scalegmn --out runs/tau-relu

The score is Kendall's tau-b (scipy.stats.kendalltau) between predicted and measured accuracy on the last checkpoints of
test networks, also when these networks are permuted, rescaled or sign-flipped, which does not change what they compute:
what is invariant loses nothing. `--small-cnn-zoo cifar10 --activation tanh` reads the public zoo's files instead, and
splits its networks in the published shares, but by a draw of our own: published figures are of other test networks.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional

from weightedit.cli.main import told_in_one_line
from weightedit.data.cnn_zoo import CNNZoo, load_zoo, split_by_network
from weightedit.data.small_cnn_zoo import load_small_cnn_zoo
from weightedit.errors import WeightEditError
from weightedit.metanet.registry import config_options, make_metanet
from weightedit.network.reparametrization import kinds_of, reparametrised
from weightedit.network.spec import NetworkSpec, Params
from weightedit.network.symmetry import act, random_element
from weightedit.prediction import WeightSpacePredictor
from weightedit.training.loop import TrainOptions, TrainResult, train

LOSSES = {
    "mse": lambda logits, wanted: (logits.sigmoid() - wanted).square().mean(),
    "bce": functional.binary_cross_entropy_with_logits,
}
UNCHANGED = "as trained"


@dataclass(frozen=True)
class Config:
    """One comparison.

    Attributes:
        zoo: folder of a zoo (tasks/make_cnn_zoo.py).
        small_cnn_zoo: folder of the public Small CNN Zoo to read instead; "" for `zoo`.
        activation: which of the public zoo's two halves.
        out: folder of the runs; each predictor is written to out/<metanet>-seed<seed>/predictor.
        metanet: names of the registry, one row of the table each.
        options: fields of their configs, as name.field=value: scalegmn.layers=3. Values are JSON.
        embedding: width of the vector that a metanetwork reads from a network.
        hidden: width of the predictor's hidden layer.
        checkpoints: train on the "last" checkpoint of every network, or on "all"; tests are on the last.
        loss: "mse" of the sigmoid, or "bce".
        augment: act on every training network with a random element of its symmetry group.
        seeds: one run each; the table has their mean and, from two on, standard deviation.
        training: of every run; its seed is overwritten.
        smoke: seconds, to see that everything runs.
    """

    zoo: str = "runs/zoo-relu"
    small_cnn_zoo: str = ""
    activation: str = "relu"
    out: str = "runs/tau-relu"
    metanet: tuple[str, ...] = ("statistics", "scalegmn")
    options: tuple[str, ...] = ()
    embedding: int = 64
    hidden: int = 128
    checkpoints: str = "all"
    loss: str = "mse"
    augment: bool = False
    seeds: tuple[int, ...] = (0,)
    training: TrainOptions = field(
        default_factory=lambda: TrainOptions(
            steps=1500,
            batch_size=32,
            learning_rate=1e-3,
            weight_decay=1e-2,
            warmup_steps=50,
            schedule="cosine",
            clip_norm=1.0,
            ema_decay=0.99,
            validate_every=100,
            checkpoint_every=250,
        )
    )
    smoke: bool = False


class Examples:
    """Networks and their accuracies, in memory; what `train` draws its batches from."""

    def __init__(self, zoo: CNNZoo) -> None:
        self.params, self.wanted = zoo.params, zoo.numbers("test_accuracy").float()

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, rows: Tensor) -> dict[str, Any]:
        return {"params": {name: tensor[rows] for name, tensor in self.params.items()}, "wanted": self.wanted[rows]}


def main(config: Config) -> dict[str, dict[str, float]]:
    """Train and test every metanetwork with every seed; write out/result.json; returns the mean taus."""
    if config.smoke:
        short = replace(config.training, steps=4, batch_size=4, warmup_steps=1, validate_every=2, checkpoint_every=2)
        config = replace(config, training=short, embedding=8, hidden=8)
    if config.loss not in LOSSES or config.checkpoints not in ("last", "all") or not config.seeds:
        raise WeightEditError(
            f"loss {config.loss!r}, checkpoints {config.checkpoints!r} and seeds {config.seeds} came; expected one of "
            f"{', '.join(LOSSES)}, last or all, and a seed: correct them."
        )
    splits = load_splits(config)
    tests = reparametrised_tests(splits["test"])
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in config.metanet}
    main_process = True
    for name in config.metanet:
        for seed in config.seeds:
            predictor = build_predictor(config, name, splits["train"].spec, seed)
            folder = Path(config.out) / f"{name}-seed{seed}"
            result = run_training(predictor, splits, config, name, seed, folder)
            runs[name].append(tested(predictor, result, tests))
            main_process = result.main
            if main_process:
                save(predictor, runs[name][-1], config, folder)
    if main_process:
        report(config, runs, splits, list(tests))
    return {name: {kind: _mean(every, kind)[0] for kind in tests} for name, every in runs.items()}


def load_splits(config: Config) -> dict[str, CNNZoo]:
    """Training checkpoints, and the last ones of validation and test networks."""
    if config.small_cnn_zoo:
        steps = (86,) if config.checkpoints == "last" else None
        zoo = load_small_cnn_zoo(config.small_cnn_zoo, config.activation, steps=steps)
        splits = split_by_network(zoo, (0.1, 0.5))  # 40, 10 and 50 %: the published split's sizes
    else:
        splits = {split: load_zoo(config.zoo, split) for split in ("train", "validation", "test")}
    every = splits["train"] if config.checkpoints == "all" else splits["train"].last()
    return {"train": every, "validation": splits["validation"].last(), "test": splits["test"].last()}


def reparametrised_tests(test: CNNZoo) -> dict[str, CNNZoo]:
    """The test networks as they are, and under every kind of other parameters that their activations allow."""
    found = {UNCHANGED: test}
    for number, kind in enumerate(kinds_of(test.spec)):
        generator = torch.Generator().manual_seed(number)
        found[kind] = test.with_params(reparametrised(test.spec, test.params, kind, generator))
    return found


def build_predictor(config: Config, name: str, spec: NetworkSpec, seed: int) -> WeightSpacePredictor:
    """An untrained predictor of one number."""
    options: dict[str, Any] = {"embedding": config.embedding, "seed": seed}
    for option in config.options:
        owner, _, word = option.partition(".")
        if owner not in config.metanet or word.find("=") < 1:
            raise WeightEditError(
                f"the option {option!r} came; expected name.field=value of one of {', '.join(config.metanet)}."
            )
        if owner == name:
            options |= config_options((word,))
    return WeightSpacePredictor(make_metanet(name, [spec], **options), 1, hidden=config.hidden, seed=seed)


def run_training(
    predictor: WeightSpacePredictor, splits: dict[str, CNNZoo], config: Config, name: str, seed: int, folder: Path
) -> TrainResult:
    """Train `predictor` in place; it ends up with the weights of its best tau on the validation networks."""
    spec, measure = splits["train"].spec, LOSSES[config.loss]

    def loss(model: nn.Module, batch: dict[str, Any], generator: torch.Generator) -> Tensor:
        assert isinstance(model, WeightSpacePredictor)
        params = _moved(spec, batch["params"], generator) if config.augment else batch["params"]
        return measure(model.predict(spec, params)[..., 0], batch["wanted"])

    def validate(model: nn.Module) -> float:
        assert isinstance(model, WeightSpacePredictor)
        return 1 - kendall_tau(predicted(model, splits["validation"]), splits["validation"].numbers("test_accuracy"))

    about = {"zoo": config.small_cnn_zoo or config.zoo, "metanet": name, "options": list(config.options)}
    about |= {key: getattr(config, key) for key in ("embedding", "hidden", "checkpoints", "loss", "augment")}
    about |= {"training_rows": len(splits["train"])}
    options = replace(config.training, seed=seed)
    return train(predictor, loss, Examples(splits["train"]), validate, folder / "run", options, about=about)


def _moved(spec: NetworkSpec, params: Params, generator: torch.Generator) -> Params:
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    count = len(next(iter(params.values())))
    element = random_element(spec, torch.Generator().manual_seed(seed), count=count, dtype=torch.float32)
    return act(element, spec, params)


@torch.no_grad()
def predicted(predictor: WeightSpacePredictor, zoo: CNNZoo, batch_size: int = 64) -> Tensor:
    """Predicted accuracy of every checkpoint, [N] on the CPU."""
    device, found = next(predictor.parameters()).device, []
    for start in range(0, len(zoo), batch_size):
        params = {name: tensor[start : start + batch_size].to(device) for name, tensor in zoo.params.items()}
        found.append(predictor.predict(zoo.spec, params)[..., 0].sigmoid().cpu())
    return torch.cat(found)


def kendall_tau(one: Tensor, other: Tensor) -> float:
    """Kendall's tau-b, from scipy; 0 where one of them is constant, since it then ranks nothing.

    NaN where one of them holds NaN or infinity: no ranking came out. `train` never keeps such a step.
    """
    from scipy.stats import kendalltau

    if not bool(one.isfinite().all() and other.isfinite().all()):
        return math.nan
    found: Any = kendalltau(one.double().numpy(), other.double().numpy(), variant="b")
    return 0.0 if math.isnan(found.statistic) else float(found.statistic)


def tested(predictor: WeightSpacePredictor, result: TrainResult, tests: dict[str, CNNZoo]) -> dict[str, Any]:
    """Tau on every form of the test networks, the squared error, and what the run cost."""
    predictor.eval()
    wanted = tests[UNCHANGED].numbers("test_accuracy")
    guesses = {kind: predicted(predictor, zoo) for kind, zoo in tests.items()}
    return {
        "tau": {kind: kendall_tau(guess, wanted) for kind, guess in guesses.items()},
        "mse": float((guesses[UNCHANGED] - wanted).square().mean()),
        "parameters": sum(p.numel() for p in predictor.parameters()),
        "steps": result.steps,
        "best_step": result.best_step,
        "seconds": result.seconds,
        "finished": result.finished,
    }


def _mean(runs: Sequence[dict[str, Any]], kind: str) -> tuple[float, float]:
    taus = [run["tau"][kind] for run in runs]
    if any(math.isnan(tau) for tau in taus):
        return math.nan, math.nan  # which statistics.stdev refuses
    return statistics.fmean(taus), statistics.stdev(taus) if len(taus) > 1 else 0.0


def table(runs: dict[str, list[dict[str, Any]]], kinds: list[str]) -> str:
    """The comparison as Markdown, one row per metanetwork."""
    lines = [f"| metanetwork | parameters | ms/step | {' | '.join(kinds)} |", "|---" * (3 + len(kinds)) + "|"]
    for name, every in runs.items():
        taus = [_mean(every, kind) for kind in kinds]
        cells = [f"{mean:.3f}" + (f" ± {spread:.3f}" if len(every) > 1 else "") for mean, spread in taus]
        pace = 1000 * statistics.fmean(run["seconds"] / run["steps"] for run in every)
        lines.append(f"| {name} | {every[0]['parameters']:,} | {pace:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def report(config: Config, runs: dict[str, list[dict[str, Any]]], splits: dict[str, CNNZoo], kinds: list[str]) -> None:
    """Print the table; write result.json."""
    counts = {split: len(zoo) for split, zoo in splits.items()}
    hardware = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    hardware += f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    facts = {"runs": runs, "config": asdict(config), "counts": counts, "hardware": hardware}
    (Path(config.out) / "result.json").write_text(json.dumps(facts, indent=2, default=str))
    print(f"\nKendall's tau-b on {counts['test']} test networks, {config.training.steps:,} steps of ", end="")
    print(f"{config.training.batch_size}, seeds {list(config.seeds)}, {hardware}\n{table(runs, kinds)}")


def save(predictor: WeightSpacePredictor, run: dict[str, Any], config: Config, folder: Path) -> None:
    """Write the predictor with its card."""
    taus = "\n".join(f"| {kind} | {tau:.3f} |" for kind, tau in run["tau"].items())
    card = f"""# weightedit predictor: test accuracy of small CNNs

Reads the weights of a CNN and predicts its test accuracy, the sigmoid of its one output. {run["parameters"]:,}
parameters.

| test networks | Kendall's tau-b |
|---|---|
{taus}

Trained for {run["steps"]:,} steps of {config.training.batch_size} (best step {run["best_step"]:,}), loss
{config.loss}, on {config.small_cnn_zoo or config.zoo}. config.json holds the whole configuration.
"""
    # A checkpoint's JSON has no NaN.
    facts = json.loads(json.dumps({**run, "config": asdict(config)}, default=str), parse_constant=lambda _: None)
    predictor.save_pretrained(folder / "predictor", card, training=facts)


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    sys.exit(told_in_one_line("predict_generalization", lambda: main(config)))
