"""Networks that several tests use: specs of every activation with every width different, and random parameters."""

import math
from dataclasses import replace

import torch

from weightedit.network.spec import SYMMETRIES, Activation, NetworkSpec

WIDTHS = (2, 5, 4, 3)
ACTIVATIONS = {
    "identity": Activation("identity"),
    "relu": Activation("relu"),
    "leaky_relu": Activation("leaky_relu", 0.1),
    "tanh": Activation("tanh"),
    "sine": Activation("sine", 30.0),
    "gelu": Activation("gelu"),
    "silu": Activation("silu"),
    "sigmoid": Activation("sigmoid"),
}
SPECS = {name: NetworkSpec.mlp(WIDTHS, activation) for name, activation in ACTIVATIONS.items()}
SPECS["mixed"] = NetworkSpec.mlp(
    (2, 7, 5, 6, 4, 3), [ACTIVATIONS[name] for name in ("sine", "relu", "silu", "identity")]
)

CNNS = {name: NetworkSpec.cnn((1, 5, 4, 3, 4), ACTIVATIONS[name]) for name in ("relu", "tanh", "sine", "silu")}
_MIXED = NetworkSpec.mlp((2, 5, 4, 3, 4), [ACTIVATIONS[name] for name in ("relu", "sine", "tanh")]).layers
CNNS["mixed"] = NetworkSpec(
    (
        replace(_MIXED[0], kernel=(3, 5), stride=2, padding=1),
        replace(_MIXED[1], kernel=(1, 3), padding=2),
        replace(_MIXED[2], kernel=(3, 1)),
        _MIXED[3],
    )
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def parts_of_symmetry(specs):
    """(name, symmetry) of each for permutations, and for every part of its symmetry that holds more than them."""
    return [
        (name, symmetry)
        for name, spec in specs.items()
        for symmetry in SYMMETRIES
        if symmetry == "permutation" or spec.neuron_groups(symmetry) != spec.neuron_groups("permutation")
    ]


def random_params(spec, *, count=None, seed=0, dtype=torch.float64):
    """Random weights of the size of trained ones: nothing about them is special, biases included."""
    source = generator(seed)
    stack = () if count is None else (count,)
    params = {}
    for layer in spec.layers:
        weight = torch.randn(*stack, *layer.weight_shape, generator=source, dtype=torch.float64)
        params[layer.weight] = (weight / math.prod(layer.weight_shape[1:]) ** 0.5).to(dtype)
        if layer.bias is not None:
            params[layer.bias] = (0.5 * torch.randn(*stack, layer.fan_out, generator=source, dtype=torch.float64)).to(
                dtype
            )
    return params


def random_images(spec, count):
    """Images that a chain of convolutions takes, 19 x 17 pixels."""
    return 2 * torch.rand(count, spec.widths[0], 19, 17, dtype=torch.float64, generator=generator(9)) - 1


def relative(got, expected):
    """Largest difference over the largest expected value; 0 where both are zero everywhere."""
    difference, size = (float(x.detach().abs().max()) for x in (got - expected, expected))
    return difference / size if size else math.inf if difference else 0.0
