"""Inner problems on images: MLPs and any module that classify them, SIRENs that are fitted to them.

Images come as tensors and are kept whole, as floats; reading them from files is data/images.py's. The small problem of
learned_optimizers.md section 1 is ClassifierOptimizee(LabeledImages.of(images, labels, size=8)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import _disable_current_modes

from weightedit.errors import SpecError, WeightEditError
from weightedit.inr.convention import Convention
from weightedit.inr.siren import initial_params, places, raw_outputs
from weightedit.metatrain.draws import indices
from weightedit.metatrain.optimizee import Batch, Task
from weightedit.network.graph_spec import spec_of
from weightedit.network.reading import wiring_of
from weightedit.network.spec import Activation, NetworkSpec, Params
from weightedit.network.wiring import Wiring


@dataclass(frozen=True, eq=False)
class LabeledImages:
    """Images [n, C, H, W] in [0, 1], labels [n] from 0 to classes - 1."""

    images: Tensor
    labels: Tensor
    classes: int

    @classmethod
    def of(
        cls, images: Tensor, labels: Tensor, *, size: int | None = None, dtype: torch.dtype = torch.float32
    ) -> LabeledImages:
        """From images as they are stored.

        Args:
            images: [n, C, H, W], uint8 from 0 to 255 or floats in [0, 1].
            labels: [n], integers.
            size: resize to size x size, bilinear with smoothing (antialiased, as jax.image.resize: tuned Adam's
                published loss on Fashion-MNIST, .475, is met with it, .471, and not without, .52); None keeps the size.
            dtype: of the images here.

        Raises:
            WeightEditError: tensors of other shapes.
        """
        if images.dim() != 4 or labels.shape != images.shape[:1] or not len(labels) or labels.is_floating_point():
            raise WeightEditError(
                f"got images {tuple(images.shape)} and labels {tuple(labels.shape)} {labels.dtype}; expected "
                "(n, C, H, W) and n integers, n > 0: reshape them."
            )
        values = images.to(dtype) / 255 if images.dtype == torch.uint8 else images.to(dtype)
        if size is not None and values.shape[-2:] != (size, size):
            pieces = [
                functional.interpolate(piece, (size, size), mode="bilinear", antialias=True)
                for piece in values.split(4096)
            ]
            values = torch.cat(pieces)
        return cls(values, labels.long(), int(labels.max()) + 1)

    def split(self, fraction: float, seed: int = 0) -> tuple[LabeledImages, LabeledImages]:
        """A random part of round(fraction n) images and the rest, in an order that `seed` fixes."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed)).to(self.labels.device)
        cut = round(fraction * len(order))
        if not 0 < cut < len(order):
            raise WeightEditError(
                f"got a part of {fraction} of {len(order)} images; expected two parts that are not empty: choose "
                "another fraction."
            )
        first, second = (
            LabeledImages(self.images[part], self.labels[part], self.classes) for part in (order[:cut], order[cut:])
        )
        return first, second

    def batch(self, keys: Tensor, size: int) -> Batch:
        """`size` images per key, drawn with replacement: "images" [N, size, C, H, W], "labels" [N, size].

        On the device of the keys, where all images are copied once.
        """
        drawn, held = indices(keys, size, len(self.labels)), self._on(keys.device)
        return {"images": held.images[drawn], "labels": held.labels[drawn]}

    @cached_property
    def _copies(self) -> dict[torch.device, LabeledImages]:
        return {}

    def _on(self, device: torch.device) -> LabeledImages:
        if self.images.device == device:
            return self
        if device not in self._copies:
            with _disable_current_modes():  # a step that is being traced would copy them every time
                copies = self.images.to(device), self.labels.to(device)
            self._copies[device] = LabeledImages(*copies, self.classes)
        return self._copies[device]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log likelihood in nats per network: logits [N, B, classes], labels [N, B] -> [N]."""
    picked = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return (logits.logsumexp(-1) - picked).mean(-1)


def _uniform(fan_in: int) -> tuple[float, float]:
    return fan_in**-0.5, fan_in**-0.5


def _zero_biases(fan_in: int) -> tuple[float, float]:
    return (3 / fan_in) ** 0.5, 0.0


INITIALIZATIONS: dict[str, Callable[[int], tuple[float, float]]] = {"uniform": _uniform, "zero-biases": _zero_biases}
"""Name -> fan_in -> bounds of the uniform draws of weight and bias. "uniform" is that of torch's Linear;
"zero-biases" has weights of variance 1 / fan_in."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """What classifiers share: data, batches, the loss's range.

    Attributes:
        data: what inner steps train on.
        held_out: what `batch(held_out=True)` draws from; None: from `data`.
        batch_size: images per step.
    """

    data: LabeledImages
    held_out: LabeledImages | None = None
    batch_size: int = 128

    @property
    def cap(self) -> float:
        """1.5 times the loss of a guess without looking (learned_optimizers.md section 2)."""
        return 1.5 * math.log(self.data.classes)

    def batch(self, task: Task, keys: Tensor, *, held_out: bool = False) -> Batch:
        """See Optimizee.batch."""
        source = self.held_out if held_out and self.held_out is not None else self.data
        return source.batch(keys, self.batch_size)

    def score(self, losses: Tensor) -> Tensor:
        """Losses in units of a guess without looking, log(classes)."""
        return losses / math.log(self.data.classes)

    def logits(self, params: Params, images: Tensor) -> Tensor:
        """Of every network: images [N, B, C, H, W] -> [N, B, classes]."""
        raise NotImplementedError

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """See Optimizee.loss."""
        return cross_entropy(self.logits(params, batch["images"]), batch["labels"])


@dataclass(frozen=True, eq=False)
class ClassifierOptimizee(Classifier):
    """An MLP on the pixels of images; cross entropy.

    Args:
        data, held_out, batch_size: as above.
        hidden: widths of the hidden layers.
        activation: of all of them.
        init: one of INITIALIZATIONS.
        initial_scale: factor on all weights at the start.

    Raises:
        WeightEditError: an unknown initialization; SpecError: widths that are none.
    """

    hidden: tuple[int, ...] = (32,)
    activation: Activation = Activation("relu")
    init_name: str = "uniform"
    initial_scale: float = 1.0
    spec: NetworkSpec = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.init_name not in INITIALIZATIONS:
            raise WeightEditError(
                f"got initialization {self.init_name!r}; expected one of {', '.join(INITIALIZATIONS)}: choose one."
            )
        widths = (self.data.images[0].numel(), *self.hidden, self.data.classes)
        object.__setattr__(self, "spec", NetworkSpec.mlp(widths, self.activation))

    @property
    def wiring(self) -> Wiring:
        """Of the chain."""
        return Wiring.of(self.spec)

    def init(self, generator: torch.Generator, count: int, *, held_out: bool = False) -> tuple[Params, Task]:
        """Fresh networks; there is no task."""
        params: Params = {}
        for layer in self.spec.layers:
            bounds = INITIALIZATIONS[self.init_name](layer.fan_in)
            shapes = {layer.weight: (count, layer.fan_out, layer.fan_in), layer.bias: (count, layer.fan_out)}
            for bound, factor, (name, shape) in zip(bounds, (self.initial_scale, 1.0), shapes.items(), strict=True):
                assert name is not None
                like: dict[str, Any] = {"device": generator.device, "dtype": self.data.images.dtype}
                params[name] = bound * factor * (2 * torch.rand(shape, generator=generator, **like) - 1)
        return params, {}

    def logits(self, params: Params, images: Tensor) -> Tensor:
        """[N, B, C, H, W] -> [N, B, classes]."""
        return self.spec.forward(params, images.flatten(2))


@dataclass(frozen=True, eq=False)
class ModuleOptimizee(Classifier):
    """Any module that maps images to logits, through torch.func; cross entropy.

    Args:
        data, held_out, batch_size: as above.
        make: a freshly initialized module; called under a seed of its own (torch's global generators are put back).

    Raises:
        SpecError: a module with buffers, or one that has parameters outside its neural graph.
    """

    make: Callable[[], nn.Module] = nn.Identity
    net: nn.Module = field(init=False, repr=False)
    _wiring: Wiring = field(init=False, repr=False)

    def __post_init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = self.make()
        buffers = [name for name, _ in net.named_buffers()]
        like = next(net.parameters(), self.data.images)
        batch = torch.zeros(2, *self.data.images.shape[1:], dtype=like.dtype, device=like.device)
        wiring = wiring_of(net, batch)
        outside = [*wiring.outside, *(wire.name for wire in wiring.wires if wire.stored)]
        if buffers or outside or not list(net.parameters()):
            raise SpecError(
                f"got a {type(net).__name__} with buffers {buffers} and parameters outside the neural graph "
                f"{outside}; expected parameters, all in the graph, and no buffers: use normalizations "
                "without running statistics, and no embeddings."
            )
        with suppress(SpecError):  # then only rules that are metanetworks have nothing to read
            wiring = replace(wiring, spec=spec_of(net, batch))
        object.__setattr__(self, "net", net)
        object.__setattr__(self, "_wiring", wiring)

    @property
    def wiring(self) -> Wiring:
        """As reading.wiring_of reads it."""
        return self._wiring

    def init(self, generator: torch.Generator, count: int, *, held_out: bool = False) -> tuple[Params, Task]:
        """`count` modules' parameters; there is no task."""
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = [dict(self.make().named_parameters()) for _ in range(count)]
        place: dict[str, Any] = {"device": generator.device, "dtype": self.data.images.dtype}
        return {name: torch.stack([net[name].detach() for net in made]).to(**place) for name in made[0]}, {}

    def logits(self, params: Params, images: Tensor) -> Tensor:
        """[N, B, C, H, W] -> [N, B, classes]."""

        def of_one(own: Params, images: Tensor) -> Tensor:
            return torch.func.functional_call(self.net, own, (images,))

        return torch.func.vmap(of_one)(params, images)


_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


def conv_net(
    channels: int,
    classes: int,
    *,
    widths: Sequence[int] = (16, 32, 32),
    strides: Sequence[int] = (2, 1, 1),
    activation: str = "relu",
    initial_scale: float = 1.0,
) -> nn.Module:
    """3x3 convolutions, an average over positions, a linear layer; weights of variance initial_scale^2 / fan_in.

    With widths 16-32-32 and 32-64-64 and ReLU these are the CNNs that learned optimizers are tried on (Conv_* of
    Google's learned_optimization): normal draws cut at two standard deviations, biases zero. Other activations: tanh,
    gelu.
    """
    layers: list[nn.Module] = []
    for before, after, stride in zip((channels, *widths), widths, chain(strides, repeat(1)), strict=False):
        layers += [nn.Conv2d(before, after, 3, stride, 1), _ACTIVATIONS[activation]()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
            continue
        deviation = initial_scale * parameter[0].numel() ** -0.5
        nn.init.trunc_normal_(parameter, std=deviation, a=-2 * deviation, b=2 * deviation)
    return net


@dataclass(frozen=True, eq=False)
class SirenOptimizee:
    """A SIREN fitted to one image per run: the mean squared error of the whole rendering, image values in [0, 1].

    Args:
        images: [n, C, H, W], uint8 from 0 to 255 or floats in [0, 1]; every run draws one.
        held_out: as `images`, which runs begun with `held_out` draw from; None: from `images`.
        hidden: widths of the sine layers.
        convention: coordinates, omega and what the output means.
        init: see inr.siren.initial_params.
    """

    images: Tensor
    hidden: tuple[int, ...] = (32, 32)
    convention: Convention = Convention()
    init_name: str = "siren"
    held_out: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("images", "held_out"):
            images = getattr(self, name)
            if images is None:
                continue
            if images.dim() != 4 or not len(images) or images.shape[1:] != self.images.shape[1:]:
                raise WeightEditError(
                    f"got {name} {tuple(images.shape)}; expected (n, C, H, W), of one size: reshape them."
                )
            if images.dtype == torch.uint8:
                object.__setattr__(self, name, images.float() / 255)

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the networks, inputs first."""
        return (2, *self.hidden, self.images.shape[1])

    @property
    def wiring(self) -> Wiring:
        """Of the chain."""
        return Wiring.of(self.convention.spec(self.widths))

    @property
    def cap(self) -> float:
        """Mean squared error of an image that is all wrong."""
        return 1.0

    @cached_property
    def _grid(self) -> Tensor:
        height, width = self.images.shape[-2:]
        like: dict[str, Any] = {"dtype": self.images.dtype, "device": self.images.device}
        return places((height, width), self.convention, **like)

    def init(self, generator: torch.Generator, count: int, *, held_out: bool = False) -> tuple[Params, Task]:
        """Fresh networks, and the "values" [N, P, C] that each is to render."""
        images = self.held_out if held_out and self.held_out is not None else self.images
        drawn = torch.randint(len(images), (count,), generator=generator, device=generator.device)
        options: dict[str, Any] = {"init": self.init_name, "omega": self.convention.frequency, "generator": generator}
        params = initial_params(count, self.widths, **options)
        values = images[drawn.to(images.device)].flatten(2).mT.contiguous().to(generator.device)
        return {name: tensor.to(self.images.dtype) for name, tensor in params.items()}, {"values": values}

    def batch(self, task: Task, keys: Tensor, *, held_out: bool = False) -> Batch:
        """The whole image of the run; what is held out is whole runs."""
        return {"values": task["values"]}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """See Optimizee.loss."""
        raw = raw_outputs(params, self._grid.to(batch["values"].device), self.convention)
        return (self.convention.to_value(raw) - batch["values"]).square().mean((-2, -1))

    def score(self, losses: Tensor) -> Tensor:
        """PSNR turned round, in units of 10 dB: log10(mse), no lower than 80 dB (-8)."""
        return losses.clamp(min=1e-8).log10()
