"""Trainings as people run them, by name: a module, batches, a loss. What optimizers are compared on.

Their networks, data and batch sizes are ordinary ones: images as they come through data/images.py, standardized; bytes
of the source files of Python's own library, which every machine has; scikit-learn's digits and photograph. Every
training has held-out data to tune on and test data to report, but for the fit of a picture, which has its pixels.
"""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightedit.data.images import load_images
from weightedit.errors import WeightEditError
from weightedit.metatrain import networks
from weightedit.metatrain.image_optimizees import LabeledImages
from weightedit.metatrain.problems import HUB, TRAINED, images_of

Batch = tuple[Tensor, Tensor]


class Source(Protocol):
    """Examples by number, of any shape: rows [..] give tensors [.., *of one]."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor) -> Batch: ...

    def to(self, device: torch.device) -> Source: ...


@dataclass(frozen=True)
class Pairs:
    """Inputs [n, ...] and what they should give [n, ...]."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: Tensor) -> Batch:
        return self.inputs[rows], self.targets[rows]

    def to(self, device: torch.device) -> Pairs:
        """The same there."""
        return Pairs(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Windows:
    """Stretches of `context` tokens of a text [n], and the tokens one further on."""

    text: Tensor
    context: int

    def __len__(self) -> int:
        return len(self.text) - self.context

    def __getitem__(self, rows: Tensor) -> Batch:
        found = self.text[rows.unsqueeze(-1) + torch.arange(self.context + 1, device=rows.device)]
        return found[..., :-1], found[..., 1:]

    def to(self, device: torch.device) -> Windows:
        """The same there."""
        return Windows(self.text.to(device), self.context)


@dataclass(frozen=True)
class Workload:
    """A training.

    Attributes:
        network: makes the module, with random weights.
        loss: of what it gives and what it should give, a mean.
        train, validation, test: examples.
        batch_size: of a training step; 0 for all examples at once.
        steps: after which a tuned optimizer has little left to gain.
        evaluated: examples, evenly spread, that a validation or test loss is taken on.
        guess: the loss of the best guess that does not look at what it is given.
        decibels: whether people count its loss in decibels, as that of a fit.
    """

    network: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    train: Source
    validation: Source
    test: Source
    batch_size: int = 128
    steps: int = 1000
    evaluated: int = 2048
    guess: float = math.log(10)
    decibels: bool = False

    def batch(self, generator: torch.Generator) -> Batch:
        """A random training batch."""
        if not self.batch_size:
            return self.train[torch.arange(len(self.train))]
        return self.train[torch.randint(len(self.train), (self.batch_size,), generator=generator)]

    @torch.no_grad()
    def evaluate(self, net: nn.Module, source: Source) -> float:
        """The mean loss of a module in evaluation mode; it is left in training mode."""
        rows = torch.linspace(0, len(source) - 1, min(self.evaluated, len(source))).long()
        net.eval()
        total = sum(len(part) * float(self.loss(net(x), y)) for part in rows.split(256) for x, y in [source[part]])
        net.train()
        return total / len(rows)


def _classes(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits [..., classes]."""
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


def _deviation(pairs: Pairs) -> float:
    """The mean squared error of the mean target."""
    return float(pairs.targets.var(0, correction=0).mean())


def _labeled(data: LabeledImages, test: LabeledImages) -> tuple[Pairs, Pairs, Pairs]:
    """Training, validation and test images, standardized by the mean and deviation of the first over all pixels."""
    train, held = data.split(TRAINED)
    mean, deviation = train.images.mean((0, 2, 3), keepdim=True), train.images.std((0, 2, 3), keepdim=True)
    first, second, third = (Pairs((part.images - mean) / deviation, part.labels) for part in (train, held, test))
    return first, second, third


@lru_cache(4)
def _images(folder: str, name: str, size: int | None = None) -> tuple[Pairs, Pairs, Pairs]:
    source = str(Path(folder) / name) if folder else HUB[name]
    found = (load_images(source, split) for split in ("train", "test"))
    data, test = (LabeledImages.of(part.images, part.labels, size=size) for part in found)
    return _labeled(data, test)


def _digits(folder: str) -> Workload:
    train, held, test = _labeled(images_of("digits-mlp", folder), images_of("digits-mlp", folder, split="test"))
    return Workload(lambda: networks.mlp(64, 32, 10), _classes, train, held, test, 64, 300)


def _classify(
    make: Callable[[], nn.Module], name: str, batch_size: int, steps: int, folder: str, size: int | None = None
) -> Workload:
    train, held, test = _images(folder, name, size)
    return Workload(make, _classes, train, held, test, batch_size, steps)


def _autoencode(folder: str, size: int = 28, hidden: tuple[int, ...] = (128, 32, 128)) -> Workload:
    train, held, test = (Pairs(part.inputs, part.inputs.flatten(1)) for part in _images(folder, "mnist", size))
    make = partial(networks.mlp, size * size, *hidden, size * size, activation=nn.Tanh)
    return Workload(make, functional.mse_loss, train, held, test, 128, 1000, guess=_deviation(train), decibels=True)


def _fit(folder: str, size: int = 64, hidden: int = 64) -> Workload:
    """A photograph of scikit-learn's at size x size by coordinates from -1 to 1."""
    from sklearn.datasets import load_sample_image

    picture = torch.tensor(load_sample_image("china.jpg")).permute(2, 0, 1)[None].float() / 255
    small = functional.interpolate(picture[..., :427, 100:527], (size, size), mode="area")[0]
    grid = torch.cartesian_prod(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size))
    pixels = Pairs(grid, small.flatten(1).T)
    make = partial(networks.siren, 2, hidden, hidden, 3)
    guess = _deviation(pixels)
    return Workload(make, functional.mse_loss, pixels, pixels, pixels, 0, 600, guess=guess, decibels=True)


def library_bytes() -> Tensor:
    """The source files of Python's library end to end, in the order of their names, as bytes [n], int64."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = b"\n".join(file.read_bytes() for file in files)
    if len(text) < 2**20:
        raise WeightEditError(
            f"found {len(text):,} bytes in {len(files)} source files of Python's library; expected a million or more: "
            "choose another training, or a Python that came with its sources."
        )
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


def _language(width: int, depth: int, heads: int, context: int, batch_size: int, steps: int, folder: str) -> Workload:
    text = library_bytes()
    cuts = [int(0.8 * len(text)), int(0.1 * len(text))]
    train, held, test = (Windows(part, context) for part in text.split([*cuts, len(text) - sum(cuts)]))
    make = partial(networks.GPT, 256, width, depth, heads, context)
    guess = math.log(256)
    return Workload(make, _classes, train, held, test, batch_size, steps, evaluated=128, guess=guess)


def _noisy(folder: str, rows: int = 1024, wrong: float = 0.2) -> Workload:
    """Few rows, of which a part has a random label; what is held out has the right ones."""
    train, held, test = _images(folder, "fashion_mnist", 8)
    generator = torch.Generator().manual_seed(0)
    labels = torch.where(
        torch.rand(rows, generator=generator) < wrong,
        torch.randint(10, (rows,), generator=generator),
        train.targets[:rows],
    )
    few = Pairs(train.inputs[:rows], labels)
    return Workload(lambda: networks.mlp(64, 64, 10), _classes, few, held, test, 32, 1000)


def _tuned(folder: str, frozen: int = 0, rows: int = 1024, starts: int = 4) -> Workload:
    """Few digits, turned by 30 degrees, for networks that know upright ones; first layers may be frozen."""
    parts, known = _images(folder, "mnist", 8), []
    for seed in range(starts):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net, generator = networks.mlp(64, 64, 32, 10), torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
        for _ in range(400):
            x, y = parts[0][torch.randint(len(parts[0]), (128,), generator=generator)]
            optimizer.zero_grad()
            _classes(net(x), y).backward()
            optimizer.step()
        known.append(net.state_dict())

    def make() -> nn.Module:
        net = networks.mlp(64, 64, 32, 10)
        for i in range(1, 1 + 2 * frozen, 2):
            layer = net[i]
            assert isinstance(layer, nn.Linear)
            net[i] = networks.Frozen(layer.in_features, layer.out_features)
        net.load_state_dict(known[int(torch.randint(len(known), ()))])
        return net

    few = Pairs(parts[0].inputs[-rows:], parts[0].targets[-rows:])
    train, held, test = (Pairs(turned(part.inputs, 30), part.targets) for part in (few, *parts[1:]))
    return Workload(make, _classes, train, held, test, 32, 1000)


def turned(images: Tensor, degrees: float) -> Tensor:
    """Images [n, C, H, W] turned about their middle, the same size; what comes in from outside is their edge."""
    angle = math.radians(degrees)
    turn = [[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]]
    grid = functional.affine_grid(torch.tensor([turn]), list(images[:1].shape), align_corners=False)
    return functional.grid_sample(
        images, grid.expand(len(images), -1, -1, -1), padding_mode="border", align_corners=False
    )


WORKLOADS: dict[str, Callable[[str], Workload]] = {
    "digits-mlp": _digits,
    "fashion-8x8": lambda folder: _classify(
        lambda: networks.mlp(64, 32, 10), "fashion_mnist", 128, 2000, folder, size=8
    ),
    "fashion-mlp": partial(_classify, lambda: networks.mlp(784, 128, 128, 10), "fashion_mnist", 128, 1000),
    "cifar-cnn": partial(_classify, lambda: networks.conv_net(3, 16, 32, 32), "cifar10", 64, 600),
    "cifar-vit": partial(_classify, networks.ViT, "cifar10", 64, 600),
    "fashion-lstm": partial(_classify, networks.RowLSTM, "fashion_mnist", 64, 600),
    "mnist-autoencoder": _autoencode,
    "photo-siren": _fit,
    "bytes-gpt": partial(_language, 64, 2, 4, 64, 16, 600),
    "cifar-resnet18": partial(_classify, networks.resnet18, "cifar10", 128, 2000),
    "bytes-gpt-11m": partial(_language, 384, 6, 6, 256, 32, 2000),
}
"""Name -> a folder with the data sets mnist, fashion_mnist, cifar10 ("" takes them from the hub) -> the training. The
last two want a GPU."""

MINIATURES: dict[str, Callable[[str], Workload]] = {
    "mini-mlp": lambda folder: _classify(lambda: networks.mlp(64, 32, 10), "fashion_mnist", 128, 2000, folder, 8),
    "mini-mlp-cifar": lambda folder: _classify(lambda: networks.mlp(192, 32, 10), "cifar10", 32, 2000, folder, 8),
    "mini-mlp-deep": lambda folder: _classify(
        lambda: networks.mlp(64, 32, 32, 32, 10), "fashion_mnist", 16, 2000, folder, 8
    ),
    "mini-mlp-few": lambda folder: _classify(lambda: networks.mlp(64, 64, 10), "mnist", 4, 2000, folder, 8),
    "mini-cnn": lambda folder: _classify(lambda: networks.conv_net(3, 8, 16), "cifar10", 32, 1000, folder, 8),
    "mini-vit": lambda folder: _classify(lambda: networks.ViT(3, 8, 2, 12, 2, 2), "cifar10", 32, 1000, folder, 8),
    "mini-gpt": partial(_language, 8, 2, 2, 16, 16, 1000),
    "mini-autoencoder": lambda folder: _autoencode(folder, 8, (32, 8, 32)),
    "mini-siren": lambda folder: _fit(folder, 16, 24),
    "mini-mlp-scales": lambda folder: _classify(
        lambda: networks.rescaled(networks.mlp(64, 32, 32, 10), 0.1, 4.0), "fashion_mnist", 64, 2000, folder, 8
    ),
    "mini-noisy": _noisy,
    "mini-tuned": _tuned,
    "mini-frozen": partial(_tuned, frozen=1),
}
"""The same kinds with networks of some thousand weights, of which many train at once: what rules are trained on."""


def workload(name: str, folder: str = "") -> Workload:
    """A training by its name. Raises WeightEditError on an unknown one, and what load_images raises."""
    known = {**WORKLOADS, **MINIATURES}
    if name not in known:
        raise WeightEditError(f"got training {name!r}; expected one of {', '.join(known)}: choose.")
    return known[name](folder)
