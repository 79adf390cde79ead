"""Training runs of a network and of transformed copies of it, on the same batches: how far apart they end."""

import math

import torch

from tests.networks import ACTIVATIONS, generator, random_params, relative
from weightedit.delta import apply_delta
from weightedit.network.spec import NetworkSpec
from weightedit.network.symmetry import act, random_element
from weightedit.network.wiring import Wiring

RELU = NetworkSpec.mlp((4, 16, 12, 3), ACTIVATIONS["relu"])
FACTORS = (math.exp(-3), math.exp(3))


def train(rule, wiring, params, gradient, steps, state=None):
    """Parameters and state after `steps` of `rule` along `gradient(params)`."""
    state = rule.init(wiring, params) if state is None else state
    for _ in range(steps):
        delta, state = rule.update(wiring, gradient(params), state, params)
        params = apply_delta(params, delta)
    return params, state


def regression(spec, source, params, size=32):
    """The mean squared error of `params` on a fresh batch of a smooth problem with a kink."""
    x = torch.randn(size, 4, generator=source, dtype=torch.float64)
    target = torch.stack([x.sin().sum(-1), x[:, 0] * x[:, 1], x.amax(-1)], -1)
    return (spec.forward(params, x.to(params["layers.0.weight"].dtype)) - target).square().mean()


def function_distance(rule, symmetry="scale", spec=RELU, steps=100):
    """Of a network and a transformed copy after `steps` on the same batches, relative to the first one's outputs."""
    params = random_params(spec)
    element = random_element(spec, generator(3), symmetry=symmetry, scale_range=FACTORS)
    test = torch.randn(64, 4, generator=generator(4), dtype=torch.float64)
    before, outputs = spec.forward(params, test), []
    for start in (params, act(element, spec, params)):
        torch.testing.assert_close(spec.forward(start, test), before, rtol=1e-10, atol=1e-10)
        source = generator(5)

        def gradient(now, source=source):
            leaves = {k: p.detach().requires_grad_() for k, p in now.items()}
            loss = regression(spec, source, leaves)
            return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

        with torch.no_grad():  # a learned rule's weights would keep every step
            end = train(rule, Wiring.of(spec), start, torch.enable_grad()(gradient), steps)[0]
        outputs.append(spec.forward(end, test))
    assert relative(outputs[0], before) > 0.1  # they did learn
    return relative(outputs[1], outputs[0])
