"""The scale gauge of networks that are no chains: one number per neuron, shared by all that skips tie to it.

As in canonicalization.py, n_i^2 = sum_j w_ij^2 n_j^2 + g_i^2 + b_i^2, with the gain g_i of a normalization, which does
not scale with what it reads. Of the levels that are tied the first one's sum counts: what the blocks of a residual
stream add to it depends on the stream. A neuron to which that says nothing takes what its outgoing weights say, or else
the other levels it is tied to (ours).
"""

from __future__ import annotations

import torch
from torch import Tensor

from weightedit.graph.layout import GraphLayout
from weightedit.network.link import LINK_KINDS


def root(square: Tensor) -> Tensor:
    """The root, with a gradient of zero at zero."""
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)


def linked_gauge(layout: GraphLayout, squares: Tensor, biases: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The gauge, and 1.0 for every node that is anchored, 0.0 for the others: both [n, 1].

    Args:
        layout: of the graph.
        squares: [e, 1], of the weights, summed over positions.
        biases: [n, 1].
        scale: [n, 1], 1.0 where the node has a positive factor.
    """
    skips = (layout.link_kind == LINK_KINDS.index("skip")).unsqueeze(-1)
    squares, leader = torch.where(skips, 0.0, squares), layout.leader
    gauge = _first_gauge(layout, squares, biases.square(), scale)
    upward = torch.where(layout.scales_with_source, squares, 0.0)

    def shared(nodes: Tensor) -> Tensor:
        return torch.zeros_like(nodes).index_add(0, leader, nodes).index_select(0, leader)

    for _ in range(layout.levels):
        known = gauge > 0
        square = torch.where(known, gauge, 1.0).square()
        above = shared(layout.sum_at_source(upward * layout.to_target(known / square)))
        below = shared(layout.sum_at_target(squares * layout.gauge_at_source(known * square)) + biases.square())
        found = torch.where(above > 0, 1 / torch.where(above > 0, above, 1.0).sqrt(), root(below))
        gauge = torch.where(known, gauge, found)
    known = gauge > 0
    return torch.where(known, gauge, 1.0), known.to(gauge)


def _first_gauge(layout: GraphLayout, squares: Tensor, biases: Tensor, scale: Tensor) -> Tensor:
    """What comes in says, level by level; 0 where it says nothing."""
    place = layout.place_among_levels
    values = torch.ones_like(layout.at_level(0, biases))
    for level in range(1, layout.levels):
        nodes, edges = layout.nodes_of_level[level], layout.edges_into_level[level]
        below = values.index_select(0, place[layout.source[edges]]).square()
        arriving = squares.index_select(0, edges) * torch.where(layout.scales_with_source[edges], below, 1.0)
        total = torch.zeros_like(biases[nodes]).index_add(0, layout.place_in_level[layout.target[edges]], arriving)
        own = torch.where(scale[nodes] == 0, 1.0, root(total + biases.index_select(0, nodes)))
        tied = (layout.leader[nodes] != nodes).unsqueeze(-1)
        # Where nothing is tied the place is that of an input, whatever it holds.
        first = values.index_select(0, torch.where(tied[:, 0], place[layout.leader[nodes]], 0))
        values = torch.cat([values, torch.where(tied, first, own)])
    return values.index_select(0, place)
