"""Make a CNN zoo: many small CNNs, each trained by a recipe of its own, with several checkpoints and their accuracies.

    python tasks/make_cnn_zoo.py --images zalando-datasets/fashion_mnist --activation relu --out runs/zoo-relu

By default the networks are those of the Small CNN Zoo (Unterthiner et al. 2020): three convolutions of 16 filters, 3x3,
stride 2, global average pooling, a linear layer; 4,970 parameters. Learning rate, weight decay, dropout,
initialization, optimizer and fraction of the training images are random. They are trained in stacks, each a function of
(seed, stack) alone: a run that was stopped goes on where it was, and one that is finished says so. All checkpoints of a
network are in one split.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import tyro
from tqdm import tqdm

from weightedit.cli.main import told_in_one_line
from weightedit.data.cnn_fitting import CenteredImages, CNNFitOptions, draw_recipes, fit_cnns
from weightedit.data.cnn_zoo import (
    CARD,
    SPLITS,
    CNNZoo,
    concatenate_zoos,
    load_zoo,
    read_zoo_card,
    read_zoo_table,
    save_zoo,
    split_by_network,
    write_zoo_table,
)
from weightedit.data.images import load_images
from weightedit.errors import WeightEditError
from weightedit.files.saving import claimed
from weightedit.network.spec import Activation, NetworkSpec
from weightedit.training.plan import derive_seed


@dataclass(frozen=True)
class Config:
    """What to train.

    Attributes:
        images: a hub name, or a local folder with train and test splits; read as gray.
        out: folder of the zoo; its parent is made if needed.
        activation: "relu" or "tanh".
        networks: how many CNNs.
        stack: CNNs trained at once.
        filters: of every convolution; as many convolutions as there are numbers.
        kernel: width and height of all of them.
        train_limit: use the first so many training images; 0 for all.
        test_limit: measure test accuracy on the first so many test images; 0 for all.
        fit: checkpoints, batch size.
        held: fractions of the networks for validation and test.
        seed: of everything.
        device: "cpu", or "cuda" where there is one.
        smoke: seconds, to see that everything runs.
    """

    images: str = "zalando-datasets/fashion_mnist"
    out: str = "runs/zoo-relu"
    activation: str = "relu"
    networks: int = 1000
    stack: int = 32
    filters: tuple[int, ...] = (16, 16, 16)
    kernel: int = 3
    train_limit: int = 10_000
    test_limit: int = 4000
    fit: CNNFitOptions = field(default_factory=CNNFitOptions)
    held: tuple[float, float] = (0.15, 0.25)
    seed: int = 0
    device: str = "cpu"
    smoke: bool = False


def main(config: Config) -> Path:
    """Train, split, save, and print a summary; returns the folder of the zoo."""
    if config.smoke:
        config = replace(config, networks=24, stack=12, train_limit=64, test_limit=32)
        config = replace(config, fit=CNNFitOptions((2, 4), batch_size=8, test_on_train=16))
    if config.activation not in ("relu", "tanh") or min(config.networks, config.stack) < 1:
        raise WeightEditError(
            f"got activation {config.activation!r}, {config.networks} networks in stacks of {config.stack}; expected "
            "relu or tanh and at least one network: correct them."
        )
    out, started = Path(config.out), time.perf_counter()
    if is_finished(config, out):
        print(f"{out}: was finished before, nothing is trained")
    else:
        make_zoo(config, out)
    zoo = concatenate_zoos([load_zoo(out, split) for split in SPLITS])
    accuracy, left_out = zoo.last().numbers("test_accuracy"), read_zoo_card(out)["facts"]["left_out"]
    quantiles = accuracy.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
    print(f"{out}: {len(zoo)} checkpoints of {len(accuracy)} networks, {left_out} were not finite")
    print("test accuracy of the last ones, 10th, 50th, 90th percentile: " + ", ".join(f"{q:.3f}" for q in quantiles))
    print(f"{time.perf_counter() - started:.0f} s")
    return out


def is_finished(config: Config, out: Path) -> bool:
    """Whether the zoo is there (a folder without a card is one that was being saved); refuses another's place."""
    if out.is_file():
        raise WeightEditError(f"{out} is a file; expected a folder: choose another --out.")
    if not (out / CARD).exists():
        return False
    wanted, held = json.loads(json.dumps(asdict(config))), read_zoo_card(out)["facts"].get("config")
    held = {"kernel": Config.kernel, **held} if isinstance(held, dict) else {}  # which came later
    if any(wanted[key] != held.get(key) for key in wanted if key not in ("out", "device")):
        raise WeightEditError(f"{out} holds a zoo of other options; expected none, or this one: choose another --out.")
    return True


def make_zoo(config: Config, out: Path) -> None:
    """Train, split, save."""
    parts = _parts(config, out)
    parts.parent.mkdir(parents=True, exist_ok=True)
    with claimed(parts):
        zoo = join_stacks(config, parts)
        facts = {"config": asdict(config), "left_out": config.networks * len(config.fit.checkpoints) - len(zoo)}
        save_zoo(out, split_by_network(zoo, config.held, config.seed), facts)
        shutil.rmtree(parts)


def _parts(config: Config, out: Path) -> Path:
    plain = {name: value for name, value in asdict(config).items() if name not in ("out", "networks", "held", "device")}
    return out.with_name(f"{out.name}.parts-{derive_seed(*(f'{k}={v}' for k, v in plain.items())):016x}")


def join_stacks(config: Config, parts: Path) -> CNNZoo:
    """Train every stack that is not in the folder `parts` yet; all of them as one zoo."""
    parts.mkdir(parents=True, exist_ok=True)
    train, test = (
        read_images(config.images, split, limit)
        for split, limit in (("train", config.train_limit), ("test", config.test_limit))
    )
    activation = Activation(config.activation)
    widths, kernel = (1, *config.filters, int(train.labels.max()) + 1), (config.kernel, config.kernel)
    spec = NetworkSpec.cnn(widths, activation, kernel=kernel)
    sizes = [config.stack] * (config.networks // config.stack)
    sizes += [config.networks % config.stack] if config.networks % config.stack else []
    found = []
    with tqdm(total=len(sizes) * config.fit.checkpoints[-1], desc=f"{config.activation} CNNs", unit="step") as done:
        for number, size in enumerate(sizes):
            path = parts / f"{number:05d}-{size}.parquet"
            if not path.exists():
                write_zoo_table(train_stack(config, spec, number, size, train, test, lambda _: done.update()), path)
            zoo = read_zoo_table(path, spec)
            found.append(CNNZoo(spec, zoo.params, zoo.network + number * config.stack, zoo.facts))
    return concatenate_zoos(found)


def read_images(source: str, split: str, limit: int) -> CenteredImages:
    """Gray images in [-1, 1] as in the Small CNN Zoo (of colors: Pillow's luma here, the channels' mean there)."""
    images = load_images(source, split, limit=limit or None, channels=1)
    return CenteredImages(2 * images.floats() - 1, images.labels)


def train_stack(
    config: Config,
    spec: NetworkSpec,
    number: int,
    size: int,
    train: CenteredImages,
    test: CenteredImages,
    told: Callable[[int], object],
) -> CNNZoo:
    """One stack, from its own generator."""
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "zoo", number))
    recipes = draw_recipes(size, generator)
    return fit_cnns(spec, recipes, train, test, config.fit, generator, device=config.device, told=told)


if __name__ == "__main__":
    sys.exit(told_in_one_line("make_cnn_zoo", lambda: main(tyro.cli(Config, description=__doc__))))
