"""Equivariant layers on neural graphs: the only file with group algebra inside a metanetwork.

Everything here works in the scale gauge (canonicalization.scale_gauge): a stored node vector x stands for its primal
form n x of type +1 and for its dual form x / n of type -1 at once, and a stored edge value e for e n_i / n_j. So
messages to targets use the primal, messages to sources the dual channel of symmetry.md section 3, and neither a
reciprocal of a weight nor an epsilon in a norm is needed. What is left to respect are permutations, by construction,
and signs. Legend, for neuron i with signs alpha (incoming side) and beta (outgoing side), symmetry.md section 4:

    x  `incoming` node stream   ~ alpha_i     (rows, bias deltas, incoming messages)
    y  `outgoing` node stream   ~ beta_i      (activations, messages from the nodes above)
    z  `invariant` node stream  ~ 1
    e  edges                    ~ alpha_i beta_j
    s  slopes                   ~ alpha_i beta_i: s x ~ beta_i and s y ~ alpha_i, the only bridge between x and y

For groups without a half-period shift alpha = beta. Linear maps of x, y, e have no bias where a sign acts (OddLinear);
nonlinear functions act on invariants only: z, x_a x_b, y_a y_b and e x y, which keep the relative signs of a neuron's
channels. What depends on one end of an edge is computed on the node and broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightedit.graph.neural_graph import Layout, NodeConstants


@dataclass(frozen=True)
class Streams:
    """The state between two layers; shapes [..., n, node_width] and, for edges, [..., e, edge_width].

    The two odd streams stand in one tensor, so that what is done to both is dispatched once.
    """

    layout: Layout
    constants: NodeConstants
    odd: Tensor  # [2, ..., n, node_width]: incoming, outgoing
    invariant: Tensor
    edges: Tensor


class OddLinear(nn.Module):
    """A linear map of odd channels whose bias acts only where no sign does."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width_out, width_in) / math.sqrt(width_in))
        self.bias = nn.Parameter(torch.randn(width_out) / math.sqrt(width_in))

    def forward(self, x: Tensor, free: Tensor) -> Tensor:
        """`x` [..., n, in], `free` [n, 1] (1.0 where no sign acts) -> [..., n, out]."""
        return functional.linear(x, self.weight) + free * self.bias


_SIDES = "incoming", "outgoing"


def _once(name: str, formerly: str) -> str:
    """A module's name with its last part as it once was."""
    return name.removesuffix(name.rpartition(".")[2]) + formerly


