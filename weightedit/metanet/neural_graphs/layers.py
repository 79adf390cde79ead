"""The layers of Neural Graphs: PNA with FiLM messages, relational attention, edge updates; on pairs of neurons.

Formulas: Kofinas et al. 2024, "Graph Neural Networks for Learning Equivariant Representations of Neural Networks", on
Corso et al. 2020 (PNA), Brockschmidt 2020 (FiLM) and Diao & Loynd 2023 (relational attention). What goes into the
graph and what is read off it is in ends.py; the metanetworks are in network.py.

A `Pairs` holds one feature vector per ordered pair (i, j) of neurons where i receives from j: along the network's
edges, against them (reverse edges), and, for attention, from a neuron to itself. These are all real pairs of a sparse
graph: no N x N matrix is made. Legend: v node features, e pair features, d the number of pairs a node receives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightedit.graph.neural_graph import Layout

# PNA's epsilon under the root of the variance (Corso et al. 2020).
_VARIANCE_EPSILON = 1e-5


@dataclass(frozen=True)
class Pairs:
    """Features of ordered pairs (receiver i, sender j); sets that a metanetwork does without are None.

    Attributes:
        layout: of the graph.
        degree: [n, 1], pairs that every node receives, loops not counted.
        forward: [..., e, C], along the edges: the target receives from the source.
        backward: [..., e, C], along reverse edges: the source receives from the target.
        loops: [..., n, C], every node from itself.
    """

    layout: Layout
    degree: Tensor
    forward: Tensor
    backward: Tensor | None = None
    loops: Tensor | None = None

    def map(self, function: Callable[..., Tensor], *others: Pairs) -> Pairs:
        """`function` of these features, and of the `others`, on every set of pairs."""
        sets = [(p.forward, p.backward, p.loops) for p in (self, *others)]
        forward, backward, loops = (None if part[0] is None else function(*part) for part in zip(*sets, strict=True))
        assert forward is not None
        return Pairs(self.layout, self.degree, forward, backward, loops)

    def at_receiver(self, nodes: Tensor) -> Pairs:
        """Every pair's receiver: nodes [..., n, C]."""
        to_target, to_source = self.layout.to_target, self.layout.to_source
        return self._with(to_target(nodes), lambda: to_source(nodes), nodes)

    def at_sender(self, nodes: Tensor) -> Pairs:
        """Every pair's sender: nodes [..., n, C]."""
        to_target, to_source = self.layout.to_target, self.layout.to_source
        return self._with(to_source(nodes), lambda: to_target(nodes), nodes)

    def add_ends(self, receiver: Tensor, sender: Tensor) -> Pairs:
        """These features + receiver[i] + sender[j], both [..., n, C]."""
        backward, loops = self.backward, self.loops
        return Pairs(
            self.layout,
            self.degree,
            self.layout.add_ends(self.forward, receiver, sender),
            None if backward is None else self.layout.add_ends(backward, sender, receiver),
            None if loops is None else loops + receiver + sender,
        )

    def sum_of_ends(self, receiver: Tensor, sender: Tensor) -> Pairs:
        """receiver[i] + sender[j] at every pair, both [..., n, C]."""
        zero = receiver.new_zeros(()).expand(*self.forward.shape[:-1], receiver.shape[-1])
        backward = None if self.backward is None else zero
        loops = None if self.loops is None else torch.zeros_like(receiver)
        return Pairs(self.layout, self.degree, zero, backward, loops).add_ends(receiver, sender)

    def swapped(self) -> Pairs:
        """At every pair (i, j) the features of (j, i); both directions have to be there."""
        assert self.backward is not None
        return Pairs(self.layout, self.degree, self.backward, self.forward, self.loops)

    def sum(self) -> Tensor:
        """Sum over the pairs that a node receives, [..., n, C]."""
        total = self.layout.sum_at_target(self.forward)
        if self.backward is not None:
            total = total + self.layout.sum_at_source(self.backward)
        return total if self.loops is None else total + self.loops

    def max(self) -> Tensor:
        """Maximum over the pairs that a node receives, [..., n, C]; -inf where it receives none."""
        top = self.layout.max_at_target(self.forward)
        if self.backward is not None:
            top = torch.maximum(top, self.layout.max_at_source(self.backward))
        return top if self.loops is None else torch.maximum(top, self.loops)

    def _with(self, forward: Tensor, backward: Callable[[], Tensor], loops: Tensor) -> Pairs:
        return Pairs(
            self.layout,
            self.degree,
            forward,
            None if self.backward is None else backward(),
            None if self.loops is None else loops,
        )


def unit_linear(width_in: int, width_out: int, gain: float = 1.0) -> nn.Linear:
    """A linear layer that keeps unit-size signals at unit size (times `gain`) at the start; its bias starts at 0."""
    linear = nn.Linear(width_in, width_out)
    nn.init.normal_(linear.weight, std=gain / math.sqrt(width_in))
    nn.init.zeros_(linear.bias)
    return linear


