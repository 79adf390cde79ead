"""Networks that several tests use: specs of every activation with every width different, and random parameters."""

import torch

from weightedit.spec import Activation, NetworkSpec

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


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_params(spec, *, count=None, seed=0, dtype=torch.float64):
    """Random weights of the size of trained ones: nothing about them is special, biases included."""
    source = generator(seed)
    stack = () if count is None else (count,)
    params = {}
    for layer in spec.layers:
        weight = torch.randn(*stack, layer.fan_out, layer.fan_in, generator=source, dtype=torch.float64)
        params[layer.weight] = (weight / layer.fan_in**0.5).to(dtype)
        if layer.bias is not None:
            params[layer.bias] = (0.5 * torch.randn(*stack, layer.fan_out, generator=source, dtype=torch.float64)).to(
                dtype
            )
    return params


def relative(got, expected):
    """Largest difference over the largest expected value."""
    return float(((got - expected).abs().max() / expected.abs().max()).detach())