class OddPair(nn.Module):
    """An odd linear map for each of the two odd streams, of the same widths, in one product.

    Its weights [2, in, out] act from the right: they and their gradients are what a product takes and gives.

    Args:
        width_in, width_out: of either map.
        formerly: what came before `_incoming` and `_outgoing` when these were two OddLinear of other names.
    """

    def __init__(self, width_in: int, width_out: int, formerly: str) -> None:
        super().__init__()
        self.formerly = formerly
        both = [OddLinear(width_in, width_out) for _ in range(2)]
        self.weight = nn.Parameter(torch.stack([one.weight.detach().mT for one in both]))
        self.bias = nn.Parameter(torch.stack([one.bias.detach() for one in both]))

    def forward(self, x: Tensor, free: Tensor) -> Tensor:
        """`x` [2, ..., n, in], incoming and outgoing, `free` [n, 1] -> [2, ..., n, out]."""
        found = torch.bmm(x.flatten(1, -2), self.weight).unflatten(1, x.shape[1:-1])
        return found + free * self.bias.view(2, *[1] * (x.dim() - 2), -1)

    def renew(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Lay out as today what was kept as two OddLinear; see files.checkpoint.load_into."""
        for kind in ("weight", "bias"):
            old = [f"{_once(name, self.formerly)}_{side}.{kind}" for side in _SIDES]
            if all(key in tensors for key in old):
                both = torch.stack([tensors.pop(key) for key in old])
                tensors[f"{name}.{kind}"] = both.mT.contiguous() if kind == "weight" else both


class UnevenPair(nn.Module):
    """An OddPair of maps whose widths (incoming, outgoing) differ."""

    def __init__(self, widths_in: tuple[int, int], widths_out: tuple[int, int], formerly: str) -> None:
        super().__init__()
        self.formerly = formerly
        self.incoming, self.outgoing = map(OddLinear, widths_in, widths_out)

    def forward(self, x: Sequence[Tensor] | Tensor, free: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Two of [..., n, in], `free` [n, 1] -> [2, ..., n, out], or two of [..., n, out] where that differs."""
        both = self.incoming(x[0], free), self.outgoing(x[1], free)
        return torch.stack(both) if both[0].shape == both[1].shape else both

    def renew(self, name: str, tensors: dict[str, Tensor]) -> None:
        """See OddPair.renew."""
        for side in _SIDES:
            for kind in ("weight", "bias"):
                old = f"{_once(name, self.formerly)}_{side}.{kind}"
                if old in tensors:
                    tensors[f"{name}.{side}.{kind}"] = tensors.pop(old)


def odd_maps(widths_in: tuple[int, int], widths_out: tuple[int, int], formerly: str) -> OddPair | UnevenPair:
    """A map for the incoming and one for the outgoing stream."""
    if len({*widths_in}) == len({*widths_out}) == 1:
        return OddPair(widths_in[0], widths_out[0], formerly)
    return UnevenPair(widths_in, widths_out, formerly)


def sides(x: Tensor) -> Tensor:
    """What the channels hold for both streams, one after the other: [..., 2 C] -> [2, ..., C]."""
    return x.unflatten(-1, (2, -1)).movedim(-2, 0)


def unit_rms(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """`x` over the root of `epsilon` and its mean square along the last axis. Even in x, and in the gauge harmless.

    One operation each way where PyTorch has one for a device.
    """
    return functional.rms_norm(x, x.shape[-1:], eps=epsilon)


class NodeUpdate(nn.Module):
    """Mix a node's streams with each other and with the messages of either direction, 0 channels for none.

    Residual on all three streams; the two odd ones are gated by invariants.
    """

    def __init__(
        self, width: int, slope_width: int, messages_in: int, messages_out: int, relative_signs: bool = True
    ) -> None:
        super().__init__()
        self.width = width
        self.relative_signs = relative_signs
        self.bridge = OddLinear(slope_width, 2 * width)
        self.mix = odd_maps((2 * width + messages_in, 2 * width + messages_out), (width, width), "mix")
        self.pair = OddPair(width, 2 * width, "pair")
        self.norm = nn.LayerNorm(3 * width + messages_in + messages_out)
        self.hidden = nn.Linear(3 * width + messages_in + messages_out, 2 * width)
        self.out = nn.Linear(2 * width, 3 * width)

    def forward(
        self,
        state: Streams,
        units: Tensor,
        bridge: Tensor,
        odd: tuple[Tensor, ...] = (),
        even: tuple[Tensor, ...] = (),
    ) -> Streams:
        """New streams.

        Args:
            state: before.
            units: `unit_rms` of its odd streams.
            bridge: of `bridges`.
            odd, even: the messages: (at targets, at sources), the former alone, or none.
        """
        free = state.constants.free
        # To the outgoing side goes what came in, and the other way round.
        crossed = (bridge * units).flip(0)
        if len(odd) == 1:
            seen = torch.cat([units[0], crossed[0], *odd], -1), torch.cat([units[1], crossed[1]], -1)
        else:
            seen = torch.cat([units, crossed, *([torch.stack(odd)] if odd else [])], -1)
        mixed = unit_rms(self.mix(seen, free))
        pairs = self.pair(mixed, free)
        invariants = [state.invariant, *even, *paired(pairs if self.relative_signs else pairs.abs())]
        found = self.out(functional.silu(self.hidden(self.norm(torch.cat(invariants, -1)))))
        step, gates = found.split([self.width, 2 * self.width], -1)
        return replace(state, odd=state.odd + sides(gates) * mixed, invariant=state.invariant + step)


def bridges(updates: Sequence[Any], slopes: Tensor, unshifted: Tensor) -> tuple[Tensor, ...]:
    """What the bridge of every NodeUpdate makes of the slopes [..., n, S], in one product: [2, ..., n, width] each.

    The bridge to the outgoing side comes first.
    """
    parts = [update.bridge for update in updates]
    weight, bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
    found = functional.linear(slopes, weight) + unshifted * bias
    return found.unflatten(-1, (len(parts), 2, -1)).movedim((-3, -2), (0, 1)).unbind()


def paired(x: Tensor) -> Tensor:
    """Products of channel c and channel c + C / 2: [..., C] of one sign -> [..., C / 2], invariant."""
    left, right = x.chunk(2, -1)
    return left * right


class EdgeUpdate(nn.Module):
    """Update edges from their two ends, and send messages along them.

    Per edge: v = silu(A (e x_i y_j / d) + a_i + b_j) is invariant, d^2 = 1 + mean(e^2);
    e <- e (1 + B v) + x'_i y'_j C v is odd: the product term and the rank-one term of symmetry.md section 3, which lets
    a zero weight become non-zero. Without d v grows with e, hence e with e^2 in every layer: the largest edges went to
    1e9 in ten. Messages are sum_j e y''_j at targets and sum_i e x''_i at sources, over the root of
    their number, and means of v at both.
    """

    def __init__(
        self,
        node_width: int,
        edge_width: int,
        even_width: int = 0,
        rank_one: bool = True,
        edge_skip: bool = True,
        relative_signs: bool = True,
        bidirectional: bool = True,
    ) -> None:
        super().__init__()
        self.edge_width, self.bidirectional = edge_width, bidirectional
        self.rank_one, self.edge_skip, self.relative_signs = rank_one, edge_skip, relative_signs
        parts = (2 + bidirectional) * edge_width, 3 * edge_width
        self.ends = odd_maps((node_width, node_width), parts, "from")
        self.from_invariant = nn.Linear(node_width, 2 * edge_width)
        self.product = nn.Linear(edge_width, edge_width, bias=False)
        self.gate = nn.Linear(edge_width, edge_width)
        self.rank_gate = nn.Linear(edge_width, edge_width)
        self.even = nn.Linear(even_width, edge_width, bias=False) if even_width else None
        with torch.no_grad():
            self.gate.weight.mul_(0.5)
            self.rank_gate.weight.mul_(0.5)

    def forward(
        self, state: Streams, units: Tensor, even: Tensor | None = None
    ) -> tuple[Streams, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """New state, odd messages (at targets, and if bidirectional at sources) and even messages (likewise).

        `units` is `unit_rms` of the state's odd streams.
        """
        layout, constants = state.layout, state.constants
        x, y = (side.split(self.edge_width, -1) for side in self.ends(units, constants.free))
        at_target, at_source = self.from_invariant(state.invariant).chunk(2, -1)
        pairs = 1 + self.rank_one
        between, *beside = layout.products(x[:pairs], y[:pairs])
        products = unit_rms(state.edges, 1.0) * between
        products = products if self.relative_signs else products.abs()
        v = layout.add_ends(self.product(products), at_target, at_source)
        if self.even is not None and even is not None:
            v = v + self.even(even)
        v = functional.silu(v)
        # Not addcmul: its gradient multiplies twice by the scalar 1. In place: fresh edge-sized memory is dear.
        edges = state.edges * self.gate(v)
        if self.edge_skip:
            edges = edges.add_(state.edges)
        for product in beside:
            edges = edges.add_(self.rank_gate(v) * product)
        new = replace(state, edges=edges)
        if not self.bidirectional:
            odd_in = layout.collect_at_target(edges, y[2]) * constants.in_root
            return new, (odd_in,), (layout.sum_at_target(v) / constants.in_count,)
        odd_in, odd_out = layout.collect(edges, y[2], x[2])
        even_in, even_out = layout.sums(v)
        odd = odd_in * constants.in_root, odd_out * constants.out_root
        return new, odd, (even_in / constants.in_count, even_out / constants.out_count)
