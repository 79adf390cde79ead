"""Training many small CNNs at once, each by its own recipe: what a CNN zoo is made of.

After Unterthiner et al. 2020, "Predicting Neural Network Accuracy from Weights", scaled down: learning rate, weight
decay, dropout, initialization, optimizer and fraction of the training data are drawn at random for every network; there
are fewer steps, so that SGD's learning rates are drawn ten times as large as theirs. All networks of a stack take one
step together: one grouped convolution per layer (convolution.py), the update rules of all optimizers in one formula.
Everything is a function of the generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from weightedit.data.cnn_zoo import CNNZoo, Facts, concatenate_zoos
from weightedit.errors import WeightEditError
from weightedit.network.convolution import convolve, pooled
from weightedit.network.spec import NetworkSpec, Params

OPTIMIZERS = ("sgd", "adam", "rmsprop")
INITIALIZATIONS = ("glorot_normal", "he_normal", "orthogonal", "normal", "truncated_normal")
FRACTIONS = (0.1, 0.25, 0.5, 1.0)
_BETAS = {"sgd": (0.0, 0.0), "adam": (0.9, 0.999), "rmsprop": (0.0, 0.9)}
_EVALUATIONS = 1600  # networks times images at once; more of them no longer fit a CPU's cache


@dataclass(frozen=True)
class Recipes:
    """How each of N networks is trained.

    Attributes:
        learning_rate: float64 [N]; log-uniform in [5e-4, 5e-2], times 10 for SGD.
        l2: float64 [N]; weight of the sum of squared weights (not biases) in the loss, log-uniform in [1e-8, 1e-2].
        dropout: float64 [N]; rate after every convolution, uniform in [0, 0.7].
        init_std: float64 [N]; of the normal initializations, log-uniform in [1e-2, 0.5].
        train_fraction: float64 [N]; of the training images, one of FRACTIONS.
        w_init: N of INITIALIZATIONS; biases start at zero.
        optimizer: N of OPTIMIZERS.
    """

    learning_rate: Tensor
    l2: Tensor
    dropout: Tensor
    init_std: Tensor
    train_fraction: Tensor
    w_init: tuple[str, ...]
    optimizer: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.w_init)

    def facts(self) -> Facts:
        """The recipes as facts of a zoo, by the names of the public one."""
        found: Facts = {f"config.{name}": getattr(self, name) for name in ("learning_rate", "dropout", "init_std")}
        return found | {
            "config.l2reg": self.l2,
            "config.train_fraction": self.train_fraction,
            "config.w_init": self.w_init,
            "config.optimizer": self.optimizer,
        }


@dataclass(frozen=True)
class CenteredImages:
    """Images float32 [M, C, H, W] in [-1, 1] and their classes int64 [M]."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class CNNFitOptions:
    """How long and on what.

    Attributes:
        checkpoints: steps at which networks are kept and tested, ascending; the last one ends the training.
        batch_size: images per network and step.
        test_on_train: training images on which the training accuracy is measured.
    """

    checkpoints: tuple[int, ...] = (50, 100, 200)
    batch_size: int = 64
    test_on_train: int = 1000

    def __post_init__(self) -> None:
        steps = self.checkpoints
        rising = bool(steps) and steps[0] >= 0 and all(a < b for a, b in zip(steps, steps[1:], strict=False))
        if not rising or min(self.batch_size, self.test_on_train) < 1:
            raise WeightEditError(f"got {self}; expected ascending checkpoints and positive sizes.")


