"""The building blocks of the paper's ScaleGMN: ScaleInv, ScaleEq, ReScaleEq, and messages and updates made of them.

Kalogeropoulos, Chatzianastasis, Panagakis, "Scale Equivariant Graph MetaNetworks" (2024), section 5. Legend: h_i node
features, which the factor q_i of neuron i multiplies; e_ij edge features, multiplied by q_i / q_j, and against the edge
by q_j / q_i; G learned matrices without bias; x~ a canonical form of x; (*) products by channel; [.] joined channels.

    ScaleInv(x, y, ...) = MLP(x~, y~, ...), x~ = x / |x| for positive factors; for signs |x| by channel
                          (canonicalization) or f(x) + f(-x) (symmetrization); both, one after the other, for both
    ScaleEq(x)          = G x (*) ScaleInv(x)                       one of the paper's, who compose several
    ReScaleEq(x, y)     = G x (*) G' y
    message to i        = ScaleEq([h_i, ReScaleEq(h_j, e_ij)]), summed over j
    update of a node    = ScaleEq([h_i, m_i]), with messages of both directions in ScaleGMN-B
    update of an edge   = G e_ij (*) ScaleInv(h_i, h_j)

MLPs have one hidden layer: linear, LayerNorm, SiLU, linear. The first linear map of a sum of two ends is computed on
the nodes and broadcast, G h_i of a message leaves the sum over edges: the same function, fewer products per edge.
A vector that is zero has no direction and stays zero in x / |x|; no epsilon is added, which would break exactness.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightedit.graph.neural_graph import Layout


@dataclass(frozen=True)
class Factors:
    """What acts on the nodes, [n, 1] masks; None where it acts on none.

    Attributes:
        scale: 1.0 at the nodes with a positive factor.
        flip: 1.0 at the nodes with a sign.
        absolute: whether invariants see |x|; else they are symmetrized.
    """

    scale: Tensor | None
    flip: Tensor | None
    absolute: bool

    def seen(self, x: Tensor, flip: Tensor | None) -> Tensor:
        """|x| by channel where a sign acts, if signs are canonicalized."""
        return torch.where(flip > 0, x.abs(), x) if self.absolute and flip is not None else x

    def mirrored(self, flip: Tensor | None) -> Tensor | None:
        """Where f(-x) is added, if signs are symmetrized."""
        return None if self.absolute else flip


@dataclass(frozen=True)
class Way:
    """One direction of the edges: [..., n, C] -> [..., e, C] at the end that receives or sends, and sums back."""

    to_receiver: Callable[[Tensor], Tensor]
    to_sender: Callable[[Tensor], Tensor]
    total: Callable[[Tensor], Tensor]


def along(layout: Layout) -> Way:
    """From sources to targets."""
    return Way(layout.to_target, layout.to_source, layout.sum_at_target)


def against(layout: Layout) -> Way:
    """From targets to sources."""
    return Way(layout.to_source, layout.to_target, layout.sum_at_source)


def inverse_norm(square: Tensor, scale: Tensor) -> Tensor:
    """1 / |x| from |x|^2 where a positive factor acts, 1 elsewhere and for zero vectors."""
    alive = (square > 0) & (scale > 0)
    return torch.where(alive, torch.where(alive, square, 1.0).rsqrt(), 1.0)


def squared(x: Tensor) -> Tensor:
    """|x|^2, [..., C] -> [..., 1]."""
    return x.square().sum(-1, keepdim=True)


def matrix(width_in: int, width_out: int) -> nn.Linear:
    """A learned matrix G: no bias, which no factor would multiply."""
    return nn.Linear(width_in, width_out, bias=False)


class Hidden(nn.Module):
    """s(x) = SiLU(LayerNorm(x + bias)), and s(x) + s(-x) where a sign is to be forgotten."""

    def __init__(self, width: int, layer_norm: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(width) / width**0.5)
        self.norm = nn.LayerNorm(width) if layer_norm else nn.Identity()

    def forward(self, lifted: Tensor, mirrored: Tensor | None, codes: Tensor | None = None) -> Tensor:
        """`lifted` is linear in x~, no sign acts on `codes`; both [..., width], `mirrored` [..., 1] or None."""
        plain = self.bias if codes is None else self.bias + codes
        found = functional.silu(self.norm(plain + lifted))
        return found if mirrored is None else found + mirrored * functional.silu(self.norm(plain - lifted))


class ScaleEq(nn.Module):
    """G x (*) ScaleInv(x) of node features [..., n, width_in] -> [..., n, width]."""

    def __init__(self, width_in: int, width: int, layer_norm: bool, codes: bool) -> None:
        super().__init__()
        self.keep, self.see = matrix(width_in, width), matrix(width_in, width)
        self.see_codes = matrix(width, width) if codes else None
        self.hidden, self.out = Hidden(width, layer_norm), nn.Linear(width, width)

    def forward(self, x: Tensor, factors: Factors, codes: Tensor | None) -> Tensor:
        return self.keep(x) * self.invariant(x, factors, codes)

    def invariant(self, x: Tensor, factors: Factors, codes: Tensor | None) -> Tensor:
        """ScaleInv(x)."""
        lifted = self.see(factors.seen(x, factors.flip))
        if factors.scale is not None:
            lifted = lifted * inverse_norm(squared(x), factors.scale)
        coded = None if self.see_codes is None else self.see_codes(codes)
        return self.out(self.hidden(lifted, factors.mirrored(factors.flip), coded))


class Message(nn.Module):
    """Sums of ScaleEq([h_i, ReScaleEq(h_j, e)]) over the edges of every receiver i."""

    def __init__(self, width: int, layer_norm: bool, codes: bool) -> None:
        super().__init__()
        self.from_sender, self.from_edge = matrix(width, width), matrix(width, width)
        self.keep_receiver, self.keep_product = matrix(width, width), matrix(width, width)
        self.see_receiver, self.see_product = matrix(width, width), matrix(width, width)
        self.see_codes = nn.ModuleList([matrix(width, width) for _ in range(2)]) if codes else None
        self.hidden, self.out = Hidden(width, layer_norm), nn.Linear(width, width)

    def forward(self, way: Way, nodes: Tensor, edges: Tensor, factors: Factors, codes: Tensor | None) -> Tensor:
        """[..., n, width]"""
        product = self.from_edge(edges) * way.to_sender(self.from_sender(nodes))
        flip = None if factors.flip is None else way.to_receiver(factors.flip)
        lifted = self.see_product(factors.seen(product, flip))
        lifted = lifted + way.to_receiver(self.see_receiver(factors.seen(nodes, factors.flip)))
        if factors.scale is not None:
            square = squared(product) + way.to_receiver(squared(nodes))
            lifted = lifted * inverse_norm(square, way.to_receiver(factors.scale))
        coded = None
        if self.see_codes is not None and codes is not None:
            coded = way.to_receiver(self.see_codes[0](codes)) + way.to_sender(self.see_codes[1](codes))
        gate = self.out(self.hidden(lifted, factors.mirrored(flip), coded))
        return self.keep_receiver(nodes) * way.total(gate) + way.total(self.keep_product(product) * gate)


class EdgeUpdate(nn.Module):
    """G e (*) ScaleInv(h_i, h_j)."""

    def __init__(self, width: int, layer_norm: bool, signs: str) -> None:
        super().__init__()
        self.keep = matrix(width, width)
        # The two ends have signs of their own, so each is symmetrized by itself.
        symmetric = signs == "symmetrization"
        self.symmetrize = nn.ModuleList([matrix(width, width), Hidden(width, layer_norm)]) if symmetric else None
        self.see_target, self.see_source = matrix(width, width), matrix(width, width)
        self.hidden, self.out = Hidden(width, layer_norm), nn.Linear(width, width)

    def forward(self, layout: Layout, nodes: Tensor, edges: Tensor, factors: Factors) -> Tensor:
        """[..., e, width]"""
        seen = factors.seen(nodes, factors.flip)
        if factors.scale is not None:
            seen = seen * inverse_norm(squared(nodes), factors.scale)
        if self.symmetrize is not None and factors.flip is not None:
            lift, hidden = self.symmetrize
            seen = torch.where(factors.flip > 0, hidden(lift(seen), factors.flip), seen)
        ends = layout.to_target(self.see_target(seen)) + layout.to_source(self.see_source(seen))
        return self.keep(edges) * self.out(self.hidden(ends, None))


@dataclass(frozen=True)
class State:
    """Features between two layers: nodes [..., n, width], edges [..., e, width] along and, or None, against."""

    nodes: Tensor
    edges: Tensor
    back: Tensor | None


class PaperLayer(nn.Module):
    """Messages, then the update of nodes and edges, all from the features before.

    Args:
        width: of everything.
        layer_norm: of the MLPs.
        codes: whether messages and node updates see node codes.
        signs: see ScaleGMNConfig.
        skip: add the nodes before.
        updates: whether edges along and edges against are updated.
        bidirectional: whether there are edges against.
    """

    def __init__(
        self,
        width: int,
        layer_norm: bool,
        codes: bool,
        signs: str,
        *,
        skip: bool,
        updates: tuple[bool, bool],
        bidirectional: bool,
    ) -> None:
        super().__init__()
        self.skip = skip
        self.message = Message(width, layer_norm, codes)
        self.message_back = Message(width, layer_norm, codes) if bidirectional else None
        self.update = ScaleEq((3 if bidirectional else 2) * width, width, layer_norm, codes)
        forward, back = updates
        self.update_edges = EdgeUpdate(width, layer_norm, signs) if forward else None
        self.update_back = EdgeUpdate(width, layer_norm, signs) if back and bidirectional else None

    def forward(self, layout: Layout, state: State, factors: Factors, codes: Tensor | None) -> State:
        nodes, joined = state.nodes, [state.nodes]
        joined.append(self.message(along(layout), nodes, state.edges, factors, codes))
        if self.message_back is not None and state.back is not None:
            joined.append(self.message_back(against(layout), nodes, state.back, factors, codes))
        updated = self.update(torch.cat(joined, -1), factors, codes)
        new = replace(state, nodes=nodes + updated if self.skip else updated)
        if self.update_edges is not None:
            new = replace(new, edges=self.update_edges(layout, nodes, state.edges, factors))
        if self.update_back is not None and state.back is not None:
            new = replace(new, back=self.update_back(layout, nodes, state.back, factors))
        return new
