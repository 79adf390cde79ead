"""Train a classifier of INRs: a metanetwork reads the weights of a SIREN and names the class of its image.

    python tasks/fit_inrs.py --images ylecun/mnist --out runs/mnist-inrs
    python tasks/classify_inrs.py --weights runs/mnist-inrs --metanet scalegmn-b --out runs/mnist-classes

Cross-entropy on the training INRs; the step with the best validation accuracy is kept, and the test accuracy is
measured once. Where the weight set has several INRs of an image (fit_inrs.py --repeats), the table also has the
accuracy per image, by the majority of its INRs and by the mean of their logits. Started again with the same arguments,
a run goes on where it was stopped; several processes: `torchrun --nproc_per_node 2 tasks/classify_inrs.py ...`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional

from weightedit.cli.main import told_in_one_line
from weightedit.data.weight_sets import load_weight_set
from weightedit.errors import WeightEditError
from weightedit.inr.stack import INRStack
from weightedit.metanet.registry import config_options, make_metanet
from weightedit.network.spec import Params
from weightedit.network.symmetry import act, random_element
from weightedit.plots import Band, bands
from weightedit.prediction import WeightSpacePredictor
from weightedit.training.loop import TrainOptions, TrainResult, train
from weightedit.training.state import read_log


@dataclass(frozen=True)
class Config:
    """One experiment.

    Attributes:
        weights: folder of a weight set with labels (tasks/fit_inrs.py).
        out: folder of the run; the finished predictor is written to out/predictor.
        metanet: name of the registry (weightedit.metanet.registry).
        metanet_options: fields of its config, as layers=6 node_width=128; values are JSON.
        embedding: width of the vector that the metanetwork reads from an INR.
        hidden: width of the hidden layer after it.
        dropout: share of that layer that is dropped in training.
        per_image: train on the first so many INRs of every image; 0 for all. Validation and test take all.
        train_limit: use the first so many training INRs; 0 for all.
        validation_limit: INRs to choose the best step on; 0 for all.
        test_limit: INRs of the test figure; 0 for all.
        augment: act on every training INR with a random element of its symmetry group; an invariant metanetwork cannot
            gain by it.
        noise: standard deviation of noise on the training weights, in units of each tensor's root mean square.
        smoothing: of the labels, in [0, 1).
        evaluation_batch: INRs at once where nothing is trained.
        training: the run; its seed is that of the initial weights, too.
        smoke: seconds instead of hours, to see that everything runs.
    """

    weights: str = "runs/mnist-inrs"
    out: str = "runs/mnist-classes"
    metanet: str = "scalegmn-b"
    metanet_options: tuple[str, ...] = ()
    embedding: int = 128
    hidden: int = 128
    dropout: float = 0.0
    per_image: int = 0
    train_limit: int = 0
    validation_limit: int = 0
    test_limit: int = 0
    augment: bool = False
    noise: float = 0.0
    smoothing: float = 0.0
    evaluation_batch: int = 128
    training: TrainOptions = field(
        default_factory=lambda: TrainOptions(
            steps=20_000,
            batch_size=64,
            learning_rate=1e-3,
            weight_decay=1e-2,
            betas=(0.9, 0.98),
            warmup_steps=500,
            schedule="cosine",
            clip_norm=1.0,
            ema_decay=0.999,
            validate_every=500,
            checkpoint_every=250,
        )
    )
    smoke: bool = False


class Examples:
    """INRs and their classes, in memory; what `train` draws its batches from."""

    def __init__(self, stack: INRStack) -> None:
        self.params, self.labels = stack.params, labels_of(stack)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> dict[str, Any]:
        return {"params": {name: tensor[rows] for name, tensor in self.params.items()}, "labels": self.labels[rows]}


def main(config: Config) -> dict[str, float]:
    """Train, measure on the test split, write out/predictor, out/curve.png, out/result.json; returns the accuracies."""
    config = _smoke(config) if config.smoke else config
    splits = load_splits(config)
    predictor = build_predictor(config, splits)
    result = run_training(predictor, splits, config)
    predictor.eval()
    logits = predictor.predict_stack(splits["test"], batch_size=config.evaluation_batch, progress=True)
    figures = accuracies(logits, splits["test"])
    if result.main:
        report(config, predictor, figures, result, splits)
    return figures


def load_splits(config: Config) -> dict[str, INRStack]:
    """The three splits; of training images, only the wanted INRs."""
    limits = {"train": config.train_limit, "validation": config.validation_limit, "test": config.test_limit}
    splits = {name: load_weight_set(config.weights, name, limit or None).stack for name, limit in limits.items()}
    if config.per_image:
        splits["train"] = splits["train"][first_of_each(images_of(splits["train"]), config.per_image)]
    return splits


def labels_of(stack: INRStack) -> Tensor:
    """Classes as int64 [N]. Raises WeightEditError where the weight set has none."""
    if stack.label is None:
        raise WeightEditError("a weight set without labels came; expected one made from images with classes.")
    return stack.label.long()


def images_of(stack: INRStack) -> Tensor:
    """Source image of every INR, [N]; each its own where the weight set does not say."""
    return torch.arange(len(stack)) if stack.index is None else stack.index


def first_of_each(images: Tensor, most: int) -> Tensor:
    """Positions of the first `most` INRs of every image, in order."""
    seen: dict[int, int] = {}
    kept = []
    for place, image in enumerate(images.tolist()):
        seen[image] = seen.get(image, 0) + 1
        if seen[image] <= most:
            kept.append(place)
    return torch.tensor(kept)


def build_predictor(config: Config, splits: dict[str, INRStack]) -> WeightSpacePredictor:
    """An untrained classifier of as many classes as the splits have."""
    stack, seed = splits["train"], config.training.seed
    options = {"embedding": config.embedding, "seed": seed, **config_options(config.metanet_options)}
    return WeightSpacePredictor(
        make_metanet(config.metanet, [stack.spec], **options),
        1 + max(int(labels_of(part).max()) for part in splits.values()),
        hidden=config.hidden,
        dropout=config.dropout,
        convention=stack.convention,
        seed=seed,
    )


def run_training(predictor: WeightSpacePredictor, splits: dict[str, INRStack], config: Config) -> TrainResult:
    """Train `predictor` in place; it ends up holding the weights of its best validation step."""
    stack = splits["train"]

    def loss(model: nn.Module, batch: dict[str, Any], generator: torch.Generator) -> Tensor:
        assert isinstance(model, WeightSpacePredictor)
        params = (
            varied(batch["params"], stack, config, generator) if config.augment or config.noise else batch["params"]
        )
        logits = model.predict(stack.spec, params)
        return functional.cross_entropy(logits, batch["labels"], label_smoothing=config.smoothing)

    def validate(model: nn.Module) -> float:
        assert isinstance(model, WeightSpacePredictor)
        logits = model.predict_stack(splits["validation"], batch_size=config.evaluation_batch)
        return 1 - float((logits.argmax(-1) == labels_of(splits["validation"])).double().mean())

    told = asdict(config)
    about = {key: value for key, value in told.items() if key not in ("out", "training", "test_limit", "smoke")}
    about |= {"metanet_options": list(config.metanet_options)}
    return train(predictor, loss, Examples(stack), validate, Path(config.out) / "run", config.training, about=about)


def varied(params: Params, stack: INRStack, config: Config, generator: torch.Generator) -> Params:
    """Training INRs moved along their symmetry group, and shaken."""
    if config.augment:
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        count = len(next(iter(params.values())))
        element = random_element(stack.spec, torch.Generator().manual_seed(seed), count=count, dtype=torch.float32)
        params = act(element, stack.spec, params)
    if config.noise:
        params = {name: tensor + config.noise * _shake(tensor, generator) for name, tensor in params.items()}
    return params


def _shake(tensor: Tensor, generator: torch.Generator) -> Tensor:
    size = tensor.square().mean(tuple(range(1, tensor.dim())), keepdim=True).sqrt()
    return size * torch.randn(tensor.shape, generator=generator, device=tensor.device)


def accuracies(logits: Tensor, stack: INRStack) -> dict[str, float]:
    """Accuracy per INR, and per image where there are several INRs of one.

    Args:
        logits: [N, classes].
        stack: its labels and source images.
    """
    labels, guesses = labels_of(stack), logits.argmax(-1)
    figures = {"one INR": float((guesses == labels).double().mean())}
    images, place = images_of(stack).unique(return_inverse=True)
    if len(images) == len(stack):
        return figures
    shape = (len(images), logits.shape[-1])
    of_image = torch.zeros(len(images), dtype=torch.long).index_copy(0, place, labels)
    votes = torch.zeros(shape).index_add(0, place, functional.one_hot(guesses, shape[1]).float())
    sums = torch.zeros(shape).index_add(0, place, logits)
    # A tie of votes is decided by the logits.
    votes = votes + 0.5 * sums.softmax(-1)
    for name, scores in (("all INRs of an image, majority", votes), ("all INRs of an image, mean logits", sums)):
        figures[name] = float((scores.argmax(-1) == of_image).double().mean())
    return figures


def report(
    config: Config,
    predictor: WeightSpacePredictor,
    figures: dict[str, float],
    result: TrainResult,
    splits: dict[str, INRStack],
) -> None:
    """Print the table; write result.json, the curve and the predictor with its card."""
    out = Path(config.out)
    facts: dict[str, Any] = {
        "figures": figures,
        "config": asdict(config),
        "counts": {name: len(stack) for name, stack in splits.items()},
        "steps": result.steps,
        "best_step": result.best_step,
        "best_validation": result.best_validation,
        "seconds": result.seconds,
        "parameters": sum(p.numel() for p in predictor.parameters()),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "finished": result.finished,
    }
    (out / "result.json").write_text(json.dumps(facts, indent=2, default=str))
    draw_curve(out)
    lines = [f"| {name} | {100 * value:.2f} % |" for name, value in figures.items()]
    print(f"\n{config.metanet}, {facts['counts']['test']} test INRs, accuracy\n" + "\n".join(lines))
    training = json.loads(json.dumps(facts, default=str))
    predictor.save_pretrained(out / "predictor", model_card(config, facts, lines), training=training)
    print(f"predictor written to {out / 'predictor'}")


def draw_curve(out: Path) -> None:
    """Training cross-entropy, in a hundred means, and validation error of out/run's log, as out/curve.png."""
    log = read_log(out / "run")
    losses = [record for record in log if record["loss"] is not None]
    size = max(1, len(losses) // 100)
    parts = [losses[i : i + size] for i in range(0, len(losses), size)]
    means = [statistics.fmean(float(record["loss"]) for record in part) for part in parts]
    drawn = [Band("training cross-entropy", [float(part[-1]["step"]) for part in parts], [means])]
    checked = [record for record in log if record.get("validation")]
    if checked:
        errors = [[record["validation"] for record in checked]]
        drawn.append(Band("validation error", [record["step"] for record in checked], errors, own=True))
    bands({"step": drawn}, out / "curve.png", ylabel="error")


def model_card(config: Config, facts: dict[str, Any], lines: list[str]) -> str:
    """The README.md beside a predictor's weights."""
    counts, training = facts["counts"], config.training
    minutes, batch = facts["seconds"] / 60, training.batch_size * training.accumulate * facts["processes"]
    changes = "acted on by random elements of their symmetry group" if config.augment else "as they were fitted"
    return f"""# weightedit predictor: classes of INRs

Reads the weights of a SIREN and names the class of its image; the image is never rendered. Metanetwork
`{config.metanet}`, {facts["parameters"]:,} parameters.

| test accuracy | value |
|---|---|
{chr(10).join(lines)}

{counts["train"]:,} training INRs, {changes}, {counts["validation"]:,} validation INRs (choice of the best step) and
{counts["test"]:,} test INRs of {config.weights}.

Trained for {facts["steps"]:,} steps of {batch} INRs (best step {facts["best_step"]:,}, validation accuracy
{100 * (1 - facts["best_validation"]):.2f} %) in {minutes:.0f} minutes on {facts["hardware"]},
{facts["processes"]} process(es), seed {training.seed}. config.json holds the whole configuration.
"""


def _smoke(config: Config) -> Config:
    short = replace(config.training, steps=4, batch_size=4, warmup_steps=1, validate_every=2, checkpoint_every=2)
    limits = {"train_limit": 16, "validation_limit": 8, "test_limit": 8, "evaluation_batch": 4}
    return replace(config, training=short, embedding=8, hidden=8, **limits)  # type: ignore[arg-type]


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    sys.exit(told_in_one_line("classify_inrs", lambda: main(config)))