def parts_of_linear(linear: nn.Linear, x: Tensor, parts: int) -> list[Tensor]:
    """`linear(x)` cut into equal parts of channels: without the copies that autograd makes to join their gradients."""
    biases = [None] * parts if linear.bias is None else linear.bias.chunk(parts)
    return [functional.linear(x, *part) for part in zip(linear.weight.chunk(parts), biases, strict=True)]


def two_layers(width_in: int, hidden: int, width_out: int, activation: type[nn.Module]) -> nn.Sequential:
    """Linear, activation, linear; unit-size signals stay so (SiLU and GELU shrink them to about 0.6)."""
    return nn.Sequential(unit_linear(width_in, hidden), activation(), unit_linear(hidden, width_out, 1.7))


def degree_scalers(degree: Tensor, typical: float) -> dict[str, Tensor]:
    """PNA's scalers (Corso et al. 2020, eq. 5) of the numbers of pairs that nodes receive, [n, 1] each.

    Args:
        degree: [n, 1].
        typical: the degree at which all of them are 1.
    """
    log = degree.log1p() / math.log1p(typical)
    # Nodes that receive nothing have no aggregate to scale.
    return {
        "identity": torch.ones_like(log),
        "amplification": log,
        "attenuation": torch.where(degree > 0, 1 / log.where(degree > 0, torch.ones_like(log)), 0.0),
    }


class PNALayer(nn.Module):
    """One layer of NG-GNN: FiLM messages, PNA aggregation, node update, and the edge update after it.

    m_ij = scale(e_ij) * (A [v_i, v_j] + a) + shift(e_ij)
    v'_i = silu(LayerNorm(U [v_i, every scaler times every one of mean, min, max, std over j of m_ij] + u))
    e'_ij = B silu(C [v'_i, e_ij, v'_j] + c) + b

    scale, shift, A and U are affine, as in the published settings (one layer before and after the aggregation).

    Args:
        node_width, edge_width: channels of v and e.
        scalers: names of `degree_scalers`.
        typical_degree: where they are 1.
        edges: whether edges are updated; the last layer of one that reads leaves them.
    """

    def __init__(
        self, node_width: int, edge_width: int, scalers: tuple[str, ...], typical_degree: float, *, edges: bool = True
    ) -> None:
        super().__init__()
        self.scalers, self.typical_degree = scalers, typical_degree
        self.message_receiver = unit_linear(node_width, node_width, math.sqrt(0.5))
        self.message_sender = nn.Linear(node_width, node_width, bias=False)
        self.film = unit_linear(edge_width, 2 * node_width)
        self.update = unit_linear((1 + 4 * len(scalers)) * node_width, node_width)
        self.norm = nn.LayerNorm(node_width)
        nn.init.normal_(self.message_sender.weight, std=math.sqrt(0.5 / node_width))
        self.edge_pairs = unit_linear(edge_width, edge_width) if edges else None
        if edges:
            self.edge_receiver = nn.Linear(node_width, edge_width, bias=False)
            self.edge_sender = nn.Linear(node_width, edge_width, bias=False)
            self.edge_out = unit_linear(edge_width, edge_width, 1.7)

    def forward(self, nodes: Tensor, pairs: Pairs) -> tuple[Tensor, Pairs]:
        """New nodes and pairs."""
        messages = pairs.map(
            self._modulate, pairs.sum_of_ends(self.message_receiver(nodes), self.message_sender(nodes))
        )
        received = self._aggregate(messages)
        scalers = degree_scalers(pairs.degree, self.typical_degree)
        scaled = [scalers[name] * received for name in self.scalers]
        nodes = functional.silu(self.norm(self.update(torch.cat([nodes, *scaled], -1))))
        if self.edge_pairs is None:
            return nodes, pairs
        seen = pairs.map(self.edge_pairs).add_ends(self.edge_receiver(nodes), self.edge_sender(nodes))
        return nodes, seen.map(lambda e: self.edge_out(functional.silu(e)))

    def _modulate(self, edges: Tensor, ends: Tensor) -> Tensor:
        scale, shift = parts_of_linear(self.film, edges, 2)
        return scale * ends + shift

    @staticmethod
    def _aggregate(messages: Pairs) -> Tensor:
        """[..., n, 4 C]: mean, min, max, std; zeros where nothing is received."""
        count = messages.degree.clamp(min=1)
        mean = messages.sum() / count
        # Around the mean, not as a difference of squares, which has no digits left in low precision.
        variance = messages.add_ends(-mean, torch.zeros_like(mean)).map(torch.square).sum() / count
        lowest, highest = -messages.map(torch.neg).max(), messages.max()
        found = torch.cat([mean, lowest, highest, (variance + _VARIANCE_EPSILON).sqrt()], -1)
        return torch.where(messages.degree > 0, found, torch.zeros_like(found))


