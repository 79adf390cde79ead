"""What a network is: its layers, their parameter names, widths and activations, and hence its symmetry.

`NetworkSpec` is the only description of an optimizee that the rest of the library sees. It is plain data: hashable,
comparable, written to JSON. Reading one from an nn.Module is done in drawing.py and chain.py; what the symmetry does to
parameters is in symmetry.py; layers and activations are in layer.py, what stands before and after them in ending.py.

A chain may begin with convolutions, whose neurons are channels; the linear layer after the last of them reads each
channel's mean over the image (global average pooling). What they compute is in convolution.py. Networks with
normalizations or residual additions, which would tie, free or remove the factors of `neuron_groups`, are no chains:
graph_spec.py describes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from weightedit.errors import ParamsError, SpecError
from weightedit.files.schema import conform
from weightedit.network.chain import chain_of
from weightedit.network.convolution import convolve, pooled
from weightedit.network.drawing import drawn, first_program
from weightedit.network.ending import Encoding, Ending, encoded
from weightedit.network.layer import IDENTITY, SYMMETRIES, Activation, Layer, NeuronGroup, Symmetry
from weightedit.network.program import unwrapped

__all__ = ["IDENTITY", "SYMMETRIES", "Activation", "Layer", "NetworkSpec", "NeuronGroup", "Params", "Symmetry"]

Params = dict[str, Tensor]


@dataclass(frozen=True)
class NetworkSpec:
    """A feed-forward chain of layers, as read from a module or built by `mlp` / `siren`.

    Node level 0 is the input, level l the neurons of `layers[l - 1]`; the last level is the output.

    Attributes:
        layers: in their order; the last one's activation is the identity.
        encodings: features of the inputs, side by side, which the first layer reads; () where it reads the inputs.
        endings: operations on the outputs, in their order. Neither has parameters, or changes the symmetry.
    """

    layers: tuple[Layer, ...]
    encodings: tuple[Encoding, ...] = ()
    endings: tuple[Ending, ...] = ()

    def __post_init__(self) -> None:
        if not self.layers:
            raise SpecError("got a network without layers; expected at least one linear layer.")
        for before, after in zip(self.layers, self.layers[1:], strict=False):
            if before.fan_out != after.fan_in:
                raise SpecError(
                    f"{after.weight} reads {after.fan_in} inputs, but {before.weight} has {before.fan_out} outputs; "
                    "expected the layers of one chain, in order."
                )
            if before.kernel is None and after.kernel is not None:
                raise SpecError(
                    f"the convolution {after.weight} follows the linear layer {before.weight}; expected convolutions "
                    "at the beginning of the chain only."
                )
        if self.layers[-1].activation != IDENTITY:
            raise SpecError(
                f"the last layer ends in {self.layers[-1].activation.name}; expected identity: put what follows the "
                "last linear map into endings."
            )
        inputs = {len(encoding.matrix[0]) for encoding in self.encodings}
        features = sum(len(encoding.matrix) for encoding in self.encodings)
        if self.encodings and (len(inputs) != 1 or features != self.layers[0].fan_in):
            raise SpecError(
                f"got encodings of {features} features from {sorted(inputs)} inputs before a layer that reads "
                f"{self.layers[0].fan_in}; expected as many, all of the same inputs."
            )

    @classmethod
    def from_module(cls, net: nn.Module, inputs: Any = None) -> NetworkSpec:
        """Read `net`, any module whose forward is a chain of layers, with what stands before and after them.

        The chain computes what the module does, in evaluation mode; inputs that the module flattens come flat.

        Args:
            net: any module; its forward is captured (program.py), and nothing of it changes.
            inputs: one batch that its forward takes, of which only shapes matter, as reading.wiring_of takes it. None:
                they are guessed from the first layer.

        Raises SpecError that names the submodule which cannot be treated.
        """
        return cls(*chain_of(drawn(first_program(net, inputs))))

    @classmethod
    def mlp(cls, widths: Sequence[int], activations: Activation | str | Sequence[Activation | str]) -> NetworkSpec:
        """A chain with canonical names layers.i.weight / layers.i.bias.

        Args:
            widths: neurons per level, inputs first, e.g. (784, 64, 10).
            activations: one for all hidden layers, or one per hidden layer; those without a parameter by name, too.
        """
        hidden = len(widths) - 2
        if isinstance(activations, Activation | str):
            activations = (activations,) * hidden
        if hidden < 0 or len(activations) != hidden or any(width < 1 for width in widths):
            raise SpecError(
                f"got widths {tuple(widths)} with {len(activations)} activations; expected at least two positive "
                "widths and one activation per hidden layer."
            )
        layers = [
            Layer(f"layers.{i}.weight", f"layers.{i}.bias", widths[i], widths[i + 1], one)
            for i, one in enumerate([*(Activation(a) if isinstance(a, str) else a for a in activations), IDENTITY])
        ]
        return cls(tuple(layers))

    @classmethod
    def siren(cls, widths: Sequence[int], omega: float = 30.0) -> NetworkSpec:
        """A SIREN, sin(omega z) on every hidden layer (Sitzmann et al. 2020), with canonical names."""
        return cls.mlp(widths, Activation("sine", omega))

    @classmethod
    def cnn(
        cls,
        widths: Sequence[int],
        activation: Activation | str,
        *,
        kernel: tuple[int, int] = (3, 3),
        stride: int = 2,
        padding: int = 0,
    ) -> NetworkSpec:
        """Convolutions, global average pooling and a linear layer, with canonical names.

        Args:
            widths: channels of the images, channels after every convolution, outputs, e.g. (1, 16, 16, 16, 10).
            activation: after every convolution.
            kernel, stride, padding: of every convolution.
        """
        chain = cls.mlp(widths, activation).layers
        convolutions = (replace(layer, kernel=kernel, stride=stride, padding=padding) for layer in chain[:-1])
        return cls((*convolutions, chain[-1]))

    @classmethod
    def from_params(cls, params: Mapping[str, Tensor], omega: float = 30.0) -> NetworkSpec:
        """The SIREN whose canonical names and shapes (with or without a leading network axis) `params` has."""
        count = sum(name.endswith(".weight") for name in params)
        names = {f"layers.{i}.{kind}" for i in range(count) for kind in ("weight", "bias")}
        if not count or set(params) != names:
            raise ParamsError(
                f"got tensors named {_listed(params)}; expected layers.0.weight, layers.0.bias, layers.1.weight, ... "
                "(inr_files.load_inrs reads other formats)."
            )
        weights = [params[f"layers.{i}.weight"] for i in range(count)]
        if any(weight.dim() not in (2, 3) for weight in weights):
            raise ParamsError(
                f"got weights of shape {[tuple(w.shape) for w in weights]}; expected (out, in) or (N, out, in)."
            )
        spec = cls.siren([weights[0].shape[-1], *(weight.shape[-2] for weight in weights)], omega)
        spec.check_shapes(params)
        return spec

    @property
    def widths(self) -> tuple[int, ...]:
        """Neurons per level, inputs first."""
        return (self.layers[0].fan_in, *(layer.fan_out for layer in self.layers))

    @property
    def depth(self) -> int:
        """Number of layers (weight matrices)."""
        return len(self.layers)

    @property
    def kernel(self) -> tuple[int, int]:
        """(height, width) in which every layer's kernel fits; (1, 1) where there is no convolution."""
        kernels = [layer.kernel or (1, 1) for layer in self.layers]
        return max(height for height, _ in kernels), max(width for _, width in kernels)

    @property
    def channels(self) -> int:
        """Channels that the parameters take as features: the positions of `kernel`."""
        return math.prod(self.kernel)

    def neuron_groups(self, symmetry: Symmetry = "full") -> tuple[NeuronGroup, ...]:
        """Per hidden layer, the neuron factors (besides permutation) inside `symmetry`; a shift needs a bias."""
        groups = [layer.activation.group.restricted(symmetry) for layer in self.layers[:-1]]
        biased = [layer.bias is not None for layer in self.layers]
        return tuple(replace(group, shift=group.shift and b) for group, b in zip(groups, biased, strict=False))

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of one network's parameters, in layer order, weight before bias."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in self.layers:
            shapes[layer.weight] = layer.weight_shape
            if layer.bias is not None:
                shapes[layer.bias] = (layer.fan_out,)
        return shapes

    @property
    def parameter_count(self) -> int:
        """Number of parameters of one network."""
        return sum(math.prod(shape) for shape in self.param_shapes().values())

    def check_shapes(self, params: Mapping[str, Tensor]) -> int | None:
        """Number of stacked networks N, or None for a single one.

        Raises ParamsError on missing or unexpected names and on shapes that do not fit.
        """
        return check_shapes(self.param_shapes(), params)

    def check_params(self, params: Mapping[str, Tensor]) -> int | None:
        """`check_shapes`, and every value is finite (ParamsError names the tensor and the first bad network)."""
        count = self.check_shapes(params)
        check_finite(params, count)
        return count

    def params_of(self, net: nn.Module) -> Params:
        """The parameters of `net` that this spec describes (the tensors themselves, not copies)."""
        named = dict(unwrapped(net).named_parameters())
        params: Params = {name: named[name] for name in self.param_shapes() if name in named}
        self.check_shapes(params)
        return params

    def forward(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The network's function: `x` [..., in] -> [..., out]; stacked params take [(N,) P, in] -> [N, P, out].

        `in` counts what the encodings read, where there are some. The endings are part of the function.

        Where the chain begins with convolutions, `x` holds images: [P, in, H, W], or [N, P, in, H, W] with one set of
        images per stacked network. Where it also ends with one, so does the result.
        """
        image, x = False, encoded(self.encodings, x)
        for layer in self.layers:
            if layer.kernel is not None:
                bias = None if layer.bias is None else params[layer.bias]
                x, image = layer.activation(convolve(layer, params[layer.weight], bias, x)), True
                continue
            x, image = pooled(x) if image else x, False
            x = x @ params[layer.weight].transpose(-1, -2)
            if layer.bias is not None:
                bias = params[layer.bias]
                x = x + (bias.unsqueeze(-2) if bias.dim() > 1 else bias)
            x = layer.activation(x)
        for ending in self.endings:
            x = ending(x, -3 if image else -1)
        return x

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON; `from_dict` gives the same spec back."""
        found: dict[str, object] = {"layers": [asdict(layer) for layer in self.layers]}
        for key, parts in (("encodings", self.encodings), ("endings", self.endings)):
            found |= {key: [asdict(part) for part in parts]} if parts else {}
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> NetworkSpec:
        """The spec that `to_dict` wrote. Raises SpecError if `data` is not of that form."""
        if isinstance(layers := data.get("layers"), list):
            data = {**data, "layers": [_without_kind(layer) if isinstance(layer, dict) else layer for layer in layers]}
        return conform(cls, data, "a network spec", SpecError)


def check_shapes(shapes: Mapping[str, tuple[int, ...]], params: Mapping[str, Tensor]) -> int | None:
    """The number N of stacked networks in `params` (None: a single one), where names and shapes are those expected.

    Raises ParamsError on missing or unexpected names and on shapes that do not fit.
    """
    if set(params) != set(shapes):
        raise ParamsError(
            f"missing tensors: {_listed(set(shapes) - set(params))}; unexpected tensors: "
            f"{_listed(set(params) - set(shapes))}; expected exactly {_listed(shapes)}."
        )
    first = next(iter(shapes))
    stacked = params[first].dim() == len(shapes[first]) + 1
    count = params[first].shape[0] if stacked else None
    for name, shape in shapes.items():
        expected = shape if count is None else (count, *shape)
        if tuple(params[name].shape) != expected:
            raise ParamsError(
                f"{name} has shape {tuple(params[name].shape)}; expected {expected}. Stack either all tensors "
                "over networks (one leading axis) or none."
            )
    return count


def check_finite(params: Mapping[str, Tensor], count: int | None) -> None:
    """Raise ParamsError that names a tensor with NaN or infinite values, and the first such network of `count`."""
    sums = [tensor.sum() for tensor in params.values()]
    if sums and bool(torch.isfinite(sum(sums[1:], sums[0]))):
        return  # by one look at the device; a sum that overflows is looked at once more
    for name, tensor in params.items():
        if not bool(torch.isfinite(tensor).all()):
            where = ""
            if count is not None:
                bad = (~torch.isfinite(tensor)).reshape(count, -1).any(1).nonzero()[0].item()
                where = f" of network {bad}"
            raise ParamsError(
                f"{name}{where} holds NaN or infinite values; expected finite weights. Drop that network or fit it "
                "again."
            )


def _without_kind(layer: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in layer.items() if (name, value) != ("kind", "linear")}  # of version 0.1.0


def _listed(names: object) -> str:
    names = sorted(str(name) for name in names)  # type: ignore[attr-defined]
    shown = ", ".join(names[:8]) or "none"
    return f"{shown}, ... ({len(names)} in all)" if len(names) > 8 else shown