def draw_recipes(count: int, generator: torch.Generator) -> Recipes:
    """`count` random recipes; see Recipes for the ranges."""

    def log_uniform(low: float, high: float) -> Tensor:
        u = torch.rand(count, generator=generator, dtype=torch.float64)
        return (math.log(low) + u * math.log(high / low)).exp()

    def choices(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(names[i] for i in torch.randint(len(names), (count,), generator=generator).tolist())

    rate, l2, std = log_uniform(5e-4, 5e-2), log_uniform(1e-8, 1e-2), log_uniform(1e-2, 0.5)
    dropout = 0.7 * torch.rand(count, generator=generator, dtype=torch.float64)
    fraction = torch.tensor(FRACTIONS, dtype=torch.float64)
    fraction = fraction[torch.randint(len(FRACTIONS), (count,), generator=generator)]
    w_init, optimizer = choices(INITIALIZATIONS), choices(OPTIMIZERS)
    rate = rate * torch.tensor([10.0 if name == "sgd" else 1.0 for name in optimizer], dtype=torch.float64)
    return Recipes(rate, l2, dropout, std, fraction, w_init, optimizer)


def initial_cnns(spec: NetworkSpec, recipes: Recipes, generator: torch.Generator) -> Params:
    """One network per recipe, [N, ...], initialized as it says (Keras's definitions)."""
    params: Params = {}
    for layer in spec.layers:
        window = math.prod(layer.weight_shape[2:])
        fans = layer.fan_in * window, layer.fan_out * window
        weights = [
            _initial(name, layer.weight_shape, fans, std, generator)
            for name, std in zip(recipes.w_init, recipes.init_std.tolist(), strict=True)
        ]
        params[layer.weight] = torch.stack(weights)
        if layer.bias is not None:
            params[layer.bias] = torch.zeros(len(recipes), layer.fan_out)
    return params


def _initial(
    name: str, shape: tuple[int, ...], fans: tuple[int, int], std: float, generator: torch.Generator
) -> Tensor:
    tensor = torch.empty(shape)
    if name == "orthogonal":
        return torch.nn.init.orthogonal_(tensor, generator=generator)
    if name == "normal":
        return tensor.normal_(generator=generator) * std
    if name in ("he_normal", "glorot_normal"):  # truncated at two deviations, of this deviation after the cut
        std = math.sqrt(2 / fans[0] if name == "he_normal" else 2 / sum(fans)) / 0.87962566103423978
    return torch.nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std, generator=generator)


def fit_cnns(
    spec: NetworkSpec,
    recipes: Recipes,
    train: CenteredImages,
    test: CenteredImages,
    options: CNNFitOptions,
    generator: torch.Generator,
    *,
    device: torch.device | str = "cpu",
    told: Callable[[int], object] = lambda step: None,
) -> CNNZoo:
    """Train one CNN per recipe; checkpoints whose weights are not finite are left out.

    Args:
        spec: a chain of convolutions and linear layers.
        recipes: N of them.
        train: every network draws its batches from its own fraction of them.
        test: for test_accuracy and test_loss.
        options: see CNNFitOptions.
        generator: of initializations, batches and dropout (CPU).
        device: to train on.
        told: called with the number of every step that is done.

    Returns a zoo of up to N * checkpoints rows, networks numbered from 0.
    """
    params = {name: tensor.to(device) for name, tensor in initial_cnns(spec, recipes, generator).items()}
    train, test = (CenteredImages(d.images.to(device), d.labels.to(device)) for d in (train, test))
    batches = _batches(recipes, len(train.labels), options.batch_size, generator)
    seen = CenteredImages(train.images[: options.test_on_train], train.labels[: options.test_on_train])
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in params.items()}
    found = []
    for step in range(options.checkpoints[-1] + 1):
        if step in options.checkpoints:
            found.append(_checkpoint(spec, params, recipes, step, seen, test))
        if step == options.checkpoints[-1]:
            break
        rows = next(batches).to(device)
        seed = int(torch.randint(2**62, (), generator=generator))
        noise = torch.Generator(device).manual_seed(seed)
        gradients = _gradients(spec, params, recipes, train.images[rows], train.labels[rows], noise)
        params = _updated(params, gradients, moments, recipes, step + 1)
        told(step + 1)
    return concatenate_zoos(found)


