"""What the tests of metanetworks share: random weights in place of initial ones, and their paths from parameters on."""

import torch

from tests.networks import generator, random_params
from weightedit.delta import propose_delta, propose_deltas
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.graph.ragged import ragged_from_params
from weightedit.network.features import PARAMETER, WeightSpaceFeatures
from weightedit.network.spec import NetworkSpec
from weightedit.network.symmetry import act_on_features, random_element


def perturbed(metanet, strength=0.3, dtype=torch.float64):
    """The same metanetwork with random, not initial, weights."""
    source = generator(1)
    with torch.no_grad():
        for parameter in metanet.parameters():
            parameter.add_(strength * torch.randn(parameter.shape, generator=source))
    return metanet.to(dtype)


def editing(metanet, spec):
    return lambda params: propose_delta(metanet, spec, params)


def wider(spec):
    """One more neuron in every hidden layer."""
    widths = (spec.widths[0], *(width + 1 for width in spec.widths[1:-1]), spec.widths[-1])
    return NetworkSpec.mlp(widths, [layer.activation for layer in spec.layers[:-1]])


def editing_in_a_batch(metanet, spec, other):
    """The same network inside a ragged batch, between two of the architecture `other`."""
    dtype = next(metanet.parameters()).dtype
    first, last = (random_params(other, seed=seed, dtype=dtype) for seed in (5, 6))
    return lambda params: propose_deltas(metanet, [(other, first), (spec, params), (other, last)])[1]


def reading(metanet, spec):
    return lambda params: metanet.embed(NeuralGraph.from_params(spec, params))


def reading_in_a_batch(metanet, spec, other):
    params_of_other = random_params(other, seed=5, dtype=next(metanet.parameters()).dtype)
    return lambda params: metanet.embed(ragged_from_params([(other, params_of_other), (spec, params)]))[1]


def random_parts(widths, channels, *, count=2, seed=3):
    """Weights and biases [count, ..., channels] of a chain, as a WeightSpace folds them."""
    source = generator(seed)
    pairs = list(zip(widths[1:], widths, strict=False))
    weights = [torch.randn(count, a, b, channels, dtype=torch.float64, generator=source) for a, b in pairs]
    biases = [torch.randn(count, a, channels, dtype=torch.float64, generator=source) for a, _ in pairs]
    return weights, biases


def errors_with_channels(metanet, spec, channels, symmetry):
    """Relative errors per tensor of the delta of networks whose weights are vectors, as convolution kernels are."""
    weights, biases = random_parts(spec.widths, channels)
    features = WeightSpaceFeatures(tuple(weights), tuple(biases), (PARAMETER,) * channels)
    element = random_element(spec, generator(2), symmetry=symmetry)
    graphs = [NeuralGraph.from_features(spec, f) for f in (features, act_on_features(element, spec, features))]
    (plain,), (moved,) = (metanet(graph).to_features() for graph in graphs)
    expected = act_on_features(element, spec, plain)
    found = []
    for kind in ("weights", "biases"):
        for right, got in zip(getattr(expected, kind), getattr(moved, kind), strict=True):
            found.append(float(((got - right).norm() / right.norm()).detach()))
    return found


def assert_as_by_hand(make, by_hand, spec):
    """An editor and a reader against by_hand(metanet, w, b), which gives deltas or a vector, one network at a time.

    `make` builds a metanetwork of a given embedding.
    """
    params = random_params(spec, count=2)
    editor, reader = make(0), make(5)
    deltas, vectors = propose_delta(editor, spec, params), reading(reader, spec)(params)
    for row in range(2):
        own = [[params[name][row].unsqueeze(-1) for name in names] for names in zip(*_names(spec), strict=True)]
        expected = by_hand(editor, *own)
        found = [deltas[name][row] for names in zip(*_names(spec), strict=True) for name in names]
        for fast, slow in zip(found, expected, strict=True):
            torch.testing.assert_close(fast, slow.squeeze(-1), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(vectors[row], by_hand(reader, *own), rtol=1e-9, atol=1e-12)


def _names(spec):
    return [(layer.weight, layer.bias) for layer in spec.layers]
