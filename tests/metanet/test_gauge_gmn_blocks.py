"""ScaleGMN's layers as the paper's building blocks, neuron by neuron, where the terms that are ours have zero weights.

Kalogeropoulos et al. 2024: ScaleEq(x) = G x * ScaleInv(x), ReScaleEq(x, y) = G x * G' y, an edge update
G e * ScaleInv(h_i, h_j), and ScaleInv through canonical forms, x / |x| for scales and |x| for signs. Features of type
+1 are h = n x, and weights w = e n_i / n_j, where x and e are what the layers hold and n is a gauge.
"""

import pytest
import torch
from torch.nn import functional

from tests.message_passing_twin import one_by_one
from tests.networks import SPECS, generator, relative
from weightedit.graph.neural_graph import dense_layout
from weightedit.metanet.gauge_gmn.layers import EdgeUpdate, NodeUpdate, Streams, bridges, unit_rms

NODE, EDGE = 6, 4


def _random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(sum(shape)))


def _state(name):
    """Random streams on a network, and the ends (target, source) of its edges."""
    layout = dense_layout(SPECS[name], torch.zeros(1))
    numbers = torch.arange(sum(SPECS[name].widths)).unsqueeze(-1)
    ends = list(zip(layout.to_target(numbers)[:, 0].tolist(), layout.to_source(numbers)[:, 0].tolist(), strict=True))
    edges = _random(len(ends), EDGE)
    # Large, so that the epsilon in unit_rms is far below what is compared.
    parts = [1e4 * torch.randn(len(numbers), NODE, dtype=torch.float64, generator=generator(k)) for k in range(3)]
    constants, odd = layout.constants("full", edges), torch.stack(parts[:2])
    return Streams(layout, constants, odd=odd, invariant=parts[2] / 1e4, edges=edges), ends


def _zero(*modules):
    for module in modules:
        for parameter in module.parameters():
            torch.nn.init.zeros_(parameter)


def canonical(x):
    """x / |x|, times the root of the number of channels."""
    return x / x.square().sum().sqrt() * len(x) ** 0.5


@torch.no_grad()
@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_edges_and_messages_are_the_papers(name):
    """e' = e * phi(z_i, z_j); messages ReScaleEq(h_j, w_ij), and against the edges with duals instead of 1 / w."""
    state, ends = _state(name)
    torch.manual_seed(0)
    update = EdgeUpdate(NODE, EDGE, rank_one=False, edge_skip=False).double()
    _zero(update.product)
    new, at_nodes, _ = update(state, unit_rms(state.odd))
    free = (1 - state.constants.flip)[:, 0]

    def linear(module, x, node):
        """The last third: G x, and a bias where no sign acts."""
        return module.weight[2 * EDGE :] @ x + free[node] * module.bias[2 * EDGE :]

    gauge = 1 + 2 * torch.rand(len(free), dtype=torch.float64, generator=generator(9))
    up, down = (torch.zeros(len(free), EDGE, dtype=torch.float64) for _ in range(2))
    of_target, of_source = one_by_one(update.ends)
    for number, (i, j) in enumerate(ends):
        z_i, z_j = state.invariant[i], state.invariant[j]
        into, out_of = update.from_invariant.weight.chunk(2), update.from_invariant.bias.chunk(2)
        phi = update.gate(functional.silu(into[0] @ z_i + out_of[0] + into[1] @ z_j + out_of[1]))
        edge = state.edges[number] * phi
        assert relative(new.edges[number], edge) < 1e-12
        weight = edge * gauge[i] / gauge[j]
        up[i] += weight * gauge[j] * linear(of_source, canonical(state.odd[1, j]), j)
        down[j] += weight / gauge[i] * linear(of_target, canonical(state.odd[0, i]), i)
    for found, expected, degree, back in (
        (at_nodes[0], up, state.constants.in_degree, 1 / gauge),
        (at_nodes[1], down, state.constants.out_degree, gauge),
    ):
        assert relative(found, expected * back.unsqueeze(-1) / degree.clamp(min=1).sqrt()) < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_node_updates_are_scale_eq(name):
    """Linear in x but for an invariant factor per channel: G [x, m] * ScaleInv(x, m), ScaleInv through |x| by channel.

    What is ours is x in front, and the bridge between the two sides of a neuron, whose weights are zero here.
    """
    state, _ = _state(name)
    torch.manual_seed(0)
    update = NodeUpdate(NODE, 3, EDGE, EDGE, relative_signs=False).double()
    _zero(update.bridge)
    nodes = len(state.invariant)
    slopes = _random(nodes, 3)
    odd = _random(nodes, EDGE), _random(nodes, EDGE).flip(0)
    even = _random(nodes, EDGE).abs(), _random(nodes, EDGE).square()
    new = update(state, unit_rms(state.odd), *bridges([update], slopes, state.constants.unshifted), odd, even)
    for i in range(nodes):
        free = float(1 - state.constants.flip[i, 0])
        inputs = zip(state.odd, odd, strict=True)
        mixed, invariants = [], [state.invariant[i], even[0][i], even[1][i]]
        modules = zip(one_by_one(update.mix), one_by_one(update.pair), strict=True)
        for (stream, message), (mix, pair) in zip(inputs, modules, strict=True):
            seen = torch.cat([canonical(stream[i]), torch.zeros(NODE, dtype=torch.float64), message[i]])
            mixed.append(unit_rms(mix.weight @ seen + free * mix.bias))
            left, right = (pair.weight @ mixed[-1] + free * pair.bias).abs().chunk(2)
            invariants.append(left * right)
        found = update.out(functional.silu(update.hidden(update.norm(torch.cat(invariants)))))
        step, gate_in, gate_out = found.chunk(3)
        assert relative(new.odd[0, i] - state.odd[0, i], gate_in * mixed[0]) < 1e-10
        assert relative(new.odd[1, i] - state.odd[1, i], gate_out * mixed[1]) < 1e-10
        assert relative(new.invariant[i] - state.invariant[i], step) < 1e-10