def _batches(recipes: Recipes, images: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows [N, size], each network's from its own random part of the images."""
    order = torch.rand(len(recipes), images, generator=generator).argsort(1)
    counts = (recipes.train_fraction * images).long().clamp(min=1).unsqueeze(1)
    while True:
        places = (torch.rand(len(recipes), size, generator=generator, dtype=torch.float64) * counts).long()
        yield order.gather(1, places)


def _gradients(
    spec: NetworkSpec, params: Params, recipes: Recipes, images: Tensor, labels: Tensor, noise: torch.Generator
) -> Params:
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
    logits = _forward_with_dropout(spec, leaves, images, recipes.dropout.to(images), noise)
    # Summed over networks, averaged over each one's batch: every network gets its own gradient.
    loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / labels.shape[1]
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    for layer in spec.layers:
        decay = _per_network(2 * recipes.l2, params[layer.weight])
        gradients[layer.weight] = gradients[layer.weight] + decay * params[layer.weight]
    return gradients


def _forward_with_dropout(
    spec: NetworkSpec, params: Params, x: Tensor, rates: Tensor, noise: torch.Generator
) -> Tensor:
    for before, layer in zip([None, *spec.layers], spec.layers, strict=False):
        bias = None if layer.bias is None else params[layer.bias]
        if layer.kernel is None:
            x = pooled(x) if before is not None and before.kernel is not None else x
            x = x @ params[layer.weight].mT
            x = x if bias is None else x + bias.unsqueeze(1)
            x = layer.activation(x)
        else:
            x = layer.activation(convolve(layer, params[layer.weight], bias, x))
            x = x * _kept(x, rates, noise)
    return x


def _kept(x: Tensor, rates: Tensor, noise: torch.Generator) -> Tensor:
    """Dropout's factors for `x` [N, ...], 0 or what makes their mean 1; rates are rounded to multiples of 1 / 256.

    One random number serves eight neurons: with one each, drawing them takes a third of a training step.
    """
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device)
    noise_bytes = words.random_(-(2**63), None, generator=noise).view(torch.uint8)[: x.numel()].view(x.shape)
    dropped = (256 * rates).round()
    kept = noise_bytes >= dropped.to(torch.uint8).reshape(-1, *[1] * (x.dim() - 1))
    return kept * _per_network(256 / (256 - dropped), x)


def _updated(
    params: Params, gradients: Params, moments: dict[str, tuple[Tensor, Tensor]], recipes: Recipes, step: int
) -> Params:
    """One step of every network's own optimizer, after the definitions of Keras; `moments` is written to."""
    betas = torch.tensor([_BETAS[name] for name in recipes.optimizer], dtype=torch.float64)
    adam = torch.tensor([name == "adam" for name in recipes.optimizer])
    corrections = torch.where(adam.unsqueeze(1), 1 - betas**step, 1.0)
    plain = torch.tensor([name == "sgd" for name in recipes.optimizer])
    found = {}
    for name, gradient in gradients.items():
        first, second, c1, c2, rate, is_plain = (
            _per_network(values, gradient)
            for values in (betas[:, 0], betas[:, 1], *corrections.unbind(1), recipes.learning_rate, plain)
        )
        mean = first * moments[name][0] + (1 - first) * gradient
        square = second * moments[name][1] + (1 - second) * gradient.square()
        moments[name] = mean, square
        adapted = (mean / c1) / ((square / c2).sqrt() + 1e-7)
        found[name] = params[name] - rate * torch.where(is_plain > 0, gradient, adapted)
    return found


def _per_network(values: Tensor, like: Tensor) -> Tensor:
    """[N] on the device, in the dtype and with as many axes as `like` [N, ...]."""
    return values.to(like).reshape(-1, *[1] * (like.dim() - 1))


@torch.no_grad()
def measure(spec: NetworkSpec, params: Params, data: CenteredImages) -> tuple[Tensor, Tensor]:
    """Accuracy and mean cross-entropy of N networks on the images, float64 [N] each on the CPU."""
    right = loss = torch.zeros((), dtype=torch.float64, device=data.images.device)
    chunk = max(1, _EVALUATIONS // len(params[spec.layers[0].weight]))
    for images, labels in zip(data.images.split(chunk), data.labels.split(chunk), strict=True):
        logits = spec.forward(params, images)
        right = right + (logits.argmax(-1) == labels).sum(-1).double()
        every = functional.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none").unflatten(
            0, (len(logits), -1)
        )
        loss = loss + every.sum(-1).double()
    return (right / len(data.labels)).cpu(), (loss / len(data.labels)).cpu()


def _checkpoint(
    spec: NetworkSpec, params: Params, recipes: Recipes, step: int, train: CenteredImages, test: CenteredImages
) -> CNNZoo:
    kept = {name: tensor.detach().cpu() for name, tensor in params.items()}
    finite = torch.stack([tensor.flatten(1).isfinite().all(1) for tensor in kept.values()]).all(0)
    facts: Facts = {"step": torch.full((len(recipes),), float(step), dtype=torch.float64), **recipes.facts()}
    for name, data in (("train", train), ("test", test)):
        facts[f"{name}_accuracy"], facts[f"{name}_loss"] = measure(spec, params, data)
    whole = {name: tensor.where(finite.reshape(-1, *[1] * (tensor.dim() - 1)), 0) for name, tensor in kept.items()}
    return CNNZoo(spec, whole, torch.arange(len(recipes)), facts)[finite]