class RelationalAttention(nn.Module):
    """Attention whose queries, keys and values are modulated by pair features; over the pairs of every receiver.

    q_ij = Q v_i + Q' e_ij;   k_ij = K v_j + K' e_ij;   w_ij = softmax over j of q_ij . k_ij / sqrt(C), per head;
    result_i = sum_j w_ij (S e_ij * V v_j + V' e_ij)
    """

    def __init__(self, node_width: int, edge_width: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.from_nodes = nn.Linear(node_width, 3 * width, bias=False)
        self.from_pairs = nn.Linear(edge_width, 4 * width, bias=False)

    def forward(self, nodes: Tensor, pairs: Pairs) -> Tensor:
        """[..., n, width]"""
        queries, keys, values = self.from_nodes(nodes).chunk(3, -1)
        logits = pairs.map(self._logits, pairs.at_receiver(queries), pairs.at_sender(keys))
        # Any constant per receiver leaves the softmax and its gradient as they are; this one keeps exp in range.
        top = pairs.at_receiver(logits.map(torch.detach).max())
        shares = logits.map(lambda x, highest: (x - highest).exp(), top)
        mixed = shares.map(self._mix, pairs, pairs.at_sender(values)).sum()
        return (self._split(mixed) / shares.sum().unsqueeze(-1)).flatten(-2)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))

    def _relations(self, edges: Tensor, which: slice) -> list[Tensor]:
        """Two of the four parts of `from_pairs`: of queries, keys, scales and shifts."""
        return [functional.linear(edges, weight) for weight in self.from_pairs.weight.chunk(4)[which]]

    def _logits(self, edges: Tensor, query: Tensor, key: Tensor) -> Tensor:
        of_query, of_key = self._relations(edges, slice(2))
        products = self._split((query + of_query) * (key + of_key))
        return products.sum(-1) / math.sqrt(products.shape[-1])

    def _mix(self, share: Tensor, edges: Tensor, value: Tensor) -> Tensor:
        scale, shift = self._relations(edges, slice(2, 4))
        return (share.unsqueeze(-1) * self._split(scale * value + shift)).flatten(-2)


class RelationalLayer(nn.Module):
    """One layer of NG-T: relational attention and the edge update from both directions, each followed by an MLP.

    v <- LayerNorm(v + O attention(v, e) + o);            v <- LayerNorm(v + MLP(v))
    e_ij <- LayerNorm(e_ij + phi([v_i, v_j, e_ij, e_ji])); e_ij <- LayerNorm(e_ij + MLP(e_ij))

    phi and the MLPs have one hidden layer of twice the width and GELU. For a loop, e_ji is e_ii itself.

    Args:
        node_width, edge_width: channels of v and e; attention is twice as wide as v.
        heads: of the attention.
        edges: whether edges are updated; the last layer of one that reads leaves them.
    """

    def __init__(self, node_width: int, edge_width: int, heads: int, *, edges: bool = True) -> None:
        super().__init__()
        self.attention = RelationalAttention(node_width, edge_width, 2 * node_width, heads)
        self.out = unit_linear(2 * node_width, node_width)
        self.norms = nn.ModuleList(nn.LayerNorm(node_width) for _ in range(2))
        self.mlp = two_layers(node_width, 2 * node_width, node_width, nn.GELU)
        self.edge_both = unit_linear(2 * edge_width, 2 * edge_width) if edges else None
        if edges:
            self.edge_receiver = nn.Linear(node_width, 2 * edge_width, bias=False)
            self.edge_sender = nn.Linear(node_width, 2 * edge_width, bias=False)
            self.edge_out = unit_linear(2 * edge_width, edge_width, 1.7)
            self.edge_norms = nn.ModuleList(nn.LayerNorm(edge_width) for _ in range(2))
            self.edge_mlp = two_layers(edge_width, 2 * edge_width, edge_width, nn.GELU)

    def forward(self, nodes: Tensor, pairs: Pairs) -> tuple[Tensor, Pairs]:
        """New nodes and pairs."""
        nodes = self.norms[0](nodes + self.out(self.attention(nodes, pairs)))
        nodes = self.norms[1](nodes + self.mlp(nodes))
        if self.edge_both is None:
            return nodes, pairs
        own, other = self.edge_both.weight.chunk(2, 1)
        bias = self.edge_both.bias
        seen = pairs.map(lambda e, f: functional.linear(e, own, bias) + functional.linear(f, other), pairs.swapped())
        seen = seen.add_ends(self.edge_receiver(nodes), self.edge_sender(nodes))
        return nodes, pairs.map(self._update, seen)

    def _update(self, edges: Tensor, seen: Tensor) -> Tensor:
        edges = self.edge_norms[0](edges + self.edge_out(functional.gelu(seen)))
        return self.edge_norms[1](edges + self.edge_mlp(edges))
